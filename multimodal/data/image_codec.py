"""From untrusted image bytes to RGB pixels."""

import io
import struct
import warnings

import numpy as np

from multimodal.data import fast_image
from multimodal.errors import BadRecord

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 64_000_000
# What Pillow finds odd in a file that it can read (its EXIF, say) is nothing to mend.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*")


def decode_image(value, background=(255, 255, 255), max_pixels=MAX_PIXELS, fast=None):
    """Pixels of an image: uint8 [H, W, 3].

    `value` is encoded bytes (JPEG, PNG, WebP, GIF or BMP, told by content; the first frame counts)
    or a uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]. EXIF orientation is always applied,
    16-bit grey is scaled to 8 bits, transparency is laid on `background` (RGB). Raises BadRecord
    for anything else, and for more than `max_pixels` by the header, before decoding. `fast` is
    another decoder for JPEGs, that may come first: a function of (bytes, (width, height)) to
    pixels, or to None where it declines.
    """
    if isinstance(value, np.ndarray):
        return _array_to_rgb(value, background)
    if not value:
        raise BadRecord("image is empty (0 bytes)")
    from PIL import Image, ImageOps

    try:
        plain = fast_image.plain_size(value) if fast and isinstance(value, bytes) else None
        if plain and plain[0] * plain[1] > min(max_pixels, MAX_PIXELS):
            plain = None  # Pillow has a limit of its own
        if plain:
            pixels = fast(value, plain)
            if pixels is not None:
                return pixels
        with Image.open(io.BytesIO(value), formats=FORMATS) as image:
            _check_size(image.size, max_pixels)
            if fast and not plain and fast_image.is_upright(image):
                pixels = fast(value, image.size)
                if pixels is not None:
                    return pixels
            image.load()
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image), background))
    except BadRecord:
        raise
    except Image.UnidentifiedImageError:
        raise BadRecord(
            f"image is no {', '.join(FORMATS)} file, or its header is damaged: it starts with "
            f"{bytes(value[:12])!r}"
        ) from None
    except Image.DecompressionBombError:
        raise BadRecord(f"image has more pixels than the limit of {max_pixels:.0f}") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        EOFError,
        KeyError,
        IndexError,
        OverflowError,
        MemoryError,
        struct.error,
    ) as e:
        raise BadRecord(f"image cannot be decoded ({type(e).__name__}: {e!s:.100})") from None


def _check_size(size, max_pixels):
    if min(size) < 1:
        raise BadRecord(f"image has no pixels ({size[0]}x{size[1]})")
    if size[0] * size[1] > max_pixels:
        raise BadRecord(
            f"image of {size[0]}x{size[1]} pixels is over the limit of "
            f"{max_pixels:.0f} (max_pixels)"
        )


def _to_rgb(image, background):
    from PIL import Image

    if image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):  # convert() would clip to white.
        grey = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((np.clip(grey, 0, 65535) + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise BadRecord("image has floating-point pixels, whose range is unknown")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, tuple(background))
        canvas.paste(image, mask=image.getchannel("A"))
        return canvas
    return image.convert("RGB")


def _array_to_rgb(array, background):
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise BadRecord(
            f"image array must be uint8 [H, W, 1, 3 or 4], not {array.dtype} {list(array.shape)}"
        )
    if array.size == 0:
        raise BadRecord(f"image has no pixels {list(array.shape)}")
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if channels == 3:
        return array
    from PIL import Image

    return np.asarray(_to_rgb(Image.fromarray(array), background))
