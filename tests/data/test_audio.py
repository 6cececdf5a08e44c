"""Sound: each encoding, bad inputs by their manifest, limits, resampling, augmentation."""

import io
import struct
import sys
import wave

import numpy as np
import pytest

from multimodal.data.audio_codec import decode_audio
from multimodal.data.audio_transform import faster
from multimodal.data.transforms import build_transform
from multimodal.errors import BadRecord, UserError
from tests.data.media import by_manifest

RATE = 8000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def transform(train=False, **cfg):
    return build_transform("audio", dict(sample_rate=RATE, seconds=1.0) | cfg, train)


def pcm(samples, bits):
    if bits == 8:
        return np.rint(samples * 127 + 128).astype(np.uint8).tobytes()
    values = np.rint(samples * (2 ** (bits - 1) - 1)).astype("<i4")
    return values.view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()


def wav(samples, bits=16, channels=1, rate=RATE):
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((channels, bits // 8, rate, 0, "NONE", ""))
        file.writeframes(pcm(samples, bits))
    return out.getvalue()


def riff(kind, bits, body, channels=1, rate=RATE, size=None, extra=b""):
    block = channels * bits // 8
    head = struct.pack("<HHIIHH", kind, channels, rate, rate * block, block, bits) + extra
    data = struct.pack("<4sI", b"data", len(body) if size is None else size) + body
    chunks = b"WAVE" + struct.pack("<4sI", b"fmt ", len(head)) + head + b"LIST\1\0\0\0x\0" + data
    return struct.pack("<4sI", b"RIFF", len(chunks)) + chunks


def loudness(x):
    return float(np.sqrt(np.mean(np.square(x))))


def test_bad_inputs_by_manifest(shared):
    pytest.importorskip("soundfile")
    found = by_manifest(shared, "audio", transform(sample_rate=16_000))
    assert len(found) == 18
    for x in found.values():
        assert x is None or (x.shape == (16_000,) and x.dtype == np.float32)
        assert x is None or np.isfinite(x).all()


@pytest.mark.parametrize("bits, error", [(8, 1e-2), (16, 1e-4), (24, 1e-6), (32, 1e-6)])
def test_integers(bits, error):
    np.testing.assert_allclose(decode_audio(wav(TONE, bits), RATE), TONE, atol=error)


@pytest.mark.parametrize("bits", [32, 64])
def test_floats_and_extensible(bits):
    body = TONE.astype(f"<f{bits // 8}").tobytes()
    np.testing.assert_array_equal(decode_audio(riff(3, bits, body), RATE), TONE)
    guid = struct.pack("<HHIH", 22, bits, 4, 3) + bytes(14)
    np.testing.assert_array_equal(decode_audio(riff(0xFFFE, bits, body, extra=guid), RATE), TONE)


def test_channels_are_averaged():
    both = np.stack([TONE, 0.5 * TONE], 1)
    np.testing.assert_allclose(
        decode_audio(wav(both.ravel(), 24, channels=2), RATE), 0.75 * TONE, atol=1e-6
    )
    np.testing.assert_allclose(decode_audio(both, RATE), 0.75 * TONE, atol=1e-6)


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 4000])
def test_resampling_keeps_pitch_loudness_and_length(rate):
    out = decode_audio(wav(TONE), rate)
    assert abs(len(out) - rate) <= 1 and abs(loudness(out) / loudness(TONE) - 1) < 0.02
    assert abs(int(np.argmax(np.abs(np.fft.rfft(out)))) - 440) <= 1


def test_evaluation_cuts_and_pads_at_the_end():
    np.testing.assert_array_equal(transform(seconds=0.5)(TONE), TONE[:4000])
    longer = transform(seconds=1.5)(TONE)
    np.testing.assert_array_equal(longer[:RATE], TONE)
    assert longer.shape == (12_000,) and not longer[RATE:].any()
    assert transform(seconds=0.1001).empty().shape == (801,)


def test_reading_the_start_alone_changes_nothing():
    noise = np.random.default_rng(0).uniform(-1, 1, 3 * RATE).astype(np.float32)
    for rate in (8000, 16_000, 11_025, 3000):
        start = decode_audio(wav(noise), rate, seconds=1.0)
        whole = decode_audio(wav(noise), rate)
        assert len(start) < len(whole) / 2
        np.testing.assert_allclose(start[:rate], whole[:rate], atol=1e-6)


