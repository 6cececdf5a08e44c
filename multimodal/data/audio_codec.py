"""From untrusted sound to one channel of samples.

WAV is read with NumPy alone; FLAC and Ogg need the extra `audio`, the sound of films `video`.
"""

import fractions
import io
import struct

import numpy as np
from scipy import signal

from multimodal.data import film
from multimodal.data.extras import require
from multimodal.errors import BadRecord

MAX_SECONDS = 3600.0
_RATES = (1000, 192_000)  # Hz
_MAX_CHANNELS = 64
_MAX_CHUNKS = 10_000  # of a WAV before its samples
_BLOCK = 1 << 16  # frames read at a time: memory grows with what is there, not with what is claimed
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_UNKNOWN_SIZE = 0xFFFFFFFF  # of a WAV that was written to a pipe


def decode_audio(value, sample_rate, max_seconds=MAX_SECONDS, seconds=None):
    """Samples of a sound at a sample rate: float32 [T], about -1 to 1.

    Args:
      value: encoded bytes (WAV, FLAC, Ogg or a film with sound, told by content); an array [T] or
        [T, channels] of floats or int16, taken to have `sample_rate`; or a pair (array, its rate).
      sample_rate: Hz; other rates are resampled, several channels averaged.
      max_seconds: longer sounds are refused, from their header where there is one.
      seconds: read only so much from the start; None: all.
    Raises: BadRecord for what is broken, empty, too long, not finite, or of another format.
      UserError where the format needs an extra that is not installed.
    """
    samples, rate = _samples(value, sample_rate, max_seconds, seconds)
    if not samples.size:
        raise BadRecord("sound has no samples")
    if not np.isfinite(samples).all():
        raise BadRecord("sound holds values that are not finite")
    return _resample(samples, rate, sample_rate)


def _samples(value, sample_rate, max_seconds, seconds):
    """(float32 [T], its rate), of the first `seconds` and a little more."""
    if isinstance(value, bytes | bytearray | memoryview):
        return _decode(bytes(value), max_seconds, seconds, sample_rate)
    pair = value if isinstance(value, tuple) else (value, sample_rate)
    if len(pair) != 2 or not isinstance(pair[1], int | float | np.number):
        raise BadRecord("sound must be an array, or a pair of an array and its sample rate")
    array, rate = np.asarray(pair[0]), pair[1]
    if array.ndim not in (1, 2) or not (array.dtype == np.int16 or array.dtype.kind == "f"):
        raise BadRecord(
            f"sound must be floats or int16 [T] or [T, channels], not {array.dtype} "
            f"{list(array.shape)}"
        )
    _check(rate, 1 if array.ndim == 1 else array.shape[1], len(array), max_seconds)
    return _mono(array[: _needed(seconds, rate, sample_rate)]), rate


def _decode(data, max_seconds, seconds, sample_rate):
    def limit(rate, channels, frames):
        _check(rate, channels, frames, max_seconds)
        return _needed(seconds, rate, sample_rate)

    try:
        if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
            return _read_wav(data, limit)
        if data[:4] in (b"fLaC", b"OggS"):
            return _read_soundfile(data, limit)
        if film.container(data):
            return film.read_sound(data, limit)
    except (struct.error, ValueError, OverflowError, MemoryError) as e:
        raise BadRecord(f"sound cannot be decoded ({type(e).__name__}: {e!s:.100})") from None
    what = f"starts with {data[:12]!r}" if data else "is empty (0 bytes)"
    raise BadRecord(f"sound is no WAV, FLAC, Ogg or film: it {what}")


def _check(rate, channels, frames, max_seconds):
    """Refuse by what a header says; `frames` are samples of each channel."""
    if not _RATES[0] <= rate <= _RATES[1]:
        raise BadRecord(f"sound has {rate} samples a second; must be {_RATES[0]} to {_RATES[1]}")
    if not 1 <= channels <= _MAX_CHANNELS:
        raise BadRecord(f"sound has {channels} channels; must be 1 to {_MAX_CHANNELS}")
    if frames > max_seconds * rate:
        raise BadRecord(
            f"sound of {frames / rate:.1f} s is over the limit of {max_seconds:g} s (max_seconds)"
        )


