"""Augmentations of whole examples: what must change in several modalities at once.

`config.data.augment` has a name -> arguments; the name is one here, or `fn` among the arguments is
one or `package.module:build`. `build(modalities, **arguments)`, where modalities are those of the
config, gives a function `augment(example, rng)` from a source's raw values to others. Training
calls it before the modalities' own transforms.
"""

import re

import numpy as np

from multimodal.data.image_codec import MAX_PIXELS, decode_image
from multimodal.errors import BadRecord, UserError
from multimodal.registry import lookup

AUGMENTS = {}


def register(name):
    """Decorator that makes a builder known as `name`."""

    def add(build):
        AUGMENTS[name] = build
        return build

    return add


class Augment:
    """All that `config.data.augment` names, one after the other.

    Args:
      spec: name -> arguments.
      modalities: config.modalities.
    Raises: UserError for an unknown name, or arguments that do not fit.
    """

    def __init__(self, spec, modalities):
        self._steps = []
        for name, kwargs in spec.items():
            where = f"config.data.augment.{name}"
            if not hasattr(kwargs, "keys"):
                raise UserError(f"{where} is {kwargs!r:.60}: give a dict of its arguments")
            kwargs = dict(kwargs)
            build = lookup(AUGMENTS, kwargs.pop("fn", name), where, takes=("modalities",))
            try:
                self._steps.append(build(modalities, **kwargs))
            except (TypeError, ValueError) as e:
                raise UserError(f"{where}: {e}") from None

    def __call__(self, example, rng):
        for step in self._steps:
            example = step(example, rng)
        return example


@register("swap_colours")
class SwapColours:
    """Exchanges flat colours of a drawing at random, and their names in its texts with them.

    What is said of a picture stays as true as it was; a model can no longer learn a sentence by
    heart, and learns of each colour what is said of any.

    Args:
      colours: name -> (red, green, blue), as exactly that colour stands in the pictures.
      image, text: the two modalities; an example that lacks one keeps its colours.
    Raises: ValueError for other arguments.
    """

    def __init__(self, modalities, colours, image="image", text="text"):
        for m in (image, text):
            if m not in modalities:
                raise ValueError(f"no modality {m!r}; there are {', '.join(modalities)}")
        _check_colours(colours)
        self._image, self._text = image, text
        self._names = sorted(colours)
        self._rgb = np.array([colours[name] for name in self._names], np.uint8)
        longest = sorted(self._names, key=len, reverse=True)
        words = "|".join(map(re.escape, longest))
        self._words = re.compile(rf"\b({words})\b", re.IGNORECASE)
        tower = modalities[image]  # pictures are read as its transform reads them
        self._background = tuple(tower.get("background", (255, 255, 255)))
        self._max_pixels = tower.get("max_pixels", MAX_PIXELS)

    def __call__(self, example, rng):
        if self._image not in example or self._text not in example:
            return example
        order = rng.permutation(len(self._names))
        captions = example[self._text]
        several = isinstance(captions, list | tuple)
        new = {name: self._names[i] for name, i in zip(self._names, order, strict=True)}
        texts = [self._rename(c, new) for c in captions] if several else self._rename(captions, new)
        image = self._paint(example[self._image], order)
        return {**example, self._image: image, self._text: texts}

    def _paint(self, image, order):
        pixels = decode_image(image, self._background, self._max_pixels)
        painted, codes = pixels.copy(), _code(pixels)
        for old, new in zip(self._rgb, self._rgb[order], strict=True):
            painted[codes == _code(old)] = new
        return painted

    def _rename(self, caption, new):
        if not isinstance(caption, str):
            raise BadRecord(f"caption must be a text, not {caption!r:.40}")
        return self._words.sub(lambda m: new.get(m[0].lower(), m[0]), caption)


def _check_colours(colours):
    if not hasattr(colours, "keys") or any(name != name.lower() for name in colours):
        raise ValueError("colours must be a dict of lower-case names, {'red': (255, 0, 0), ...}")
    values = [tuple(v) for v in colours.values()]
    if len(set(values)) < 2 or len(set(values)) < len(values):
        raise ValueError("give two different colours or more: {'red': (255, 0, 0), ...}")
    if any(len(v) != 3 or not all(0 <= x <= 255 for x in v) for v in values):
        raise ValueError("a colour is three numbers from 0 to 255")


def _code(rgb):
    """One number a colour: comparing these is several times as fast as comparing three."""
    rgb = rgb.astype(np.int32)
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
