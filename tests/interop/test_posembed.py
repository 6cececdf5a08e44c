"""Position embeddings for another number of positions."""

import numpy as np
import pytest

from multimodal.errors import UserError
from multimodal.interop import import_weights
from multimodal.interop.posembed import resize_grid, resize_line
from tests.interop.conftest import CASES, exported


def ramp(n):
    """[1, n * n, 2] whose features are the pixel's x and y, centres at half pixels, in 0..1."""
    y, x = np.mgrid[:n, :n]
    return ((np.stack([x, y], -1) + 0.5) / n).reshape(1, n * n, 2)


@pytest.mark.parametrize(("old", "new"), [(14, 16), (7, 14)])
def test_a_linear_ramp_stays_linear_inside(old, new):
    """a = -0.5, of the antialiased kind, is the one cubic that repeats straight lines."""
    got = resize_grid(ramp(old), new * new, class_token=False, antialias=True)
    edge = 1 + 2 * new // old
    inside = (slice(edge, new - edge),) * 2
    want = ramp(new).reshape(new, new, 2)[inside]
    np.testing.assert_allclose(got.reshape(new, new, 2)[inside], want, atol=1e-12)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("old", "new"), [(14, 16), (7, 14), (8, 5)])
def test_the_mean_stays(old, new, antialias):
    got = resize_grid(ramp(old), new * new, class_token=False, antialias=antialias)
    np.testing.assert_allclose(got.mean(1), 0.5, atol=1e-12)


def test_keys_cubic_by_hand():
    """At a quarter of the way between two samples the taps of a = -0.75 are these."""
    grid = np.zeros((1, 16, 1))
    grid.reshape(4, 4)[:, 1] = 1.0  # 4 -> 8: output 3 lies at 1.25, output 2 at 0.75
    row = resize_grid(grid, 64, class_token=False).reshape(8, 8)[4]
    near = (-0.75 + 2) * 0.25**3 - (-0.75 + 3) * 0.25**2 + 1
    np.testing.assert_allclose(row[[2, 3]], [near, near], atol=1e-15)


def test_class_token_is_kept():
    x = np.random.default_rng(0).normal(size=(1, 17, 3)).astype(np.float32)
    y = resize_grid(x, 26, class_token=True)
    assert y.shape == (1, 26, 3) and y.dtype == np.float32
    assert np.array_equal(y[:, 0], x[:, 0])
    assert np.array_equal(resize_grid(x, 17, class_token=True)[:, 0], x[:, 0])


def test_text_is_linear():
    x = np.arange(4.0)[:, None]
    np.testing.assert_allclose(
        resize_line(x, 8)[:, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], atol=1e-15
    )


@pytest.mark.parametrize(("old", "new"), [(14, 24), (24, 14), (7, 8)])
@pytest.mark.parametrize("antialias", [False, True])
def test_as_torch(old, new, antialias):
    torch = pytest.importorskip(
        "torch", reason="torch, whose interpolation this repeats, is not installed"
    )
    x = np.random.default_rng(1).normal(size=(1, old * old, 3))
    picture = torch.tensor(x).reshape(1, old, old, 3).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(
        picture, size=(new, new), mode="bicubic", align_corners=False, antialias=antialias
    )
    want = want.permute(0, 2, 3, 1).reshape(1, new * new, 3).numpy()
    np.testing.assert_allclose(resize_grid(x, new * new, False, antialias), want, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), [(77, 32), (16, 77)])
def test_line_as_torch(old, new):
    torch = pytest.importorskip(
        "torch", reason="torch, whose interpolation this repeats, is not installed"
    )
    x = np.random.default_rng(1).normal(size=(old, 3))
    want = (
        torch.nn.functional.interpolate(torch.tensor(x.T[None]), size=new, mode="linear")
        .numpy()[0]
        .T
    )
    np.testing.assert_allclose(resize_line(x, new), want, atol=1e-12)


def test_only_when_asked():
    state, cfg = exported("timm"), CASES["timm"]
    larger = cfg | {"modalities": {"image": cfg["modalities"]["image"] | {"size": 32}}}
    with pytest.raises(
        UserError, match=r"pos_embed has shape \(1, 5, 12\), the model needs \(1, 17, 12\).*resize"
    ):
        import_weights(state, cfg=larger, act="gelu")
    got = import_weights(state, cfg=larger, act="gelu", resize_pos_embed=True).params[
        "encoder_image"
    ]
    want = resize_grid(state["pos_embed"], 17, class_token=True)
    assert np.array_equal(got["pos_embed"], want)


def test_not_square():
    with pytest.raises(UserError, match="not square grids"):
        resize_grid(np.zeros((1, 12, 3)), 16, class_token=False)
