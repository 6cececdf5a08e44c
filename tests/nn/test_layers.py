"""Blocks: whatever the backward pass computes again, gradients stay; what 16 bits may change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal.nn.layers import REMAT, BlockConfig, Stack, gelu, layer_norm
from tests import laws


@pytest.mark.parametrize("remat", REMAT)
def test_remat_changes_no_gradient(remat):
    x = np.random.default_rng(0).standard_normal((2, 5, 16), np.float32)
    stack = Stack(BlockConfig(16, 2, 32), depth=2, scan=True)
    params = stack.init(jax.random.key(0), x)

    def gradient(stack):
        return jax.jit(jax.grad(lambda p: (stack.apply(p, x) ** 3).sum()))(params)

    assert laws.worst(gradient(stack.clone(remat=remat)), gradient(stack)) < 1e-5


def test_gelu_of_16_bits_is_as_near_as_rounding_allows():
    x = jnp.linspace(-8, 8, 10_001).astype(jnp.bfloat16)
    exact, slope = (
        jax.vmap(fn)(x.astype(jnp.float32))
        for fn in (lambda x: jax.nn.gelu(x, approximate=False), jax.grad(gelu))
    )
    # 2^-8: half a unit of the last place; next to 0 what erf loses where it is next to -1
    np.testing.assert_allclose(gelu(x).astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)
    found = jax.vmap(jax.grad(gelu))(x).astype(jnp.float32)
    np.testing.assert_allclose(found, slope, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("mean", [0, 1, 10, 100])  # in deviations
def test_one_pass_variance_of_16_bits_loses_less_than_rounding(mean):
    x = np.random.default_rng(0).standard_normal((64, 256)) + mean
    x = jnp.asarray(x, jnp.bfloat16)
    y = np.asarray(x, np.float64)
    exact = (y - y.mean(-1, keepdims=True)) / y.std(-1, keepdims=True)
    norm = layer_norm(1e-12, "bfloat16", None)
    found = norm.apply(norm.init(jax.random.key(0), x), x).astype(jnp.float32)
    np.testing.assert_allclose(found, exact, rtol=2**-7, atol=2**-9)
