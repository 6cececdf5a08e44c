"""Blocks: whatever the backward pass computes again, gradients stay."""

import jax
import numpy as np
import pytest

from multimodal.nn.layers import REMAT, BlockConfig, Stack
from tests import laws


@pytest.mark.parametrize("remat", REMAT)
def test_remat_changes_no_gradient(remat):
    x = np.random.default_rng(0).standard_normal((2, 5, 16), np.float32)
    stack = Stack(BlockConfig(16, 2, 32), depth=2, scan=True)
    params = stack.init(jax.random.key(0), x)

    def gradient(stack):
        return jax.jit(jax.grad(lambda p: (stack.apply(p, x) ** 3).sum()))(params)

    assert laws.worst(gradient(stack.clone(remat=remat)), gradient(stack)) < 1e-5
