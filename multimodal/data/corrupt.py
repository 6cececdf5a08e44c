"""A ladder of noise: inputs of an encoder with a share of their content destroyed.

Level 0 is the input itself, level 1 leaves nothing of its content, and the mean distance from the
clean input grows in between. With the same rng the same noise is drawn at every level.
"""

import numpy as np

from multimodal.errors import UserError
from multimodal.registry import nearest

CORRUPTIONS = {}
_SILENCE = 1e-4  # loudness of the noise that replaces digital silence


def register(kind):
    """Decorator that makes `fn(x, level, rng, **context)` the corruption of a transform's kind."""

    def add(fn):
        CORRUPTIONS[kind] = fn
        return fn

    return add


def check(kind, level):
    """Raise UserError unless there is a corruption of that kind and the level is 0 to 1."""
    if kind not in CORRUPTIONS:
        raise UserError(
            f"no corruption for {kind!r}{nearest(kind, CORRUPTIONS)}; known: "
            f"{', '.join(sorted(CORRUPTIONS))} (register another one in data/corrupt.py)"
        )
    if not 0 <= level <= 1:
        raise UserError(f"noise level {level!r} must be 0 (clean) to 1 (nothing but noise)")


def corrupt(kind, x, level, rng, **context):
    """One encoder input `x` at a level of noise; same shape and type, `x` itself at level 0.

    Args:
      kind: name of the transform that made x: 'image', 'video', 'audio' or 'text'.
      level: 0 to 1.
      rng: NumPy Generator.
      context: what the kind needs to know: for text `vocab_size` and `special_ids`.
    Raises: UserError for an unknown kind, a level out of bounds and pixels that are not uint8.
    """
    check(kind, level)
    return x if level == 0 else CORRUPTIONS[kind](x, float(level), rng, **context)


@register("image")
@register("video")
def mix_pixels(x, level, rng):
    """(1 - level) * x + level * noise, the noise uniform over 0..255."""
    if x.dtype != np.uint8:
        raise UserError(f"noise on pixels needs uint8, not {x.dtype}: their range is unknown")
    noise = rng.integers(0, 256, x.shape, np.uint8).astype(np.float32)
    return np.rint((1 - level) * x + level * noise).astype(np.uint8)


@register("audio")
def mix_wave(x, level, rng):
    """White noise of x's own loudness mixed in at constant power.

    sqrt(1 - level) * x + sqrt(level) * noise: the signal-to-noise ratio is (1 - level) / level.
    """
    loudness = max(float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))), _SILENCE)
    noise = loudness * rng.standard_normal(x.shape)
    return (np.sqrt(1 - level) * x + np.sqrt(level) * noise).astype(x.dtype)


@register("text")
def replace_tokens(x, level, rng, vocab_size, special_ids=None):
    """Each word of token ids [L] becomes, with probability `level`, a random one.

    Padding, a first [CLS] and a last [SEP] stay.

    Args:
      vocab_size: ids are below it.
      special_ids: dict role -> id (pad, cls, sep, ...) as `special_ids(tokenizer)` gives; none of
        them is drawn. Default: padding is 0, and there are no others.
    """
    special = {"pad": 0} if special_ids is None else dict(special_ids)
    allowed = np.setdiff1d(np.arange(vocab_size), list(special.values()))
    if not allowed.size:
        raise UserError(f"text noise: no words among the {vocab_size} ids of the vocabulary")
    hit = rng.random(x.shape) < level
    words = rng.choice(allowed, x.shape)
    return np.where(hit & _is_word(x, special), words, x).astype(x.dtype)


def special_ids(tokenizer):
    """Ids of a Tokenizer's special tokens: dict role -> id."""
    return {role: getattr(tokenizer, role) for role in ("pad", "unk", "cls", "sep", "mask")}


def _is_word(ids, special):
    real = ids != special.get("pad", 0)
    places = np.flatnonzero(real)
    if places.size:
        first, last = places[0], places[-1]
        real[first] = ids[first] != special.get("cls", -1)
        if last != first:
            real[last] = ids[last] != special.get("sep", -1)
    return real
