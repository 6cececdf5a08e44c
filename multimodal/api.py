"""Trained models from Python: load a workdir, embed, compare, match.

import multimodal
m = multimodal.load("runs/emoji")
m.embed_texts(["red apple"])
"""

import dataclasses
import functools
import io
import os
import pathlib

import numpy as np

from multimodal.errors import UserError
from multimodal.evals.embed import TokenStore, check_match, check_modality, embed, match_pairs
from multimodal.nn.model import Net, build_model


def load(workdir, step="latest", ema=False) -> "Loaded":
    """The model of a run's folder, or of one checkpoint in it (`runs/emoji/checkpoints/500`).

    Args:
      step: a number, 'latest' or 'best'; ema: take the teacher's parameters.
    Raises: UserError for a folder that is not a run's, a missing step, another model's tokenizer.
    """
    workdir = pathlib.Path(workdir).expanduser()
    if workdir.parent.name == "checkpoints" and workdir.name.isdigit():
        workdir, step = workdir.parent.parent, workdir.name
    from multimodal.config import read_config

    config = read_config(workdir)
    tokenizer = _read_tokenizer(workdir, config)
    step, params, teacher = _restore(workdir, step)
    if ema and teacher is None:
        raise UserError(
            f"{workdir}: the run has no teacher (config.ema.decay = 0): load it without ema"
        )
    net = Net(build_model(config), teacher if ema else params)
    return Loaded(config, net, tokenizer, step, params, teacher)


def _restore(workdir, step):
    """(step, parameters, the teacher's or None) of a checkpoint."""
    from multimodal.training.checkpoint import restore_params

    return restore_params(workdir, step)


def _read_tokenizer(workdir, config):
    texts = [m for m, c in config.modalities.items() if c.transform == "text"]
    if not texts:
        return None
    from multimodal.data.tokenizer import Tokenizer

    path = workdir / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{path} is missing: the model reads text, and only the run's own tokenizer fits it"
        )
    tokenizer = Tokenizer.load(path)
    for m in texts:
        tokenizer.check_vocab(config.modalities[m].vocab_size, f"the model's {m} tower")
    return tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A trained model and what it needs to read raw inputs.

    Images may be paths, encoded bytes, PIL images or uint8 arrays [H, W, 3]; they go through the
    transforms of the run's evaluation. A bad one raises UserError that says which.

    Attributes:
      config, net, tokenizer, step: of the checkpoint.
      params, ema: its parameters and the teacher's, or None.
      batch_size: inputs at a time; results do not depend on it.
    """

    config: object
    net: Net
    tokenizer: object
    step: int
    params: dict
    ema: dict | None = None
    batch_size: int = 64

    @functools.cached_property
    def transforms(self):
        """modality -> function of (raw value, None) to an encoder input."""
        from multimodal.data.transforms import build_transforms

        return build_transforms(self.config.modalities, train=False, tokenizer=self.tokenizer)

    def embed(self, modality, values) -> np.ndarray:
        """[N, E] unit-length embeddings of a list of raw values of any modality."""
        return embed(self.net, modality, self._inputs(modality, values), self.batch_size)

    def embed_images(self, images) -> np.ndarray:
        """[N, E] unit-length embeddings of images."""
        return self.embed("image", images)

    def embed_texts(self, texts) -> np.ndarray:
        """[N, E] unit-length embeddings of captions."""
        return self.embed("text", texts)

    def similarity(self, images, texts) -> np.ndarray:
        """[N, M] cosines of every image with every text, in -1..1."""
        return self.embed_images(images) @ self.embed_texts(texts).T

    def match(self, images, texts) -> np.ndarray:
        """[N] probabilities that image i and text i belong together, by the matching head.

        Raises: UserError where the model has none, or the lists differ in length.
        """
        check_match(self.net.model)
        images, texts = as_list(images), as_list(texts)
        if len(images) != len(texts):
            raise UserError(f"match takes pairs: {len(images)} images, {len(texts)} texts")
        pairs = np.arange(len(images))
        stores = {
            m: TokenStore(self.net, m, self._inputs(m, values), self.batch_size)
            for m, values in (("image", images), ("text", texts))
        }
        query = self.net.model.mlm_modality
        context = "image" if query == "text" else "text"
        logits = match_pairs(
            self.net, stores[query], stores[context], pairs, pairs, self.batch_size
        )
        logits = logits.astype(np.float64)
        return (1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))).astype(np.float32)

    def _inputs(self, modality, values):
        check_modality(self.net.model, modality)
        values = as_list(values)
        if not values:
            raise UserError(f"{modality}: the list is empty, there is nothing to embed")
        kind = self.config.modalities[modality].transform
        read = {"image": read_image, "text": read_text}.get(kind, lambda value: value)
        rows = []
        for i, value in enumerate(values):
            try:
                rows.append(self.transforms[modality](read(value), None))
            except UserError as e:
                raise UserError(f"{modality} {i} of {len(values)}: {e}") from None
        return np.stack(rows)


def as_list(values) -> list:
    """Several values as a list; one path, caption, image or file's bytes as a list of one."""
    from PIL import Image

    single = isinstance(values, str | bytes | os.PathLike | Image.Image)
    single = single or (
        isinstance(values, np.ndarray) and values.ndim < 4 and values.dtype == np.uint8
    )
    return [values] if single else list(values)


def read_text(value) -> str:
    """A caption as it is. Raises UserError for anything that is not a string."""
    if not isinstance(value, str):
        raise UserError(f"a text must be a str, not {type(value).__name__}")
    return value


def read_image(value):
    """A path, encoded bytes, PIL image or uint8 array as what the image transform takes.

    Raises: UserError for a missing file or another kind of value.
    """
    from PIL import Image

    if isinstance(value, str | os.PathLike):
        try:
            return pathlib.Path(value).expanduser().read_bytes()
        except (OSError, ValueError) as e:
            raise UserError(
                f"cannot read {str(value)[:200]!r}: {getattr(e, 'strerror', None) or e}"
            ) from None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Image.Image):
        value.load()
        # Losslessly encoded, it takes the very path of a file: transparency, palettes, size limit.
        value = (
            value if value.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else value.convert("RGB")
        )
        return _png(value)
    value = np.asarray(value)
    if value.dtype != np.uint8 or value.ndim not in (2, 3) or not value.size:
        raise UserError(
            f"an image array must be uint8 [H, W, 3], not {value.dtype} {list(value.shape)}"
        )
    if value.ndim == 3 and value.shape[2] not in (3, 4):
        raise UserError(
            f"an image array must be uint8 [H, W, 3], not {list(value.shape)}: channels come last"
        )
    return value if value.ndim == 3 and value.shape[2] == 3 else _png(Image.fromarray(value))


def _png(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
