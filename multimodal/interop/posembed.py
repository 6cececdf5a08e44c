"""Position embeddings for another number of positions, as torch.nn.functional.interpolate resizes
them."""

import math

import numpy as np

from multimodal.errors import UserError


def cubic(x, a):
    """Keys' cubic convolution kernel."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def triangle(x):
    """The kernel of linear interpolation."""
    return np.maximum(0, 1 - np.abs(x))


def weights(old: int, new: int, kind: str, antialias: bool):
    """[new, old] matrix of a 1-D resize, half-pixel centres (align_corners=False).

    torch's two bicubics differ: without antialiasing a = -0.75 and taps beyond the border repeat
    the edge; with it a = -0.5, the kernel is stretched when shrinking, and taps beyond the border
    are dropped and the rest renormalised.
    """
    ratio = old / new
    centre = (np.arange(new) + 0.5) * ratio
    if antialias:
        stretch = max(ratio, 1.0)
        distance = (np.arange(old)[None] + 0.5 - centre[:, None]) / stretch
        w = cubic(distance, -0.5) if kind == "cubic" else triangle(distance)
        return w / w.sum(1, keepdims=True)
    out = np.zeros((new, old))
    centre = centre - 0.5 if kind == "cubic" else np.maximum(centre - 0.5, 0)
    base = np.floor(centre).astype(int)
    for tap in (-1, 0, 1, 2):
        distance = centre - (base + tap)
        w = cubic(distance, -0.75) if kind == "cubic" else triangle(distance)
        np.add.at(out, (np.arange(new), np.clip(base + tap, 0, old - 1)), w)
    return out


def resize_line(x, length: int):
    """Linear resize of text positions [..., L, D] to [..., length, D]."""
    w = weights(x.shape[-2], length, "linear", antialias=False)
    return (w @ x.astype(np.float64)).astype(x.dtype)


def resize_grid(x, count: int, class_token: bool, antialias: bool = False):
    """Bicubic resize of an image's positions [1, N, D] to [1, count, D], both square grids.

    The class token's row, if any, is kept as it is. Without `antialias` as ALBEF and HF do it, with
    it as open_clip.
    """
    keep = int(class_token)
    token, grid = x[:, :keep], x[:, keep:]
    old, new = math.isqrt(grid.shape[1]), math.isqrt(count - keep)
    if old * old != grid.shape[1] or new * new != count - keep:
        raise UserError(
            f"position embedding: cannot resize {x.shape[1]} to {count}: not square grids"
        )
    w = weights(old, new, "cubic", antialias)
    grid = grid.astype(np.float64).reshape(-1, old, old, x.shape[-1])
    grid = np.einsum("yi,xj,bijd->byxd", w, w, grid).reshape(len(x), new * new, -1)
    return np.concatenate([token, grid.astype(x.dtype)], axis=1)
