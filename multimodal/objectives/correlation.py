"""Canonical correlation as an objective (Andrew et al. 2013, deep CCA)."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from multimodal.objectives.registry import register

HIGHEST = jax.lax.Precision.HIGHEST


def covariances(x, y, w, ridge):
    """(S_xx + ridge I, S_xy, S_yy + ridge I) of the examples with w set, over n - 1.

    Args: x [B, D1]; y [B, D2]; w [B] bool.
    """
    w = w[:, None]
    n = w.sum()
    x, y = (jnp.where(w, v, 0) for v in (x, y))
    x, y = (jnp.where(w, v - v.sum(0) / jnp.maximum(n, 1), 0) for v in (x, y))
    over = 1 / jnp.maximum(n - 1, 1).astype(x.dtype)

    def product(a, b):
        return over * jnp.matmul(a.T, b, precision=HIGHEST)

    return (
        product(x, x) + ridge * jnp.eye(x.shape[1], dtype=x.dtype),
        product(x, y),
        product(y, y) + ridge * jnp.eye(y.shape[1], dtype=x.dtype),
    )


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def total_correlation(sxx, sxy, syy, k):
    """The sum of the k largest canonical correlations (all for k = 0), from covariances.

    They are the singular values of L_x^-1 S_xy L_y^-T with S = L L^T. The gradient is written out
    (Andrew et al. 2013, eq. 11-13): differentiating through a decomposition divides by differences
    of its values, which is not finite where two are equal, as in a batch smaller than the
    dimension.
    """
    return _forward(sxx, sxy, syy, k)[0]


def _forward(sxx, sxy, syy, k):
    lx, ly = jnp.linalg.cholesky(sxx), jnp.linalg.cholesky(syy)
    left = partial(solve_triangular, lower=True)
    t = left(ly, left(lx, sxy).T).T
    u, s, vt = jnp.linalg.svd(t, full_matrices=False)
    keep = (jnp.arange(len(s)) < (k or len(s))).astype(s.dtype)
    # Back through the whitening: A = L_x^-T U, B = L_y^-T V.
    back = partial(solve_triangular, trans=1, lower=True)
    return (s * keep).sum(), (back(lx, u), s, back(ly, vt.T), keep)


def _backward(k, saved, g):
    a, s, b, keep = saved
    mul = partial(jnp.matmul, precision=HIGHEST)
    dxy = mul(a * keep, b.T)
    dxx = -0.5 * mul(a * (keep * s), a.T)
    dyy = -0.5 * mul(b * (keep * s), b.T)
    return g * dxx, g * dxy, g * dyy


total_correlation.defvjp(_forward, _backward)


@register("cca")
def cca(net, out, batch, rng, a="image", b="text", k=0, ridge=1e-3):
    """Minus the sum of the k largest canonical correlations of two modalities' points in the
    shared space, before these are brought to unit length.

    Args:
      a, b: the two modalities; examples that lack one are left out.
      k: how many correlations; 0: all.
      ridge: added to the covariances' diagonals; a batch smaller than the dimension needs it.
    Returns: loss, {'correlation': mean of those k}.
    """
    x, y = (out[m].shared for m in (a, b))
    x, y = (v.astype(jnp.promote_types(v.dtype, jnp.float32)) for v in (x, y))
    sxx, sxy, syy = covariances(x, y, out[a].present & out[b].present, ridge)
    total = total_correlation(sxx, sxy, syy, int(k))
    return -total, {"correlation": total / (k or min(x.shape[1], y.shape[1]))}
