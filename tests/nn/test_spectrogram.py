"""Log-mel spectrograms: an independent computation in NumPy, recorded numbers, the originals."""

import io
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io.wavfile
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from multimodal.errors import UserError
from multimodal.nn.spectrogram import CONVENTIONS, frame_count, log_mel

SIZES = {"mels": 24, "fmin": 20.0}
KALDI_FLOOR = 1.192092955078125e-07


def wave(samples=1600):
    """A chord with a little noise, the same everywhere."""
    n = np.arange(samples)
    noise = (n * 7919 % 1009) / 1009 - 0.5
    return (0.3 * np.sin(0.05 * n) + 0.2 * np.sin(0.9 * n) + 0.05 * noise).astype(np.float32)


def slaney(f):
    return f * 3 / 200 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4)


def kaldi(f):
    return 1127 * np.log(1 + f / 700)


def inverse(scale, m):
    """Hz of a mel by bisection."""
    low, high = 0.0, 30_000.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if scale(middle) < m else (low, middle)
    return low


def filter_of(power, band, scale, fft, rate=16_000):
    """One mel band of a frame's power spectrum, term by term."""
    points = np.linspace(scale(20.0), scale(rate / 2), SIZES["mels"] + 2)[band : band + 3]
    edges = [inverse(scale, m) for m in points]
    a, b, c = points if scale is kaldi else edges
    total = 0.0
    for k, value in enumerate(power):
        f = k * rate / fft
        x = scale(f) if scale is kaldi else f
        weight = (x - a) / (b - a) if x <= b else (c - x) / (c - b)
        total += max(weight, 0.0) * value
    return total if scale is kaldi else total * 2 / (edges[2] - edges[0])


