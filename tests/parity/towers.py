"""Single encoders: one .npz each with weights `w.*`, inputs `i.*`, outputs `o.*`."""

import numpy as np

from tests.parity.common import divisors, load, make_batch, precision
from tests.parity.report import TOLERANCE, relative

# file -> modality, activation (HF's default for that class)
TOWERS = {
    "bert": ("text", "gelu"),
    "bert_mlm": ("text", "gelu"),
    "vit": ("image", "gelu"),
    "clip_vision": ("image", "quick_gelu"),
    "siglip_vision": ("image", "gelu_tanh"),
}


def part(z, prefix):
    """The arrays under a prefix."""
    return {k.removeprefix(prefix): v for k, v in z.items() if k.startswith(prefix)}


def outputs(loaded, m, inputs):
    """Our arrays under their names."""
    batch = make_batch(
        inputs.get("pixel_values"), inputs.get("input_ids"), inputs.get("attention_mask")
    )
    tokens, pooled = loaded.encode(m, batch[m], batch.get("text_mask"))
    out = {"last_hidden_state": tokens, "pooler_output": pooled}
    if "mlm" in loaded.config["model"]["heads"]:
        out["logits"] = loaded.net.mlm(loaded.net.encode(batch)["text"].tokens)
    return out


def check_tower(name, z, report):
    """Rows for one encoder."""
    m, act = TOWERS[name]
    weights, wanted = part(z, "w."), part(z, "o.")
    dtype = next(iter(wanted.values())).dtype
    with precision(dtype):
        first = load(weights, dtype, act=act, heads=1)
        best = None
        for heads in divisors(first.config["modalities"][m]["width"]):
            got = outputs(load(weights, dtype, act=act, heads=heads), m, part(z, "i."))
            errors = {k: relative(got[k], v) for k, v in wanted.items()}
            if best is None or max(errors.values()) < max(best[1].values()):
                best = heads, errors
            if max(errors.values()) <= TOLERANCE[np.dtype(dtype).name]:
                break
    heads, errors = best
    for k, error in errors.items():
        report.add(
            f"{name} {k}", error, dtype, f"{act}, heads {heads} (found among divisors of the width)"
        )


def check_towers(folder, report):
    """Every encoder of a folder that we have."""
    for name in TOWERS:
        path = folder / f"{name}.npz"
        if path.is_file():
            check_tower(name, report.load(path), report)
