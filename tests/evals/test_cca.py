"""Canonical correlations: golden values, an independent computation, more dimensions than rows."""

import numpy as np
import pytest
from scipy.linalg import eigh, qr, subspace_angles

from multimodal.errors import UserError
from multimodal.evals.cca import cca, held_out_correlations, linear_cca
from multimodal.evals.table import headline, table
from tests.evals.toy import toy_data, toy_net


def related(n, seed=0, d1=5, d2=7):
    """Two views of three common factors; the noise is stronger in the later ones."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(n, 3))
    maps = np.random.default_rng(1)
    x = factors @ maps.normal(size=(3, d1)) + rng.normal(size=(n, d1))
    y = factors @ maps.normal(size=(3, d2)) + rng.normal(size=(n, d2))
    return 3 * x + 5, y - 2


def test_golden_correlations(shared):
    golden = np.load(shared / "golden" / "fusion" / "fusions.npz")
    *_, found = linear_cca(golden["H1"], golden["H2"], 4, ridge=1e-3)
    np.testing.assert_allclose(found, golden["canonical_correlations"], atol=2e-6)
    # MultiBench's loss adds the ridge to the squared correlations once more.
    assert -np.sqrt(found**2 + 1e-3).sum() == pytest.approx(float(golden["cca_top4"]), rel=2e-6)


def test_correlations_are_the_cosines_of_the_angles_between_the_column_spaces():
    x, y = related(60)
    angles = subspace_angles(x - x.mean(0), y - y.mean(0))
    *_, found = linear_cca(x, y, 5)
    np.testing.assert_allclose(found, np.sort(np.cos(angles))[::-1], atol=1e-9)
    q1, q2 = (qr(v - v.mean(0), mode="economic")[0] for v in (x, y))
    np.testing.assert_allclose(found, np.linalg.svd(q1.T @ q2)[1], atol=1e-9)


@pytest.mark.parametrize("ridge", [1e-3, 0.5])
def test_with_a_ridge_it_is_the_generalised_eigenproblem(ridge):
    x, y = related(60)
    *_, found = linear_cca(x, y, 5, ridge)
    c = np.cov(x.T, y.T)
    a, b = np.zeros_like(c), np.zeros_like(c)
    a[:5, 5:], a[5:, :5] = c[:5, 5:], c[5:, :5]
    b[:5, :5], b[5:, 5:] = c[:5, :5] + ridge * np.eye(5), c[5:, 5:] + ridge * np.eye(7)
    np.testing.assert_allclose(found, eigh(a, b)[0][::-1][:5], atol=1e-9)


def test_projections_are_white_and_correlate_as_told():
    x, y = related(80)
    wx, wy, mean_x, mean_y, found = linear_cca(x, y, 4)
    p, q = (x - mean_x) @ wx, (y - mean_y) @ wy
    np.testing.assert_allclose(np.cov(p.T), np.eye(4), atol=1e-9)
    np.testing.assert_allclose(np.cov(p.T, q.T)[:4, 4:], np.diag(found), atol=1e-9)
    np.testing.assert_allclose(held_out_correlations(p, q), found, atol=1e-9)
    assert held_out_correlations(p, 0 * q).sum() == 0


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
def test_fewer_rows_than_dimensions(ridge):
    x, y = related(6, d1=30, d2=20)
    wx, wy, _, _, found = linear_cca(x, y, 10, ridge)
    assert np.isfinite(wx).all() and np.isfinite(wy).all()
    assert (found >= 0).all() and (found <= 1).all()
    if ridge == 1.0:
        assert found[0] < 1 - 1e-4
    constant = linear_cca(np.ones((6, 3)), np.ones((6, 2)), 2, ridge)
    assert all(np.isfinite(v).all() for v in constant)


def test_what_cca_cannot_take():
    x, y = related(10)
    for args in ((x[:1], y[:1], 2), (x, y[:9], 2), (x, y, 6), (x, y, 0)):
        with pytest.raises(UserError, match="CCA needs"):
            linear_cca(*args)


def views(n, seed, name):
    data = toy_data(n, name=name)
    x, y = related(n, seed, 5, 5)
    data.rows = dict(image=x.astype(np.float32), audio=y.astype(np.float32))
    return data


def test_cca_of_a_model_on_held_out_records():
    data, train = views(50, 3, "dev"), views(400, 4, "train")
    data.load_train = lambda: train
    found = cca(toy_net(), data, dict(batch_size=16))
    assert found["dev/cca/image_audio/components"] == 3, "as the shared space"
    assert found["dev/cca/image_audio/correlation"] > 0.5
    total = found["dev/cca/image_audio/correlation_sum"]
    assert total == pytest.approx(3 * found["dev/cca/image_audio/correlation"])
    for way in ("image_to_audio", "audio_to_image"):
        chance = found[f"dev/cca/image_audio/{way}/chance_r1"]
        assert chance == pytest.approx(0.02)
        assert found[f"dev/cca/image_audio/{way}/r5"] > 5 * chance
    text = table(found)
    assert text.startswith("dev: linear CCA") and "audio -> image" in text
    kept = headline(found)
    assert "dev/cca/image_audio/image_to_audio/r1" in kept
    assert not any(k.endswith(("components", "count", "chance_r1")) for k in kept)
    with pytest.raises(UserError, match="two modalities"):
        cca(toy_net(("image",)), data, dict(batch_size=16))
