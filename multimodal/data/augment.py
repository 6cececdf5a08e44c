"""Augmentations of whole examples: what must change in several modalities at once.

`config.data.augment` has a name -> arguments; the name is one here, or `fn` among the arguments is
one or `package.module:function`. Each is called as
`augment(example, rng, **its arguments)` on a source's raw values in training, before the
modalities' own transforms, and gives a new example; `check(modalities, **its arguments)`, where
there is one, raises UserError for arguments that do not fit.
"""

import re

import numpy as np

from multimodal.data.image_codec import decode_image
from multimodal.errors import BadRecord, UserError
from multimodal.registry import lookup

AUGMENTS = {}


def register(name, check=None):
    """Decorator that makes a function known as `name`."""

    def add(function):
        function.check = check
        AUGMENTS[name] = function
        return function

    return add


class Augment:
    """All that `config.data.augment` names, one after the other.

    Args:
      spec: name -> arguments.
      modalities: names of the model's modalities.
    Raises: UserError for an unknown name, or arguments that do not fit.
    """

    def __init__(self, spec, modalities):
        self._steps = []
        for name, kwargs in spec.items():
            where = f"config.data.augment.{name}"
            if not hasattr(kwargs, "keys"):
                raise UserError(f"{where} is {kwargs!r:.60}: give a dict of its arguments")
            kwargs = dict(kwargs)
            fn = kwargs.pop("fn", name)
            function = lookup(AUGMENTS, fn, where, takes=("example", "rng"))
            if check := getattr(function, "check", None):
                try:
                    check(modalities, **kwargs)
                except (TypeError, ValueError) as e:
                    raise UserError(f"{where}: {e}") from None
            self._steps.append((function, kwargs))

    def __call__(self, example, rng):
        for function, kwargs in self._steps:
            example = function(example, rng, **kwargs)
        return example


def _check_colours(modalities, colours, image="image", text="text"):
    for m in (image, text):
        if m not in modalities:
            raise ValueError(f"no modality {m!r}; there are {', '.join(modalities)}")
    if not hasattr(colours, "keys") or any(name != name.lower() for name in colours):
        raise ValueError("colours must be a dict of lower-case names, {'red': (255, 0, 0), ...}")
    values = [tuple(v) for v in colours.values()]
    if len(set(values)) < 2 or len(set(values)) < len(values):
        raise ValueError("give two different colours or more: {'red': (255, 0, 0), ...}")
    if any(len(v) != 3 or not all(0 <= x <= 255 for x in v) for v in values):
        raise ValueError("a colour is three numbers from 0 to 255")


def _code(rgb):
    """One number a colour: comparing these is several times as fast as comparing three."""
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]


@register("swap_colours", _check_colours)
def swap_colours(example, rng, colours, image="image", text="text"):
    """Exchange flat colours of a drawing at random, and their names in its texts with them.

    What is said of a picture stays as true as it was; a model can no longer learn a sentence by
    heart, and learns of each colour what is said of any.

    Args:
      colours: name -> (red, green, blue), as exactly that colour stands in the pictures.
      image, text: the two modalities; an example that lacks one keeps its colours.
    """
    if image not in example or text not in example:
        return example
    names, order = sorted(colours), rng.permutation(len(colours))
    new = {name: names[i] for name, i in zip(names, order, strict=True)}
    pixels = decode_image(example[image])
    painted, codes = pixels.copy(), _code(pixels.astype(np.int32))
    for name in names:
        if new[name] != name:
            painted[codes == _code(np.int32(colours[name]))] = colours[new[name]]
    longest = sorted(names, key=len, reverse=True)
    words = re.compile(rf"\b({'|'.join(map(re.escape, longest))})\b", re.IGNORECASE)

    def rename(caption):
        if not isinstance(caption, str):
            raise BadRecord(f"caption must be a text, not {caption!r:.40}")
        return words.sub(lambda m: new.get(m[0].lower(), m[0]), caption)

    captions = example[text]
    several = isinstance(captions, list | tuple)
    captions = [rename(c) for c in captions] if several else rename(captions)
    return {**example, image: painted, text: captions}
