"""Augmentations of whole examples: what must change in several modalities at once.

`config.data.augment` has a name -> arguments; the name is one here, or `fn` among the arguments is
one or `package.module:build`. `build(modalities, classes, **arguments)`, of the config's modalities
and the names of the classes of each label, gives a function `augment(example, rng)` from a source's
raw values to others. Training calls it before the modalities' own transforms.
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
      classes: label key -> names of its classes, of the labels whose classes have names.
    Raises: UserError for an unknown name, or arguments that do not fit.
    """

    def __init__(self, spec, modalities, classes=None):
        self._steps, classes = [], classes or {}
        for name, kwargs in spec.items():
            where = f"config.data.augment.{name}"
            if not hasattr(kwargs, "keys"):
                raise UserError(f"{where} is {kwargs!r:.60}: give a dict of its arguments")
            kwargs = dict(kwargs)
            build = lookup(AUGMENTS, kwargs.pop("fn", name), where, takes=("modalities", "classes"))
            try:
                self._steps.append(build(modalities, classes, **kwargs))
            except (TypeError, ValueError) as e:
                raise UserError(f"{where}: {e}") from None

    def __call__(self, example, rng):
        for step in self._steps:
            example = step(example, rng)
        return example


@register("swap_colours")
class SwapColours:
    """Exchanges flat colours of a drawing at random, and their names in its texts and classes.

    What is said of a picture stays as true as it was; a model can no longer learn a sentence by
    heart, and learns of each colour what is said of any.

    Args:
      colours: name -> (red, green, blue), as exactly that colour stands in the pictures.
      image, text: the two modalities; an example that lacks one keeps its colours.
      labels: keys of the labels whose classes change; None: all that have a colour in their names.
    Raises: ValueError for other arguments.
    """

    def __init__(self, modalities, classes, colours, image="image", text="text", labels=None):
        for m in (image, text):
            if m not in modalities:
                raise ValueError(f"no modality {m!r}; there are {', '.join(modalities)}")
        _check_colours(colours)
        self._image, self._text = image, text
        self._names = sorted(colours)
        self._rgb = np.array([colours[name] for name in self._names], np.uint8)
        longest = sorted(self._names, key=len, reverse=True)
        words = "|".join(map(re.escape, longest))
        self._words = re.compile(rf"\b({words})(s?)\b", re.IGNORECASE)  # 'two blues' as well
        tower = modalities[image]  # pictures are read as its transform reads them
        self._background = tuple(tower.get("background", (255, 255, 255)))
        self._max_pixels = tower.get("max_pixels", MAX_PIXELS)
        for key in labels or ():
            if key not in classes:
                raise ValueError(f"labels: no {key!r} has named classes; there are {list(classes)}")
        named = {k: v for k, v in classes.items() if any(map(self._words.search, v))}
        self._classes = {k: v for k, v in named.items() if labels is None or k in labels}
        self._tables = {}
        for i in range(1, len(self._names)):  # exchanges of neighbours make up all others
            order = list(range(len(self._names)))
            order[i - 1 : i + 1] = i, i - 1
            self._relabelled(order)

    def __call__(self, example, rng):
        if self._image not in example or self._text not in example:
            return example
        order = rng.permutation(len(self._names))
        captions = example[self._text]
        several = isinstance(captions, list | tuple)
        new = self._renamed(order)
        texts = [self._rename(c, new) for c in captions] if several else self._rename(captions, new)
        image = self._paint(example[self._image], order)
        tables = self._relabelled(order)
        labels = {k: _relabel(example[k], table) for k, table in tables.items() if k in example}
        return {**example, **labels, self._image: image, self._text: texts}

    def _renamed(self, order):
        return {name: self._names[i] for name, i in zip(self._names, order, strict=True)}

    def _relabelled(self, order):
        """{label's key: the class that each class becomes}, of the labels that colours name."""
        order = tuple(map(int, order))
        tables = self._tables.get(order)
        if tables is None:
            new = self._renamed(order)
            tables = {k: self._exchange(k, names, new) for k, names in self._classes.items()}
            if len(self._tables) < 1000:
                self._tables[order] = tables
        return tables

    def _exchange(self, key, names, new):
        places = {name.casefold(): i for i, name in enumerate(names)}
        if len(places) < len(names):
            raise ValueError(f"{key} has classes that differ in capitals alone")
        renamed = [self._rename(name, new) for name in names]
        for name, other in zip(names, renamed):
            if other.casefold() not in places:
                raise ValueError(
                    f"{key} has a class {name!r} and none {other!r} to exchange it for; where that "
                    "is no colour of the picture, name the other labels in `labels`"
                )
        return np.array([places[name.casefold()] for name in renamed])

    def _paint(self, image, order):
        pixels = decode_image(image, self._background, self._max_pixels)
        painted, codes = pixels.copy(), _code(pixels)
        for old, new in zip(self._rgb, self._rgb[order], strict=True):
            painted[codes == _code(old)] = new
        return painted

    def _rename(self, caption, new):
        if not isinstance(caption, str):
            raise BadRecord(f"caption must be a text, not {caption!r:.40}")
        return self._words.sub(lambda m: new.get(m[1].lower(), m[1]) + m[2], caption)


def _relabel(label, table):
    """A label (a class or [C] of 0 and 1) whose class i is now table[i]. What is none, as -1 for
    unknown, stays: the pipeline judges it.
    """
    if isinstance(label, int | np.integer) and not isinstance(label, bool):
        return int(table[label]) if 0 <= label < len(table) else label
    if not isinstance(label, np.ndarray) or label.shape != table.shape:
        return label
    new = np.zeros_like(label)
    new[table] = label
    return new


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
