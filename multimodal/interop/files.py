"""Weight files -> {name: numpy array}, without ever running what a file says."""

import json
import pathlib
import pickle

import ml_dtypes  # noqa: F401 (makes numpy know bfloat16, which safetensors files hold)
import numpy as np
import safetensors
import safetensors.numpy

from multimodal import npz
from multimodal.errors import UserError, first_line

NAMES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
CONFIGS = ("config.json", "open_clip_config.json", "config_bert.json")
NESTED = ("state_dict", "model")  # where a training checkpoint holds the weights


def load_file(path) -> dict[str, np.ndarray]:
    """Read .safetensors, .npz (no pickles) or .pth/.pt/.bin (weights only) into a flat dict.

    A folder stands for the weights file in it. `module.` in front of every name (torch's data
    parallelism) is taken away; float16 and bfloat16 become float32. Raises UserError for a file
    that is missing, damaged or wants to run code.
    """
    path = find(path)
    reader = READERS.get(path.suffix)
    if reader is None:
        raise UserError(f"{path}: unknown kind of weights file; known: {', '.join(READERS)}")
    state = {k: half_to_float(v) for k, v in reader(path).items()}
    if state and all(k.startswith("module.") for k in state):
        state = {k.removeprefix("module."): v for k, v in state.items()}
    return state


def find(path) -> pathlib.Path:
    """The weights file that a path means. Raises UserError if there is none."""
    path = pathlib.Path(path)
    if path.is_dir():
        found = [path / name for name in NAMES if (path / name).is_file()]
        if not found:
            raise UserError(
                f"{path}: none of {', '.join(NAMES)} in this folder: name the file itself"
            )
        return found[0]
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    return path


def half_to_float(x):
    """Half-precision arrays as float32, others as they are."""
    return x.astype(np.float32) if x.dtype.name in ("float16", "bfloat16") else x


def read_safetensors(path):
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as e:
        raise UserError(f"{path}: not a safetensors file: {first_line(e)}") from None
    except (AttributeError, KeyError, TypeError) as e:  # of types that NumPy does not have
        raise UserError(
            f"{path}: holds arrays of a type that is not known: {first_line(e)}"
        ) from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {first_line(e)}") from None


def read_npz(path):
    try:
        with npz.opened(path) as z:
            return {k: npz.numbers(z, k) for k in z.files}
    except (ValueError, OSError, KeyError) as e:
        raise UserError(f"{path}: not an .npz of plain arrays: {first_line(e)}") from None


def read_torch(path):
    """torch.load(weights_only=True): its unpickler builds tensors and plain containers, nothing
    else."""
    try:
        import torch
    except ImportError:
        raise UserError(f"{path}: reading it takes torch: pip install -e '.[torch]'") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        reason = str(e).rstrip().splitlines()
        detail = next(
            (line.strip() for line in reason if "GLOBAL" in line or "Unsupported" in line),
            reason[0],
        )
        raise UserError(
            f"{path}: refused, it holds more than weights and could run code: {detail}"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError) as e:
        raise UserError(f"{path}: torch cannot read it: {first_line(e)}") from None
    for key in NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path}: holds no state dict")
    odd = [k for k, v in state.items() if not isinstance(v, torch.Tensor)]
    if odd:
        raise UserError(f"{path}: not tensors: {', '.join(map(str, odd[:8]))}")
    return {k: to_numpy(v, torch) for k, v in state.items()}


def to_numpy(tensor, torch):
    """A torch tensor as an array; bfloat16, which torch does not hand to numpy, as float32."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


READERS = {
    ".safetensors": read_safetensors,
    ".npz": read_npz,
    ".pth": read_torch,
    ".pt": read_torch,
    ".bin": read_torch,
}


def read_config(path) -> dict | None:
    """The codebase's own config (config.json, open_clip_config.json) that lies beside a weights
    file, or None."""
    folder = find(path).parent
    for name in CONFIGS:
        if (folder / name).is_file():
            try:
                config = json.loads((folder / name).read_text())
            except (OSError, ValueError, RecursionError) as e:
                raise UserError(f"{folder / name}: not JSON: {first_line(e)}") from None
            if not isinstance(config, dict):
                raise UserError(f"{folder / name}: must be an object: mend it or take it away")
            return config
    return None
