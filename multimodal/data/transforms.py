"""Transforms from an example's raw value to the array of a batch, one kind a modality.

A transform is built by `build(cfg, train, tokenizer)` with the modality's part of the config and
is called as `transform(value, rng)`; `rng` is a NumPy Generator in training and None in evaluation.
Two optional methods let a pipeline cache the costly part: `transform(value, rng)` must equal
`transform.finish(transform.decode(value), rng)`; `empty()` gives the array of a missing modality.
Where the config's `noise` is above 0, `Noisy` degrades what the transform gives.
"""

import zlib

import numpy as np

from multimodal.config import pair
from multimodal.data import corrupt, fast_image, image_ops
from multimodal.data.image_codec import MAX_PIXELS, decode_image
from multimodal.errors import BadRecord, UserError
from multimodal.registry import lookup, nearest

# Those with modules of their own are imported on use.
TRANSFORMS = {
    "audio": "multimodal.data.audio_transform:AudioTransform",
    "video": "multimodal.data.video_transform:VideoTransform",
}
AUGMENTS = ("none", "pad_crop", "random_resized_crop")
PLACES = ("host", "device")  # of augmentation


def register(name):
    """Decorator that makes a transform's builder known as `name`."""

    def add(build):
        TRANSFORMS[name] = build
        return build

    return add


def build_transform(name, cfg, train, tokenizer=None):
    """The transform of a registered name or `package.module:build`."""
    where = "config.modalities.<m>.transform"
    build = lookup(TRANSFORMS, name, where, takes=("cfg", "train"))
    build = lookup({}, build, where) if isinstance(build, str) else build
    transform = build(cfg, train, tokenizer)
    level = cfg.get("noise", 0.0)
    return Noisy(transform, name, level, train) if level else transform


def build_transforms(modalities, train, tokenizer=None):
    """All transforms of `config.modalities`: dict modality -> transform."""
    return {
        m: build_transform(cfg["transform"], cfg, train, tokenizer) for m, cfg in modalities.items()
    }


def choice(kind, cfg, key, default, allowed):
    """A config key that must be one of a few words."""
    value = cfg.get(key, default)
    if value not in allowed:
        raise UserError(
            f"{kind} transform: {key}={value!r}{nearest(value, allowed)}; "
            f"must be one of {', '.join(allowed)}"
        )
    return value


def refuse_text(kind, wanted, value):
    """Raise UserError for a text, or several, where a picture, sound or film is wanted.

    No BadRecord, which would be replaced and counted: what one example has of it, all have.
    """
    first = value[0] if isinstance(value, list | tuple) and value else value
    if isinstance(first, str):
        raise UserError(
            f"{kind} transform: the value is a text, {first!r:.60}, not {wanted}; in the source "
            "`records` a template alone makes a text: for a file write dict(file='{name}'), with "
            "the field that names it in braces"
        )


class Noisy:
    """A transform whose results are degraded by data/corrupt.py at one level.

    Training draws the noise from the rng. In evaluation it is a function of the content, so that
    every run, order and number of processes sees the same noise.
    """

    def __init__(self, transform, kind, level, train):
        corrupt.check(kind, level)
        self.clean, self.kind, self.level, self.train = transform, kind, level, train

    def __call__(self, value, rng=None):
        return self._degrade(self.clean(value, rng), rng)

    def finish(self, decoded, rng=None):
        """The random part, and the noise."""
        return self._degrade(getattr(self.clean, "finish", self.clean)(decoded, rng), rng)

    def __getattr__(self, name):
        if name == "clean":  # Not set yet: an object that is being unpickled.
            raise AttributeError(name)
        return getattr(self.clean, name)

    def _degrade(self, x, rng):
        if rng is None or not self.train:
            rng = np.random.default_rng(zlib.crc32(np.ascontiguousarray(x).tobytes()))
        context = getattr(self.clean, "noise_context", dict)()
        return corrupt.corrupt(self.kind, x, self.level, rng, **context)


