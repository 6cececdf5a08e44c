"""Transforms from an example's raw value to the array of a batch, one kind a modality.

A transform is built by `build(cfg, train, tokenizer)` with the modality's part of the config and
is called as `transform(value, rng)`; `rng` is a NumPy Generator in training and None in evaluation.
Two optional methods let a pipeline cache the costly part: `transform(value, rng)` must equal
`transform.finish(transform.decode(value), rng)`; `empty()` gives the array of a missing modality.
"""

import numpy as np
from PIL import Image

from multimodal.data.image_codec import MAX_PIXELS, decode_image
from multimodal.errors import BadRecord, UserError
from multimodal.registry import lookup, nearest

TRANSFORMS = {}
AUGMENTS = ("none", "pad_crop", "random_resized_crop")
RESIZES = ("squash", "crop")


def register(name):
    """Decorator that makes a transform's builder known as `name`."""

    def add(build):
        TRANSFORMS[name] = build
        return build

    return add


def build_transform(name, cfg, train, tokenizer=None):
    """The transform of a registered name or `package.module:build`."""
    return lookup(TRANSFORMS, name, "config.modalities.<m>.transform")(cfg, train, tokenizer)


def build_transforms(modalities, train, tokenizer=None):
    """All transforms of `config.modalities`: dict modality -> transform."""
    return {
        m: build_transform(cfg["transform"], cfg, train, tokenizer) for m, cfg in modalities.items()
    }


def _choice(cfg, key, default, allowed):
    value = cfg.get(key, default)
    if value not in allowed:
        raise UserError(
            f"image transform: {key}={value!r}{nearest(value, allowed)}; "
            f"must be one of {', '.join(allowed)}"
        )
    return value


@register("image")
class ImageTransform:
    """Image bytes or array -> uint8 [size, size, 3].

    Config: `size`, `augment`, `scale` (area share of random_resized_crop), `flip`, `resize`
    ('squash' ignores the aspect ratio, 'crop' takes the central square), `background` (RGB under
    transparency and around pad_crop, which shifts by up to 1/16 of the size), `max_pixels`.
    """

    def __init__(self, cfg, train, tokenizer=None):
        self.size = int(cfg["size"])
        self.resize = _choice(cfg, "resize", "squash", RESIZES)
        self.augment = _choice(cfg, "augment", "none", AUGMENTS) if train else "none"
        self.flip = bool(cfg.get("flip", False)) and train
        self.scale = tuple(cfg.get("scale", (0.2, 1.0)))
        self.background = tuple(cfg.get("background", (255, 255, 255)))
        self.max_pixels = cfg.get("max_pixels", MAX_PIXELS)
        if self.size < 1 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(
                f"image transform: size={self.size}, scale={self.scale}; size must be "
                "positive and 0 < scale[0] <= scale[1] <= 1"
            )

    def __call__(self, value, rng=None):
        return self.finish(self.decode(value), rng)

    def decode(self, value):
        """The part without randomness: pixels, at the final size where augmentation allows."""
        pixels = decode_image(value, self.background, self.max_pixels)
        return pixels if self.augment == "random_resized_crop" else self._fit(pixels)

    def finish(self, pixels, rng=None):
        """The random part: crop and flip; nothing without an rng."""
        if self.augment == "random_resized_crop":
            box = None if rng is None else _random_box(pixels.shape, self.scale, rng)
            pixels = self._fit(pixels) if box is None else self._resample(pixels, box)
        elif self.augment == "pad_crop" and rng is not None:
            pixels = _shift(pixels, max(1, self.size // 16), self.background, rng)
        if self.flip and rng is not None and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return pixels

    def empty(self):
        """The array that stands for a missing image."""
        return np.zeros((self.size, self.size, 3), np.uint8)

    def _fit(self, pixels):
        height, width = pixels.shape[:2]
        side = min(height, width)
        # Cropping before scaling: scaling 1 x 4000 first would need a giant intermediate image.
        box = (
            (0, 0, width, height)
            if self.resize == "squash"
            else ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
        )
        return self._resample(pixels, box)

    def _resample(self, pixels, box):
        if pixels.shape[:2] == (self.size, self.size) and box == (0, 0, self.size, self.size):
            return pixels
        image = Image.fromarray(pixels)
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box))


def _random_box(shape, scale, rng):
    """A crop of random area and aspect ratio 3/4 to 4/3 (Inception crop); None after ten misses."""
    height, width = shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = (area * ratio) ** 0.5, (area / ratio) ** 0.5
        if 1 <= w <= width and 1 <= h <= height:
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return float(x), float(y), float(x + w), float(y + h)
    return None


def _shift(pixels, most, background, rng):
    """Move an image by up to `most` pixels each way; background fills what is uncovered."""
    height, width = pixels.shape[:2]
    dy, dx = (int(v) for v in rng.integers(-most, most + 1, size=2))
    out = np.empty_like(pixels)
    out[:] = background
    out[max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)] = pixels[
        max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)
    ]
    return out


@register("text")
class TextTransform:
    """A caption, or one of several, -> int32 [max_length]; padding is 0.

    Training takes a random caption a visit, evaluation the first. Config: `max_length`, `lower`
    (lower-cases before the tokenizer, whatever its own rule is).
    """

    def __init__(self, cfg, train, tokenizer=None):
        if tokenizer is None:
            raise UserError("the text transform needs a tokenizer")
        self.max_length = int(cfg["max_length"])
        self.lower = bool(cfg.get("lower", False))
        self.tokenizer = tokenizer

    def __call__(self, value, rng=None):
        captions = self._captions(value)
        return self.encode([captions[self._pick(len(captions), rng)]])[0]

    def decode(self, value):
        """All captions as ids: int32 [N, max_length]."""
        return self.encode(self._captions(value))

    def finish(self, ids, rng=None):
        """One of the captions."""
        return ids[self._pick(len(ids), rng)]

    def empty(self):
        """The array that stands for a missing text."""
        return np.zeros((self.max_length,), np.int32)

    def encode(self, texts):
        """Ids of a list of texts: int32 [N, max_length]."""
        texts = [t.lower() for t in texts] if self.lower else texts
        return self.tokenizer.encode_batch(texts, self.max_length)

    def _captions(self, value):
        captions = [value] if isinstance(value, str) else list(value)
        if not captions:
            raise BadRecord("example has an empty list of captions")
        return captions

    @staticmethod
    def _pick(count, rng):
        return 0 if rng is None else int(rng.integers(count))