def test_arrays_and_their_rates():
    np.testing.assert_array_equal(decode_audio(TONE.astype(np.float64), RATE), TONE)
    np.testing.assert_array_equal(decode_audio((TONE, RATE), RATE), TONE)
    assert abs(len(decode_audio((TONE, 4000), RATE)) - 2 * RATE) < 2
    assert decode_audio(np.array([-32768, 16384], np.int16), RATE).tolist() == [-1, 0.5]


@pytest.mark.parametrize("bad", [
    np.zeros(0, np.float32), np.zeros((2, 2, 2), np.float32), np.zeros(9, np.int64),
    np.array([0, np.nan], np.float32), np.array([1e300]), (TONE, 1), (TONE, 10**9),
    np.zeros((5, 100), np.float32), np.float32(1), b"", b"RIFF", b"text, no sound",
])  # fmt: skip
def test_what_is_no_sound(bad):
    with pytest.raises(BadRecord) as e:
        transform()(bad)
    assert "\n" not in str(e.value)


def test_limits_are_those_of_the_header():
    claim = riff(1, 16, TONE.astype("<i2").tobytes(), size=2**31 - 1)
    with pytest.raises(BadRecord, match="max_seconds"):
        decode_audio(claim, RATE)
    with pytest.raises(BadRecord, match="truncated"):
        decode_audio(riff(1, 16, bytes(100), size=200), RATE)
    with pytest.raises(BadRecord, match=r"1\.0 s is over the limit of 0\.5 s"):
        transform(max_seconds=0.5)(wav(TONE))
    piped = riff(1, 16, pcm(TONE, 16), size=0xFFFFFFFF)  # written without knowing the length
    np.testing.assert_array_equal(decode_audio(piped, RATE), decode_audio(wav(TONE), RATE))


@pytest.mark.parametrize("kind", ["FLAC", "OGG"])
def test_soundfile_formats(kind):
    soundfile = pytest.importorskip("soundfile")
    out = io.BytesIO()
    soundfile.write(out, np.stack([TONE, TONE], 1), RATE, format=kind)
    np.testing.assert_allclose(decode_audio(out.getvalue(), RATE), TONE, atol=0.1)
    with pytest.raises(BadRecord, match="max_seconds"):
        decode_audio(out.getvalue(), RATE, max_seconds=0.9)
    rng, outcomes = np.random.default_rng(0), set()
    for _ in range(60):
        data = bytearray(out.getvalue())
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            outcomes.add(decode_audio(bytes(data[: rng.integers(len(data))]), RATE).ndim)
        except BadRecord:
            outcomes.add("bad")
    assert "bad" in outcomes


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[audio\]'") as e:
        transform()(b"OggS" + bytes(40))
    assert not isinstance(e.value, BadRecord) and "\n" not in str(e.value)
    assert transform()(wav(TONE)).any()


def test_shift_is_a_function_of_the_rng():
    short = transform(train=True, seconds=2.0, augment="shift")
    draws = [short(TONE, np.random.default_rng(s)) for s in range(20)]
    again = [short.finish(short.decode(TONE), np.random.default_rng(s)) for s in range(20)]
    np.testing.assert_array_equal(draws, again)
    first = {int(np.flatnonzero(d)[0]) for d in draws}
    levels = [20 * np.log10(np.abs(d).max() / 0.5) for d in draws]
    assert len(first) > 15 and max(first) <= RATE + 1001
    assert -6.1 < min(levels) < -2 and 2 < max(levels) < 6.1
    long = transform(train=True, seconds=0.5, augment="shift")
    assert len({long(TONE, np.random.default_rng(s)).tobytes() for s in range(20)}) > 15
    np.testing.assert_array_equal(short(TONE), transform(seconds=2.0)(TONE))


def test_speed_moves_the_pitch():
    """A tone played faster is shorter and higher by the same factor; draws stay near."""
    played = faster(TONE, 1.25)
    assert len(played) == len(TONE) / 1.25
    peaks = [np.abs(np.fft.rfft(w)).argmax() / len(w) for w in (TONE, played)]
    assert peaks[1] / peaks[0] == pytest.approx(1.25, rel=0.01)
    np.testing.assert_array_equal(faster(TONE, 1.0), TONE)
    moved = transform(train=True, seconds=3.0, augment="speed")
    spans = []
    for seed in range(30):
        heard = np.flatnonzero(moved(TONE, np.random.default_rng(seed)))
        spans.append((heard[-1] - heard[0]) / len(TONE))
    assert 1.07 < max(spans) < 1.13 and sorted(spans)[8] < 0.96  # some lie over an edge


def test_bad_config():
    for cfg in (dict(augment="shfit"), dict(seconds=0.0), dict(sample_rate=0)):
        with pytest.raises(UserError):
            transform(**cfg)
