"""A tiny set of all modalities that needs no files: eight classes that every modality shows."""

import io
import wave
import zlib

import numpy as np
from PIL import Image

from multimodal.errors import UserError
from multimodal.registry import nearest

MODALITIES = ("image", "audio", "video", "text")
COLOURS = {"red": (210, 40, 40), "green": (40, 170, 60), "blue": (40, 70, 210), "grey": (120,) * 3}
CLASSES = [(colour, shape) for shape in ("disc", "cross") for colour in COLOURS]
TONES = ("low", "deep", "middle", "clear", "bright", "high", "sharp", "shrill")
WAYS = ("right", "left", "down", "up")  # the way a bar moves, slowly or fast


class ToySource:
    """Class k of 8 as a coloured shape, a tone, a moving bar and a phrase; `label` and id are k.

    Args:
      modalities: which of image, audio, video, text.
      examples: of a split. Example i has class i % 8; what is random about it (place, size, pitch,
        noise) depends on (seed, split, i), so that no two splits share an example.
      size: pixels a side. frames: of a video. sample_rate: Hz. seconds: of a sound.
      encoded: images as PNG and sounds as WAV; otherwise arrays (sounds with their rate).
      optional: modalities that a share `missing` of the examples lack, one each at most.
    """

    label_names = [f"{colour} {shape}" for colour, shape in CLASSES]
    targets = {"label": label_names}

    def __init__(
        self,
        split,
        modalities=MODALITIES,
        examples=64,
        seed=0,
        size=32,
        frames=8,
        sample_rate=8000,
        seconds=0.5,
        encoded=True,
        optional=(),
        missing=0.0,
    ):
        for m in (*modalities, *optional):
            if m not in MODALITIES:
                raise UserError(
                    f"toy: no modality {m!r}{nearest(m, MODALITIES)}; there are "
                    f"{', '.join(MODALITIES)}"
                )
        self.name, self.optional = f"toy:{split}", tuple(optional)
        self._modalities, self._examples, self._encoded = tuple(modalities), examples, encoded
        self._seed = (seed, zlib.crc32(split.encode()))
        self._size, self._frames = size, frames
        self._rate, self._seconds = sample_rate, seconds
        self._missing = missing

    def __len__(self):
        return self._examples

    def __getitem__(self, index):
        if not 0 <= index < self._examples:
            raise IndexError(index)
        k, example = index % len(CLASSES), {"id": index % len(CLASSES)}
        lacks = self._rng(index, "missing")
        absent = lacks.choice(self.optional or [""]) if lacks.random() < self._missing else None
        for m in self._modalities:
            if m != absent:
                # An rng each: what a modality looks like does not depend on the others.
                example[m] = getattr(self, f"_{m}")(k, self._rng(index, m))
        return {**example, "label": k}

    def _rng(self, index, purpose):
        return np.random.default_rng((*self._seed, index, zlib.crc32(purpose.encode())))

    def _image(self, k, rng):
        (colour, shape), n = CLASSES[k], self._size
        pixels = rng.integers(200, 256, (n, n, 3), np.uint8)
        y, x = np.mgrid[:n, :n] - n * rng.uniform(0.4, 0.6, (2, 1, 1))
        radius = n * rng.uniform(0.25, 0.35)
        inside = np.hypot(y, x) < radius
        if shape == "cross":
            inside &= np.minimum(abs(y), abs(x)) < radius / 4
        pixels[inside] = COLOURS[colour]
        if not self._encoded:
            return pixels
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        return out.getvalue()

    def _audio(self, k, rng):
        time = np.arange(round(self._rate * self._seconds)) / self._rate
        pitch = self._rate / 40 * 2 ** (k / 2.5) * rng.uniform(0.97, 1.03)  # up to 0.17 of the rate
        sound = np.sin(2 * np.pi * (pitch * time + rng.random())) * rng.uniform(0.3, 0.7)
        sound = (sound + 0.03 * rng.standard_normal(len(time))).astype(np.float32)
        if not self._encoded:
            return sound, self._rate
        out = io.BytesIO()
        with wave.open(out, "wb") as file:
            file.setparams((1, 2, self._rate, 0, "NONE", ""))
            file.writeframes(np.rint(np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
        return out.getvalue()

    def _video(self, k, rng):
        n, speed = self._size, 1 + k // len(WAYS)
        clip = rng.integers(0, 60, (self._frames, n, n, 1), np.uint8)
        start, width = int(rng.integers(n)), max(1, n // 6)
        for t, frame in enumerate(clip):
            step = t * speed * n // (2 * self._frames)
            place = start + step if WAYS[k % len(WAYS)] in ("right", "down") else start - step
            bar = (np.arange(width) + place) % n
            if WAYS[k % len(WAYS)] in ("right", "left"):
                frame[:, bar] = 255
            else:
                frame[bar] = 255
        return clip

    def _text(self, k, rng):
        way = f"moving {WAYS[k % len(WAYS)]} {('slowly', 'fast')[k // len(WAYS)]}"
        phrases = [f"a {self.label_names[k]}", f"a {TONES[k]} tone", f"a bar {way}"]
        return [" and ".join(rng.permutation(phrases)), " and ".join(phrases)]
