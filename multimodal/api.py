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

from multimodal import paths
from multimodal.data.class_names import read_class_names
from multimodal.errors import UserError, first_line
from multimodal.evals.classification import classifiers_of, logits_of
from multimodal.evals.embed import (
    TokenStore,
    check_match,
    check_modality,
    embed,
    map_rows,
    match_pairs,
)
from multimodal.evals.records import joint_embed
from multimodal.nn.model import JOINT, Net, build_model


def load(workdir, step="latest", ema=False) -> "Loaded":
    """The model of a run's folder, or of one checkpoint in it (`runs/emoji/checkpoints/500`, or a
    URL: `gs://bucket/emoji/checkpoints/500`).

    Args:
      step: a number, 'latest' or 'best'; ema: take the teacher's parameters.
    Raises: UserError for a folder that is not a run's, a missing step, another model's tokenizer.
    """
    if paths.is_remote(workdir):
        from multimodal.training.transfer import local_copy

        if step == "best":
            raise UserError(f"{workdir}: name the checkpoint, {workdir}/checkpoints/STEP")
        url = workdir if step == "latest" else f"{workdir}/checkpoints/{step}"
        with local_copy(url) as copy:
            return load(copy, ema=ema)
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
    config.model.attention_kernel = "auto"  # that of the training's devices may not run here
    net = Net(build_model(config), teacher if ema else params)
    names = read_class_names(workdir, config)
    return Loaded(config, net, tokenizer, step, params, teacher, class_names=names)


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

    Images may be paths, encoded bytes, PIL images or uint8 arrays [H, W, 3]; sounds paths, encoded
    bytes, arrays [T] at the model's sample rate or pairs (array, rate); videos paths, encoded bytes
    or uint8 arrays [T, H, W, 3]. They go through the transforms of the run's evaluation. A bad one
    raises UserError that says which.

    Attributes:
      config, net, tokenizer, step: of the checkpoint.
      params, ema: its parameters and the teacher's, or None.
      batch_size: inputs at a time; results do not depend on it.
      class_names: classifier -> names of its classes, of those that the run knows them of.
    """

    config: object
    net: Net
    tokenizer: object
    step: int
    params: dict
    ema: dict | None = None
    batch_size: int = 64
    class_names: dict = dataclasses.field(default_factory=dict)

    def __repr__(self):
        import jax

        count = sum(np.size(x) for x in jax.tree.leaves(self.params))
        parts = [" + ".join(self.config.modalities), f"step {self.step}", f"{count:,} parameters"]
        classifiers = self.config.model.get("classifiers", {}).items()
        if classifiers:
            told = ", ".join(f"{name} ({c.classes} classes)" for name, c in classifiers)
            parts.append(f"classifiers {told}")
        return f"Loaded({', '.join(parts)})"

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

    def embed_audio(self, sounds) -> np.ndarray:
        """[N, E] unit-length embeddings of sounds."""
        return self.embed("audio", sounds)

    def embed_video(self, videos) -> np.ndarray:
        """[N, E] unit-length embeddings of videos."""
        return self.embed("video", videos)

    def embed_joint(self, **modalities) -> np.ndarray:
        """[N, E] unit-length joint embeddings of examples with any of the model's modalities.

        Args: as for `classify`. Raises: UserError for a model without a joint embedding.
        """
        return map_rows(joint_embed, self.net, *self._records(modalities), self.batch_size)

    def classify(self, **modalities) -> dict:
        """Probabilities of the classes by each classifier that has what it needs.

            m.classify(image=["7.png"], audio=["seven.wav"])["digit"]
            m.class_names["digit"]  # of its columns

        Args:
          modalities: a list of raw values each, all of the same length; None in a list is an
            example without that modality. Modalities that are not given are missing in all.
        Returns: {classifier: [N, C]}, rows summing to 1; of several labels at once, each label's
          own probability. A classifier of one modality is left out where that is not given, and is
          NaN for an example without it.
        Raises: UserError for a model without classifiers, or none that can do with what is given.
        """
        classifiers = classifiers_of(self.net)
        take, count = self._records(modalities)
        known = {n: c for n, c in classifiers.items() if c["of"] in (JOINT, *modalities)}
        if not known:
            wanted = ", ".join(dict.fromkeys(c["of"] for c in classifiers.values()))
            raise UserError(f"classify: the model's classifiers need {wanted}")
        logits = map_rows(logits_of, self.net, take, count, self.batch_size)
        present = take(np.arange(count))
        found = {}
        for name, c in known.items():
            x = logits[name].astype(np.float64)
            p = 1 / (1 + np.exp(-x)) if c.get("multi") else softmax(x)
            if c["of"] != JOINT:
                p = np.where(present[f"{c['of']}_present"][:, None], p, np.nan)
            found[name] = p.astype(np.float32)
        return found

    def similarity(self, first, second, modalities=("image", "text")) -> np.ndarray:
        """[N, M] cosines of every one of the first list with every one of the second, in -1..1.

        Args:
          modalities: what the two lists are of.
        """
        return self.embed(modalities[0], first) @ self.embed(modalities[1], second).T

    def match(self, first, second, modalities=("image", "text")) -> np.ndarray:
        """[N] probabilities that example i of both lists belong together, by the matching head.

        Args:
          modalities: what the two lists are of.
        Raises: UserError where the model has no such head, or the lists differ in length.
        """
        check_match(self.net.model)
        query = self.net.model.mlm_modality
        if query not in modalities or modalities[0] == modalities[1]:
            raise UserError(f"match compares {query} with another modality, not {modalities}")
        lists = {m: self._list(m, v) for m, v in zip(modalities, (first, second), strict=True)}
        counts = [f"{len(v)} {m}s" for m, v in lists.items()]
        if len(set(map(len, lists.values()))) > 1:
            raise UserError(f"match takes pairs: {', '.join(counts)}")
        pairs = np.arange(len(lists[query]))
        stores = {
            m: TokenStore(self.net, m, self._inputs(m, values), self.batch_size)
            for m, values in lists.items()
        }
        context = next(m for m in modalities if m != query)
        logits = match_pairs(
            self.net, stores[query], stores[context], pairs, pairs, self.batch_size
        )
        return softmax(logits.astype(np.float64))[:, 1].astype(np.float32)

    def _kind(self, modality):
        check_modality(self.net.model, modality)
        return self.config.modalities[modality].transform

    def _list(self, modality, values):
        return as_list(values, self._kind(modality))

    def _inputs(self, modality, values):
        """[N, ...] inputs of the modality's encoder."""
        values = self._list(modality, values)
        if not values:
            raise UserError(f"{modality}: the list is empty, there is nothing to embed")
        return np.stack([self._input(modality, v, i, len(values)) for i, v in enumerate(values)])

    def _input(self, modality, value, i, count):
        try:
            return self.transforms[modality](read(value, self._kind(modality)), None)
        except UserError as e:
            raise UserError(f"{modality} {i} of {count}: {e}") from None

    def _records(self, modalities):
        """(function of an index to a batch of all the model's modalities, number of examples)."""
        lists = {m: self._list(m, values) for m, values in modalities.items()}
        counts = {m: len(values) for m, values in lists.items()}  # None stands for a missing one
        if not lists or 0 in counts.values() or len(set(counts.values())) > 1:
            told = ", ".join(f"{n} of {m}" for m, n in counts.items()) or "none"
            raise UserError(f"give lists of equal length of one modality or more: there are {told}")
        count = next(iter(counts.values()))
        everything = {}
        for m in self.net.model.modalities:
            values = lists.get(m, [None] * count)
            there = np.array([v is not None for v in values])
            rows = [
                self.transforms[m].empty() if v is None else self._input(m, v, i, count)
                for i, v in enumerate(values)
            ]
            everything |= {m: np.stack(rows), f"{m}_present": there}
        return lambda index: {k: v[index] for k, v in everything.items()}, count