def _needed(seconds, rate, sample_rate):
    """Frames that decide the first `seconds`: the resampling filter looks ahead (None: all)."""
    if seconds is None:
        return None
    return int(np.ceil(seconds * rate)) + 16 * int(np.ceil(max(1, rate / sample_rate))) + 16


def _mono(array):
    """Channels [T, C] averaged, integers scaled to -1..1: float32 [T]."""
    scale = 1 / 32768 if array.dtype == np.int16 else 1
    # What is too large becomes infinite, and is refused.
    with np.errstate(over="ignore", invalid="ignore"):
        array = array.astype(np.float32) * np.float32(scale)
    return array if array.ndim == 1 else array.mean(1, dtype=np.float32)


def _resample(samples, rate, sample_rate):
    """Polyphase resampling, with a ratio of small numbers so that the filter stays short."""
    if rate == sample_rate:
        return samples
    ratio = fractions.Fraction(sample_rate / rate).limit_denominator(1000)
    return signal.resample_poly(samples, ratio.numerator, ratio.denominator).astype(np.float32)


def _read_wav(data, limit):
    """RIFF/WAVE: integers of 8, 16, 24 or 32 bits, floats of 32 or 64."""
    chunks = _wav_chunks(data)
    kind, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", *chunks[b"fmt "][:2])
    if kind == _EXTENSIBLE:  # The format follows in the first two bytes of a GUID.
        (kind,) = struct.unpack_from("<H", data, chunks[b"fmt "][1] + 24)
    known = bits in {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}.get(kind, ())
    if not known or block != channels * bits // 8 or not block:
        raise BadRecord(
            f"WAV of encoding {kind} with {bits} bits is not supported: PCM of 8, 16, 24 or 32 "
            "bits and floats of 32 or 64 are"
        )
    _, start, size = chunks[b"data"]
    available = len(data) - start
    needed = limit(rate, channels, (available if size == _UNKNOWN_SIZE else size) // block)
    if size != _UNKNOWN_SIZE and size > available:
        raise BadRecord(f"WAV is truncated: {available} of {size} bytes of samples are there")
    frames = min(size, available) // block
    frames = frames if needed is None else min(frames, needed)
    raw = np.frombuffer(data, np.uint8, frames * block, start)
    return _mono(_wav_values(raw, kind, bits).reshape(frames, channels)), rate


def _wav_chunks(data):
    """Format and samples of a RIFF file: (data, offset, size); the first of each name counts."""
    chunks, at = {}, 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data) or b"data" in chunks:
            break
        name, size = struct.unpack_from("<4sI", data, at)
        if name in (b"fmt ", b"data"):
            chunks.setdefault(name, (data, at + 8, size))
        at += 8 + size + size % 2
    missing = [n.decode().strip() for n in (b"fmt ", b"data") if n not in chunks]
    if missing:
        raise BadRecord(f"WAV has no chunk {' and '.join(missing)}")
    return chunks


def _wav_values(raw, kind, bits):
    if kind == _FLOAT:
        return raw.view(f"<f{bits // 8}")
    if bits == 8:  # The only unsigned one.
        return (raw.astype(np.float32) - 128) / 128
    if bits == 24:  # As the upper three bytes of 32.
        wide = np.zeros((raw.size // 3, 4), np.uint8)
        wide[:, 1:] = raw.reshape(-1, 3)
        raw, bits = wide.reshape(-1), 32
    return raw.view(f"<i{bits // 8}").astype(np.float32) / np.float32(2 ** (bits - 1))


def _read_soundfile(data, limit):
    soundfile = require("soundfile", "audio", "reading FLAC and Ogg sound")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            needed = limit(file.samplerate, file.channels, file.frames)
            most = file.frames if needed is None else min(file.frames, needed)
            blocks, count = [], 0
            while count < most:
                block = file.read(min(_BLOCK, most - count), dtype="float32", always_2d=True)
                if not len(block):
                    break
                blocks.append(_mono(block))
                count += len(block)
            return np.concatenate(blocks) if blocks else np.zeros(0, np.float32), file.samplerate
    except (soundfile.SoundFileError, RuntimeError, OSError, TypeError) as e:
        raise BadRecord(f"sound cannot be decoded ({e!s:.100})") from None