@register("image")
class ImageTransform:
    """Image bytes or array -> uint8 [height, width, 3].

    Config: `size` (a number, or (height, width)), `augment`, `scale` (area share of
    random_resized_crop), `flip`, `resize` ('squash' ignores the aspect ratio, 'crop' takes the
    largest central part that has it), `background` (RGB under transparency and around pad_crop,
    which shifts by up to 1/16 of the shorter side), `max_pixels`,
    `decode` (of fast_image.DECODERS; evaluation always takes Pillow, so that its numbers do not
    depend on what is installed), `augment_on` ('device': training gets pixels of host_size
    and nothing random, and nn/augment.py crops from that), `host_size` (0: 1.5 times the size).
    """

    def __init__(self, cfg, train, tokenizer=None):
        self.size = pair(cfg["size"])
        self.resize = choice("image", cfg, "resize", "squash", image_ops.RESIZES)
        self.augment = choice("image", cfg, "augment", "none", AUGMENTS)
        self.augment = self.augment if train else "none"
        self.flip = bool(cfg.get("flip", False)) and train
        self.scale = tuple(cfg.get("scale", (0.2, 1.0)))
        self.background = tuple(cfg.get("background", (255, 255, 255)))
        self.max_pixels = cfg.get("max_pixels", MAX_PIXELS)
        decode = choice("image", cfg, "decode", "pillow", fast_image.DECODERS)
        if choice("image", cfg, "augment_on", "host", PLACES) == "device" and train:
            self._leave_to_device(cfg.get("host_size", 0))
        self.fast = train and fast_image.choose(decode) == "fast"
        self.resample = fast_image.resample if self.fast else image_ops.resample
        if min(self.size) < 1 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(
                f"image transform: size={cfg['size']}, scale={self.scale}; size must be "
                "positive and 0 < scale[0] <= scale[1] <= 1"
            )

    def __call__(self, value, rng=None):
        return self.finish(self.decode(value), rng)

    def decode(self, value):
        """The part without randomness: pixels, at the final size where augmentation allows."""
        refuse_text("image", "a picture", value)
        fast = self._fast_jpeg if self.fast else None
        pixels = decode_image(value, self.background, self.max_pixels, fast)
        return pixels if self.augment == "random_resized_crop" else self._fit(pixels)

    def finish(self, pixels, rng=None):
        """The random part: crop and flip; nothing without an rng."""
        if self.augment == "random_resized_crop":
            crop = rng and image_ops.random_box(pixels.shape, self.size, self.scale, rng)
            pixels = self.resample(pixels, self.size, crop) if crop else self._fit(pixels)
        elif self.augment == "pad_crop" and rng is not None:
            pixels = image_ops.shift(pixels, max(1, min(self.size) // 16), self.background, rng)
        if self.flip and rng is not None and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return pixels

    def empty(self):
        """The array that stands for a missing image."""
        return np.zeros((*self.size, 3), np.uint8)

    def _fit(self, pixels):
        return image_ops.fit(pixels, self.size, self.resize, self.resample)

    def _leave_to_device(self, host_size):
        if self.augment == "pad_crop":
            raise UserError(
                "image transform: augment_on='device' knows augment='random_resized_crop' and "
                "flip, not 'pad_crop'"
            )
        self.size = pair(host_size) if host_size else tuple(n * 3 // 2 for n in self.size)
        self.augment, self.flip = "none", False

    def _fast_jpeg(self, data, size):
        return fast_image.decode_jpeg(data, size, self._reach)

    def _reach(self, height, width):
        """How many times smaller than [height, width] the pixels may be for the smallest crop."""
        down, across = self.size
        if self.augment == "random_resized_crop":
            area, ratio = height * width * self.scale[0], across / down
            height = min(height, (area * image_ops.ASPECT[0] / ratio) ** 0.5)
            width = min(width, (area * image_ops.ASPECT[0] * ratio) ** 0.5)
        elif self.resize == "crop":
            height, width = min(height, width * down / across), min(width, height * across / down)
        return min(height / down, width / across)


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

    def noise_context(self):
        """What corrupt('text', ...) needs to know."""
        special = corrupt.special_ids(self.tokenizer)
        return {"vocab_size": self.tokenizer.vocab_size, "special_ids": special}

    def _captions(self, value):
        captions = value if isinstance(value, list | tuple) else [value]
        if not captions:
            raise BadRecord("example has an empty list of captions")
        for caption in captions:
            if not isinstance(caption, str):
                raise BadRecord(f"caption must be a text, not {caption!r:.40}")
        return captions

    @staticmethod
    def _pick(count, rng):
        return 0 if rng is None else int(rng.integers(count))
