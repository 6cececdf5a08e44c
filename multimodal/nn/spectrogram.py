"""Log-mel spectrograms on the device, in the conventions of librosa, Whisper and Kaldi.

The Fourier transform is a product with a matrix: it batches, shards and differentiates like any
other layer, and frames are short.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from multimodal.errors import UserError
from multimodal.registry import lookup


@dataclasses.dataclass(frozen=True)
class Convention:
    """What a codebase means by a log-mel spectrogram.

    Attributes:
      pad: how the ends of the wave are padded so that frame i is centred on sample i * hop, a mode
        of jnp.pad; None: frames lie within the wave.
      zero_pads: the window is padded with zeros to the FFT's length; False: they are equal.
      periodic: the Hann window's kind.
      pre_emphasis: of each frame, after its mean is taken away; 0: neither.
      scale, slaney_norm, in_mels: of the mel filters, see mel_filters.
      floor: of what the natural logarithm is taken of.
      drop_last: the last frame is left out.
      whisper: log10, at most 8 below the example's maximum, (x + 4) / 4.
    """

    pad: str | None = "constant"
    zero_pads: bool = True
    periodic: bool = True
    pre_emphasis: float = 0.0
    scale: str = "slaney"
    slaney_norm: bool = True
    in_mels: bool = False
    floor: float = 1e-10
    drop_last: bool = False
    whisper: bool = False


CONVENTIONS = {
    # librosa.feature.melspectrogram with its defaults, then log(max(x, 1e-10)).
    "log_mel": Convention(),
    # Whisper (Radford et al. 2022, section 2.2) as in transformers' WhisperFeatureExtractor.
    "whisper": Convention(pad="reflect", zero_pads=False, drop_last=True, whisper=True),
    # Kaldi's fbank as in AST (Gong et al. 2021), transformers' ASTFeatureExtractor in NumPy.
    "kaldi": Convention(
        pad=None,
        periodic=False,
        pre_emphasis=0.97,
        scale="kaldi",
        slaney_norm=False,
        in_mels=True,
        floor=1.192092955078125e-07,
    ),
}


def hertz_to_mel(f, scale):
    """Slaney's scale (linear to 1 kHz, then logarithmic) or Kaldi's 1127 ln(1 + f / 700)."""
    f = np.asarray(f, np.float64)
    if scale == "kaldi":
        return 1127.0 * np.log1p(f / 700.0)
    high = 15.0 + np.log(np.maximum(f, 1000.0) / 1000.0) * (27.0 / np.log(6.4))
    return np.where(f < 1000.0, f * 3.0 / 200.0, high)


def mel_to_hertz(m, scale):
    """The inverse of hertz_to_mel."""
    if scale == "kaldi":
        return 700.0 * np.expm1(m / 1127.0)
    high = 1000.0 * np.exp((np.maximum(m, 15.0) - 15.0) * (np.log(6.4) / 27.0))
    return np.where(m < 15.0, m * 200.0 / 3.0, high)


def mel_filters(mels, fft, sample_rate, fmin, fmax, scale="slaney", norm=True, in_mels=False):
    """[fft // 2 + 1, mels] triangular filters, float64.

    Args:
      norm: each is divided by half its width in Hz (Slaney's constant energy a band).
      in_mels: the triangles are straight over mels (Kaldi) rather than over Hz.
    """
    points = np.linspace(hertz_to_mel(fmin, scale), hertz_to_mel(fmax, scale), mels + 2)
    edges = mel_to_hertz(points, scale)
    frequencies = np.arange(fft // 2 + 1) * (sample_rate / fft)
    x, corners = frequencies, edges
    if in_mels:
        x, corners = hertz_to_mel(frequencies, scale), points
    gaps = np.diff(corners)
    distance = corners[None] - x[:, None]
    rising, falling = -distance[:, :-2] / gaps[:-1], distance[:, 2:] / gaps[1:]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    return filters * (2.0 / (edges[2:] - edges[:-2])) if norm else filters


def hann(length, periodic):
    """The Hann window, float64."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - (not periodic)))


def fourier(window, fft):
    """[len(window), 2 * (fft // 2 + 1)] real and imaginary parts of a windowed frame's DFT."""
    n, k = np.arange(len(window)), np.arange(fft // 2 + 1)
    # n * k modulo fft: exact angles however long the frame.
    angles = 2 * np.pi * (n[:, None] * k % fft) / fft
    return np.concatenate([np.cos(angles), -np.sin(angles)], axis=1) * window[:, None]


def frame_count(samples, features, window, hop, fft):
    """Frames that log_mel makes of so many samples."""
    c = lookup(CONVENTIONS, features, "config.modalities.<m>.features")
    if c.pad is None:
        return max(0, (samples - window) // hop + 1)
    length = fft if c.zero_pads else window
    return 1 + (samples + 2 * (length // 2) - length) // hop - c.drop_last


def frames_of(wave, c, window, hop, fft):
    """[B, T] -> [B, frames, window], the samples that the window is laid over."""
    start, length = 0, window
    if c.pad:
        length = fft if c.zero_pads else window
        if c.pad == "reflect" and wave.shape[1] <= length // 2:
            raise UserError(
                f"audio: {wave.shape[1]} samples are too few for windows of {length}: raise seconds"
            )
        wave = jnp.pad(wave, ((0, 0), (length // 2, length // 2)), mode=c.pad)
        start = (length - window) // 2  # a shorter window lies in the middle of the FFT's frame
    count = (wave.shape[1] - length) // hop + 1
    if count < 1 + c.drop_last:
        raise UserError(f"audio: too few samples for one window of {length}: raise seconds")
    return wave[:, np.arange(count)[:, None] * hop + start + np.arange(window)]


def log_mel(
    wave,
    features="log_mel",
    sample_rate=16_000,
    mels=64,
    window=400,
    hop=160,
    fft=512,
    fmin=0.0,
    fmax=0.0,
):
    """Log-mel spectrograms [B, mels, frames] of waves [B, T], at least float32; per example.

    Args:
      features: a name in CONVENTIONS.
      window, hop, fft: samples; 'whisper' has no zero padding, its FFT is as long as its window.
      fmin, fmax: Hz; fmax 0 is half the sample rate.
    Raises UserError for fewer samples than a window needs and for a window longer than the FFT.
    """
    c = lookup(CONVENTIONS, features, "config.modalities.<m>.features")
    fft = fft if c.zero_pads else window
    if window > fft:
        raise UserError(f"audio: window {window} exceeds fft {fft}: raise fft")
    dtype = jnp.promote_types(wave.dtype, jnp.float32)
    x = frames_of(wave.astype(dtype), c, window, hop, fft)
    x = x[:, :-1] if c.drop_last else x
    if c.pre_emphasis:
        x = x - x.mean(-1, keepdims=True)
        x = x - c.pre_emphasis * jnp.concatenate([x[..., :1], x[..., :-1]], axis=-1)
    matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    x = matmul(x, fourier(hann(window, c.periodic), fft).astype(dtype))
    power = x[..., : fft // 2 + 1] ** 2 + x[..., fft // 2 + 1 :] ** 2
    fmax = fmax or sample_rate / 2
    filters = mel_filters(mels, fft, sample_rate, fmin, fmax, c.scale, c.slaney_norm, c.in_mels)
    x = jnp.log(jnp.maximum(matmul(power, filters.astype(dtype)), c.floor)).swapaxes(1, 2)
    if not c.whisper:
        return x
    x = x / np.log(10.0)
    return (jnp.maximum(x, x.max((1, 2), keepdims=True) - 8.0) + 4.0) / 4.0
