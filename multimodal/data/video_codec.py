"""From untrusted video to a few frames of it."""

import numpy as np

from multimodal.data import film
from multimodal.data.image_codec import MAX_PIXELS
from multimodal.errors import BadRecord

MAX_FRAMES = 100_000


def even_frames(total, count):
    """int [count]: frames in the middle of `count` equal parts of `total`; repeated if fewer."""
    return ((np.arange(count) + 0.5) * total / count).astype(np.int64)


def decode_video(value, count, max_pixels=MAX_PIXELS, max_frames=MAX_FRAMES):
    """`count` frames, taken evenly over a clip: list of uint8 [H, W, 3] (or [H, W, 1]).

    Args:
      value: encoded bytes (MP4, MOV, Matroska, WebM, AVI or MPEG, told by content), or a uint8
        array [T, H, W], [T, H, W, 1] or [T, H, W, 3].
      max_pixels: of a frame; more is refused, by the header where that tells.
      max_frames: of a clip, likewise.
    Raises: BadRecord for what is broken, empty, too large or of another format. UserError where
      the extra `video` is not installed.
    """
    if isinstance(value, np.ndarray):
        return _from_array(value, count)
    if not isinstance(value, bytes | bytearray | memoryview):
        raise BadRecord(f"video must be bytes or an array, not {type(value).__name__}")
    data = bytes(value)
    total = _count_frames(data, max_pixels, max_frames)
    frames, found = _take(data, even_frames(total, count), max_pixels, max_frames)
    if found != total:  # Some packets hold no frame to be shown, or several.
        frames, _ = _take(data, even_frames(found, count), max_pixels, max_frames)
    return frames


def _from_array(array, count):
    good = array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3))
    if array.dtype != np.uint8 or not good:
        raise BadRecord(
            f"video array must be uint8 [T, H, W, 1 or 3], not {array.dtype} {list(array.shape)}"
        )
    if not array.size:
        raise BadRecord(f"video has no pixels {list(array.shape)}")
    array = array if array.ndim == 4 else array[..., None]
    return list(array[even_frames(len(array), count)])


def _count_frames(data, max_pixels, max_frames):
    """Packets of the video, counted without decoding; nothing over the limits is touched."""
    with film.opened(data) as file:
        track = film.stream(file, "video")
        _check_size(track.codec_context.width, track.codec_context.height, max_pixels)
        rate = float(track.average_rate or 0)
        _check_count(max(track.frames, int(film.seconds(file, track) * rate)), max_frames)
        total = 0
        for packet in file.demux(track):
            total += packet.size > 0
            _check_count(total, max_frames)
    if not total:
        raise BadRecord("video has no frames")
    return total


def _take(data, wanted, max_pixels, max_frames):
    """(the frames of those numbers, how many frames there are)."""
    pixels, total = {}, 0
    chosen = set(wanted.tolist())
    with film.opened(data) as file:
        for frame in file.decode(film.stream(file, "video")):
            _check_size(frame.width, frame.height, max_pixels)
            if total in chosen:
                pixels[total] = _pixels(frame)
            total += 1
            _check_count(total, max_frames)
    if not total:
        raise BadRecord("video has no frames that can be decoded")
    return [pixels[i] for i in wanted if i in pixels], total


def _pixels(frame):
    """RGB of a frame, turned as its display matrix asks."""
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def _check_size(width, height, max_pixels):
    if min(width, height) < 1:
        raise BadRecord(f"video has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise BadRecord(
            f"video of {width}x{height} pixels is over the limit of {max_pixels:.0f} (max_pixels)"
        )


def _check_count(count, max_frames):
    if count > max_frames:
        raise BadRecord(f"video of {count} frames is over the limit of {max_frames} (max_frames)")
