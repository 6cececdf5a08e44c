"""Containers of video, opened with PyAV (the extra `video`) as what their first bytes say they are.

FFmpeg guesses formats, and some of those it knows are lists of other files and addresses; naming
the format keeps an untrusted file from making it open those.
"""

import contextlib
import io

import numpy as np

from multimodal.data.extras import require
from multimodal.errors import BadRecord

FORMATS = "MP4, MOV, Matroska, WebM, AVI and MPEG"


def container(data):
    """FFmpeg's name of the container format of some bytes, or ''."""
    if data[4:8] == b"ftyp":
        return "mp4"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if data[:4] == b"\x00\x00\x01\xba":
        return "mpeg"
    return ""


@contextlib.contextmanager
def opened(data):
    """The container of some bytes; whatever FFmpeg finds wrong with it becomes a BadRecord."""
    name = container(data)
    if not name:
        what = f"starts with {data[:12]!r}" if data else "is empty (0 bytes)"
        raise BadRecord(f"video is none of {FORMATS}: it {what}")
    av = require("av", "video", "reading video files")
    # From 19 on PyAV takes metadata that are not UTF-8 as they come, and has no such argument.
    lenient = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    try:
        with av.open(io.BytesIO(data), format=name, **lenient) as file:
            yield file
    except BadRecord:
        raise
    except (
        av.FFmpegError,
        OSError,
        ValueError,
        TypeError,
        EOFError,
        IndexError,
        OverflowError,
        MemoryError,
    ) as e:
        raise BadRecord(f"video cannot be decoded ({type(e).__name__}: {e!s:.100})") from None


def stream(file, kind):
    """The first stream of a kind ('video' or 'audio'), decoded in one thread."""
    found = getattr(file.streams, kind)
    if not found:
        raise BadRecord(f"file has no {kind} stream")
    if found[0].codec_context is None:
        raise BadRecord(f"{kind} stream is of an unknown codec")
    found[0].codec_context.thread_count = 1  # The pipeline has threads of its own.
    return found[0]


def seconds(file, track):
    """Length that the header claims, or 0 where it does not."""
    if track.duration and track.time_base:
        return float(track.duration * track.time_base)
    return file.duration / 1e6 if file.duration else 0.0


def read_sound(data, limit):
    """(float32 [T], rate) of a film's sound.

    `limit(rate, channels, frames)` refuses too much and gives the frames to read (None: all).
    """
    with opened(data) as file:
        track = stream(file, "audio")
        rate, channels = track.codec_context.sample_rate, track.codec_context.channels
        needed = limit(rate, channels, round(seconds(file, track) * rate))
        blocks, count = [], 0
        for frame in file.decode(track):
            block = _wave(frame)
            blocks.append(block)
            count += block.size
            limit(frame.sample_rate, channels, count)
            if frame.sample_rate != rate or (needed is not None and count >= needed):
                break
        samples = np.concatenate(blocks)[:needed] if blocks else np.zeros(0, np.float32)
        return samples, rate


def _wave(frame):
    """One frame of sound, its channels averaged: float32 [T]."""
    values = frame.to_ndarray()
    if values.dtype.kind == "u":
        values = (values.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        values = values.astype(np.float32) / -float(np.iinfo(values.dtype).min)
    if frame.format.is_planar:
        return values.mean(0, dtype=np.float32)
    return values.reshape(-1, len(frame.layout.channels)).mean(1, dtype=np.float32)
