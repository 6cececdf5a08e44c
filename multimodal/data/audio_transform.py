"""The transform of sound: a waveform of fixed rate and length."""

import numpy as np

from multimodal.data.audio_codec import MAX_SECONDS, decode_audio
from multimodal.data.transforms import choice, refuse_text
from multimodal.errors import UserError

AUGMENTS = ("none", "shift", "speed")
_GAIN = 6.0  # dB, up or down
_SPEED = 0.12  # faster or slower by up to this share


class AudioTransform:
    """Sound (see audio_codec.decode_audio) -> float32 [round(sample_rate * seconds)], about -1..1.

    Evaluation takes the start of a longer clip and pads a shorter one with silence at its end.
    Config: `sample_rate` (Hz), `seconds`, `augment` ('shift': placed anywhere in time, up to 1/16
    of the length over the edges, and made up to 6 dB louder or quieter; 'speed': also played up to
    an eighth faster or slower, pitch included, Ko et al. 2015), `max_seconds`.
    """

    def __init__(self, cfg, train, tokenizer=None):
        self.sample_rate = int(cfg["sample_rate"])
        self.seconds = float(cfg["seconds"])
        self.length = round(self.sample_rate * self.seconds)
        augment = choice("audio", cfg, "augment", "none", AUGMENTS)
        augment = augment if train else "none"
        self.shift, self.speed = augment != "none", augment == "speed"
        self.max_seconds = float(cfg.get("max_seconds", MAX_SECONDS))
        if self.sample_rate < 1 or self.length < 1:
            raise UserError(
                f"audio transform: sample_rate={self.sample_rate} and seconds={self.seconds} must "
                "be positive"
            )

    def __call__(self, value, rng=None):
        return self.finish(self.decode(value), rng)

    def decode(self, value):
        """The part without randomness: samples, of the final length where nothing is shifted."""
        refuse_text("audio", "a sound", value)
        seconds = None if self.shift else self.seconds
        wave = decode_audio(value, self.sample_rate, self.max_seconds, seconds)
        return wave if self.shift else self._place(wave, 0)

    def finish(self, wave, rng=None):
        """The random part: speed, place in time and loudness; nothing without an rng."""
        if not self.shift:
            return wave
        if rng is None:
            return self._place(wave, 0)
        if self.speed:
            wave = faster(wave, np.exp(rng.uniform(-1, 1) * np.log1p(_SPEED)))
        spare, over = self.length - len(wave), self.length // 16
        start = int(rng.integers(min(0, spare) - over, max(0, spare) + over + 1))
        return self._place(wave, start) * np.float32(10 ** (rng.uniform(-_GAIN, _GAIN) / 20))

    def empty(self):
        """The array that stands for a missing sound."""
        return np.zeros((self.length,), np.float32)

    def _place(self, wave, start):
        """Silence with the wave from sample `start` on, which may be negative."""
        out = self.empty()
        part = wave[max(0, -start) : max(0, self.length - start)]
        out[max(0, start) : max(0, start) + len(part)] = part
        return out


def faster(wave, factor):
    """A wave [T] played `factor` times as fast, by linear interpolation: float32 [T / factor]."""
    places = np.arange(round(len(wave) / factor)) * factor
    return np.interp(places, np.arange(len(wave)), wave).astype(np.float32) if len(wave) else wave
