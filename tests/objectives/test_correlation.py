"""Deep CCA's objective: canonical correlations computed by other means, and its gradient."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from multimodal.objectives.correlation import cca, covariances, total_correlation


def encoded(x, present=None):
    present = jnp.ones(len(x), bool) if present is None else jnp.array(present)
    return types.SimpleNamespace(shared=jnp.asarray(x), present=present)


def loss(x, y, k=0, ridge=0.0, present=None):
    out = {"image": encoded(x, present), "text": encoded(y)}
    return cca(None, out, {}, None, k=k, ridge=ridge)[0]


def views(n=50, dx=5, dy=4, seed=0):
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, 3))
    x = common @ rng.standard_normal((3, dx)) + 0.7 * rng.standard_normal((n, dx))
    return x, common @ rng.standard_normal((3, dy)) + 0.7 * rng.standard_normal((n, dy))


def by_angles(x, y):
    """Canonical correlations as cosines of the angles between column spaces (Bjorck & Golub)."""
    return np.cos(scipy.linalg.subspace_angles(x - x.mean(0), y - y.mean(0)))


@pytest.mark.parametrize("k", [0, 1, 3])
def test_equals_the_sum_of_canonical_correlations(k):
    x, y = views()
    wanted = np.sort(by_angles(x, y))[::-1][: k or None].sum()
    with jax.enable_x64(True):
        assert abs(float(loss(x, y, k)) + wanted) < 1e-9


def test_golden(shared):
    z = np.load(shared / "golden" / "fusion" / "fusions.npz")
    with jax.enable_x64(True):
        h1, h2 = (jnp.asarray(z[k], jnp.float64) for k in ("H1", "H2"))
        got = [float(loss(h1, h2, k, ridge=1e-3)) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(-np.diff([0, *got]), z["canonical_correlations"], rtol=3e-6)


def test_golden_losses_are_the_original_top_k(shared):
    """MultiBench's top-k loss adds its ridge to T^T T as well: sqrt(lambda + ridge) summed."""
    z = np.load(shared / "golden" / "fusion" / "fusions.npz")
    for k in (1, 2, 4):
        top = np.sqrt(z["canonical_correlations"][:k] ** 2 + 1e-3).sum()
        np.testing.assert_allclose(-top, z[f"cca_top{k}"], rtol=1e-5)


@pytest.mark.parametrize("k", [0, 2])
def test_gradient_is_that_of_differences(k):
    x, y = views(n=20)
    with jax.enable_x64(True):
        grad = jax.grad(lambda x: loss(x, y, k, ridge=0.1))(jnp.asarray(x))
        step = np.random.default_rng(3).standard_normal(x.shape)
        ahead, behind = (float(loss(x + s * step, y, k, ridge=0.1)) for s in (1e-5, -1e-5))
        slope = float((grad * step).sum())
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-6)


def test_missing_examples_are_left_out():
    x, y = views()
    present = np.arange(50) % 7 != 0
    with jax.enable_x64(True):
        masked, dropped = loss(x, y, present=present), loss(x[present], y[present])
    np.testing.assert_allclose(masked, dropped, rtol=1e-10)


@pytest.mark.parametrize("n", [1, 2, 8])
def test_a_batch_smaller_than_the_dimension_is_finite(n):
    """Float32, more dimensions than examples, equal rows, no examples at all."""
    x, y = (v.astype(np.float32) for v in views(n, 32, 24))
    for present in (np.ones(n, bool), np.zeros(n, bool)):
        for a in (x, np.zeros_like(x)):
            fn = jax.value_and_grad(lambda a, p=present: loss(a, y, ridge=1e-3, present=p))
            value, grad = fn(jnp.asarray(a))
            assert np.isfinite(value) and np.isfinite(grad).all()
            assert -24 <= value <= 1e-6


def test_two_equal_correlations_have_a_finite_gradient():
    x = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 4)))[0]
    grad = jax.grad(lambda x: total_correlation(*covariances(x, x, jnp.ones(12, bool), 1e-3), 0))
    assert np.isfinite(grad(jnp.asarray(x))).all()
