"""Operations on decoded pixels that images and frames of video share."""

import numpy as np

from multimodal.config import pair

RESIZES = ("squash", "crop")
ASPECT = 3 / 4, 4 / 3  # of random crops


def resample(pixels, size, box):
    """The part `box` (left, top, right, bottom) of pixels [H, W, 1 or 3], scaled bicubically to a
    size, a number or (height, width).
    """
    height, width = pair(size)
    if pixels.shape[:2] == (height, width) and box == (0, 0, width, height):
        return pixels
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    out = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))
    return out.reshape(height, width, pixels.shape[2])


def fit(pixels, size, resize="squash", resample=resample):
    """Pixels [H, W, C] at a size, a number or (height, width); 'squash' ignores the aspect ratio,
    'crop' takes the largest central part that has it.
    """
    height, width = pixels.shape[:2]
    if resize == "squash":
        return resample(pixels, size, (0, 0, width, height))
    # Cropping before scaling: scaling 1 x 4000 first would need a giant intermediate image.
    down, across = pair(size)
    h, w = min(height, width * down / across), min(width, height * across / down)
    return resample(
        pixels, size, ((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2)
    )


def random_box(shape, size, scale, rng):
    """A crop of random area, and 3/4 to 4/3 of the aspect ratio of `size` (Inception crop); None
    after ten misses.
    """
    (height, width), (down, across) = shape[:2], pair(size)
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = np.exp(rng.uniform(*np.log(ASPECT))) * (across / down)
        w, h = (area * ratio) ** 0.5, (area / ratio) ** 0.5
        if 1 <= w <= width and 1 <= h <= height:
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return float(x), float(y), float(x + w), float(y + h)
    return None


def shift(pixels, most, background, rng):
    """Move pixels [..., H, W, C] by up to `most` each way; background fills what is uncovered."""
    height, width = pixels.shape[-3:-1]
    dy, dx = (int(v) for v in rng.integers(-most, most + 1, size=2))
    out = np.empty_like(pixels)
    out[:] = background
    out[..., max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx), :] = pixels[
        ..., max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx), :
    ]
    return out


def with_channels(pixels, channels):
    """Pixels [..., 1 or 3] as grey (1) or RGB (3); grey by the weights of ITU-R BT.601."""
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    grey = pixels @ np.array([299, 587, 114], np.uint32)
    return ((grey + 500) // 1000).astype(np.uint8)[..., None]