def softmax(logits) -> np.ndarray:
    """Probabilities [N, C] of logits [N, C]."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


# Dimensions of one example given as an array: a larger array is several.
DIMENSIONS = {"image": 3, "audio": 1, "video": 4}


def as_list(values, kind="image") -> list:
    """Several values as a list; one path, caption, image, sound or file's bytes as a list of one.

    Args:
      kind: name of the modality's transform, which says what one array is.
    """
    from PIL import Image

    single = isinstance(values, str | bytes | os.PathLike | Image.Image)
    single = single or (kind == "audio" and is_rated(values))
    if isinstance(values, np.ndarray) and kind in DIMENSIONS:
        single = single or values.ndim <= DIMENSIONS[kind]
    try:
        return [values] if single else list(values)
    except TypeError:
        raise UserError(f"{kind}: give a list, not {type(values).__name__}") from None


def is_rated(value) -> bool:
    """Whether a value is a pair (samples, sample rate)."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int | np.integer)


def read(value, kind):
    """A raw value as what the transform of that kind takes. Raises UserError for what it is not."""
    if kind == "image":
        return read_image(value)
    if kind == "text":
        return read_text(value)
    if kind in ("audio", "video"):
        return read_clip(value, kind)
    return value


def read_text(value) -> str:
    """A caption as it is. Raises UserError for anything that is not a string."""
    if not isinstance(value, str):
        raise UserError(f"a text must be a str, not {type(value).__name__}")
    return value


def read_file(path) -> bytes:
    """A file's bytes. Raises UserError where it cannot be read."""
    try:
        return pathlib.Path(path).expanduser().read_bytes()
    except (OSError, ValueError) as e:
        raise UserError(
            f"cannot read {str(path)[:200]!r}: {getattr(e, 'strerror', None) or e}"
        ) from None


def read_clip(value, kind):
    """A path, encoded bytes or array (sounds: or a pair of array and rate) of a sound or video.

    Raises: UserError for a missing file or another kind of value.
    """
    if isinstance(value, str | os.PathLike):
        return read_file(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if kind == "audio" and is_rated(value):
        return np.asarray(value[0]), int(value[1])
    if hasattr(value, "__array__"):
        return np.asarray(value)
    raise UserError(f"{kind} must be a path, bytes or an array, not {type(value).__name__}")


def read_image(value):
    """A path, encoded bytes, PIL image or uint8 array as what the image transform takes.

    Raises: UserError for a missing file or another kind of value.
    """
    from PIL import Image

    if isinstance(value, str | os.PathLike):
        return read_file(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Image.Image):
        try:
            value.load()
        except Exception as e:  # of a file that is read only now, and damaged
            raise UserError(f"image cannot be decoded ({first_line(e)})") from None
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