def by_hand(x, features, window=400, hop=160, fft=512):
    """[mels, frames] float64 with NumPy's FFT, frame by frame."""
    x = x.astype(np.float64)
    n = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / (window - 1 if features == "kaldi" else window))
    if features == "whisper":
        fft = window
    if features != "kaldi":
        x = np.pad(x, fft // 2, mode="reflect" if features == "whisper" else "constant")
        left = (fft - window) // 2
        hann = np.pad(hann, (left, fft - window - left))
    size, columns = len(hann), []
    for start in range(0, len(x) - size + 1, hop):
        frame = x[start : start + size].copy()
        if features == "kaldi":
            frame -= frame.mean()
            frame[1:] -= 0.97 * frame[:-1].copy()
            frame[0] *= 1 - 0.97
        power = np.abs(np.fft.rfft(frame * hann, fft)) ** 2
        scale = kaldi if features == "kaldi" else slaney
        columns.append([filter_of(power, b, scale, fft) for b in range(SIZES["mels"])])
    y = np.log(np.maximum(np.array(columns).T, KALDI_FLOOR if features == "kaldi" else 1e-10))
    if features != "whisper":
        return y
    y = y[:, :-1] / np.log(10)
    return (np.maximum(y, y.max() - 8) + 4) / 4


def error(a, b):
    """max|a - b| / max|b|."""
    assert a.shape == b.shape
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("features", CONVENTIONS)
def test_as_by_hand(features):
    want = by_hand(wave(), features)
    assert error(np.asarray(log_mel(wave()[None], features, **SIZES))[0], want) < 2e-5
    with jax.enable_x64(True):
        ours = log_mel(jnp.asarray(wave()[None].astype(np.float64)), features, **SIZES)
        assert error(np.asarray(ours)[0], want) < 1e-9


# [band, frame] of wave(): librosa 0.11's and transformers 5.23's own numbers, 24 bands from 20 Hz.
RECORDED = {
    "log_mel": [1.53076, -10.72442, -9.22321, -7.72048],
    "whisper": [1.18112, -0.19066, -0.02886, 0.16237],
    "kaldi": [1.23183, -8.09958, -3.37772, 0.68449],
}


@pytest.mark.parametrize(("features", "values"), RECORDED.items())
def test_recorded_numbers(features, values):
    ours = np.asarray(log_mel(wave()[None], features, **SIZES))[0]
    got = [ours[0, 0], ours[5, 3], ours[12, 4], ours[23, -1]]
    np.testing.assert_allclose(got, values, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module", params=["chord", "speech"])
def sound(request):
    """The chord, and a spoken digit."""
    if request.param == "chord":
        return wave(8000)
    path = request.getfixturevalue("shared") / "data" / "av_digits" / "fsdd-00000.tar"
    if not path.is_file():
        pytest.skip("no av_digits in ../shared/data")
    with tarfile.open(path) as tar:
        member = next(m for m in tar if m.name.endswith(".wav"))
        _, samples = scipy.io.wavfile.read(io.BytesIO(tar.extractfile(member).read()))
    return (samples / 32768).astype(np.float32)


@pytest.mark.parametrize(("window", "hop", "fft"), [(400, 160, 512), (512, 128, 512)])
def test_as_librosa(sound, window, hop, fft):
    librosa = pytest.importorskip("librosa")
    want = librosa.feature.melspectrogram(
        y=sound, sr=16_000, n_fft=fft, hop_length=hop, win_length=window, n_mels=64
    )
    ours = log_mel(sound[None], window=window, hop=hop, fft=fft, mels=64)
    assert error(np.asarray(ours)[0], np.log(np.maximum(want, 1e-10))) < 1e-4


def test_as_whisper(sound):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    extract = transformers.WhisperFeatureExtractor(feature_size=80)
    want = extract._np_extract_fbank_features(sound[None], "cpu")[0]
    assert error(np.asarray(log_mel(sound[None], "whisper", mels=80))[0], want) < 1e-4


def test_as_ast(sound):
    audio = pytest.importorskip("transformers.audio_utils")
    filters = audio.mel_filter_bank(
        257, 128, 20, 8000, 16_000, None, "kaldi", triangularize_in_mel_space=True
    )
    want = audio.spectrogram(
        sound,
        audio.window_function(400, "hann", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=KALDI_FLOOR,
        remove_dc_offset=True,
    )
    assert error(np.asarray(log_mel(sound[None], "kaldi", mels=128, fmin=20.0))[0], want) < 1e-4


@pytest.mark.parametrize("features", CONVENTIONS)
def test_jit_vmap_and_devices(features):
    x = np.stack([wave() * (i + 1) / 8 for i in range(8)])
    one = log_mel(x, features, **SIZES)
    assert one.shape[2] == frame_count(1600, features, 400, 160, 512)

    def fn(v):
        return log_mel(v, features, **SIZES)

    np.testing.assert_allclose(jax.vmap(lambda v: fn(v[None])[0])(x), one, rtol=1e-3, atol=1e-4)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    fast = jax.jit(fn)
    spread = fast(jax.device_put(x, sharding))
    assert spread.sharding.is_equivalent_to(sharding, 3)
    assert "all-gather" not in fast.lower(jax.device_put(x, sharding)).compile().as_text()
    np.testing.assert_allclose(spread, one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("features", CONVENTIONS)
def test_silence_has_finite_values_and_gradient(features):
    total = jax.jit(jax.value_and_grad(lambda v: log_mel(v, features, **SIZES).sum()))
    value, gradient = total(jnp.zeros((1, 800)))
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("features", CONVENTIONS)
def test_too_short(features):
    if features == "log_mel":  # padded with zeros as far as it takes
        assert log_mel(jnp.ones((1, 1)), features, **SIZES).shape == (1, 24, 1)
        return
    with pytest.raises(UserError, match="raise seconds"):
        log_mel(jnp.ones((1, 150)), features, **SIZES)


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"did you mean whisper"):
        log_mel(jnp.ones((1, 800)), "whispr")
    with pytest.raises(UserError, match="window 600 exceeds fft 512"):
        log_mel(jnp.ones((1, 800)), window=600)
