"""JPEG decoding by simplejpeg and resampling by OpenCV, for training: the optional extra `fast`.

Three times as fast as Pillow, more for large files (benchmarks/decode.py). What is accepted and
refused is Pillow's decision all the same: it reads every header but the plainest, of which it has
nothing to say, and whatever simplejpeg will not decode without a complaint goes to Pillow as if
this module did not exist. Pixels differ a little: colour is not smoothed between its samples (0.7
of 255 levels on average), and scaling is bilinear or an average instead of bicubic (2 levels at 224
pixels). Evaluation never comes here.
"""

import importlib.util
import math
import struct

from multimodal.config import pair
from multimodal.data.extras import require

DECODERS = ("auto", "pillow", "fast")
_PACKAGES = ("simplejpeg", "cv2")
# Markers (ITU T.81, table B.1): start of scan, quantization tables, start of frame (SOF0, SOF2).
_SCAN, _TABLES = b"\xff\xda", b"\xff\xdb"
_FRAMES = b"\xff\xc0", b"\xff\xc2"
# Those of a plain header, with DHT, DRI, APP0 and COM, and the least length of their segments.
_LEAST = {_SCAN: 2, b"\xff\xc4": 2, _TABLES: 2, b"\xff\xdd": 4, b"\xff\xe0": 16, b"\xff\xfe": 2}
_LEAST |= dict.fromkeys(_FRAMES, 11)


def choose(decode, where="config.modalities.<m>.decode"):
    """'pillow' or 'fast': 'auto' is 'fast' where the extra's packages are installed.

    Raises UserError for 'fast' without them.
    """
    if decode == "auto":
        return "fast" if all(map(importlib.util.find_spec, _PACKAGES)) else "pillow"
    if decode == "fast":
        for package in _PACKAGES:
            require(package, "fast", f"{where}='fast'")
        _cv2().setNumThreads(0)  # the pipeline has threads of its own
    return decode


def plain_size(data):
    """(width, height) of a JPEG that Pillow could not refuse on opening, nor turn; None for any
    other file.

    Opening costs, most where caches are cold, and files without a camera's notes look so: whole
    segments of tables (DQT of 8 bits, DHT), one frame of 8 bits in one or three components (SOF0,
    SOF2), APP0, restarts and comments, to the first scan's header (ITU T.81, B.1).
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, size, kind = 2, None, None
    while kind != _SCAN:
        kind = data[at : at + 2]
        n = int.from_bytes(data[at + 2 : at + 4], "big")  # of the segment, without its marker
        if kind not in _LEAST or n < _LEAST[kind] or at + 2 + n > len(data):
            return None
        if kind == _TABLES:
            if (n - 2) % 65 or any(data[i] > 15 for i in range(at + 4, at + 2 + n, 65)):
                return None
        elif kind in _FRAMES:
            bits, height, width, parts = struct.unpack(">BHHB", data[at + 4 : at + 10])
            if size or bits != 8 or parts not in (1, 3) or n != 8 + 3 * parts:
                return None
            size = width, height
        at += 2 + n
    return size if size and min(size) else None


def is_upright(header):
    """Whether a file that Pillow has opened is a JPEG to decode here, and not to be turned."""
    kind = header.format in ("JPEG", "MPO") and header.mode in ("RGB", "L")
    return kind and header.getexif().get(0x0112, 1) == 1


def decode_jpeg(data, size, reach=None):
    """Pixels of a JPEG: uint8 [H, W, 3]; None where that is better left to Pillow.

    Args:
      data: the file's bytes.
      size: (width, height) by its header.
      reach: function of (height, width) to the number by which both may be divided without loss.
        The decoder divides by 2, 8/3, 4 or 8, where that is no more, leaving out high frequencies.
    """
    import simplejpeg

    width, height = size
    most = reach(height, width) if reach else 1
    least = {}
    if most >= 2:
        least = dict(
            min_height=math.ceil(height / most), min_width=math.ceil(width / most), min_factor=2
        )
    try:
        return simplejpeg.decode_jpeg(data, fastupsample=True, **least)
    except ValueError:  # damaged, or of a kind that it does not know
        return None


def resample(pixels, size, box):
    """The part `box` (left, top, right, bottom) of pixels [H, W, 3] at a size, a number or (height,
    width).

    Edges are rounded to pixels. Bilinear where there are less than twice as many pixels, which
    leaves none out; beyond that the average of all, which takes five times as long.
    """
    (height, width), (down, across) = pixels.shape[:2], pair(size)
    left, top = min(int(box[0] + 0.5), width - 1), min(int(box[1] + 0.5), height - 1)
    right, bottom = max(int(box[2] + 0.5), left + 1), max(int(box[3] + 0.5), top + 1)
    part = pixels[top:bottom, left:right]
    least, most = sorted((part.shape[0] / down, part.shape[1] / across))
    if least == most == 1:
        return part
    cv2 = _cv2()
    method = cv2.INTER_AREA if least >= 2 or most >= 3 else cv2.INTER_LINEAR
    out = cv2.resize(part, (across, down), interpolation=method)
    return out.reshape(down, across, pixels.shape[2])


def _cv2():
    import cv2

    return cv2
