"""Blocks: whatever the backward pass computes again, gradients stay; what 16 bits may change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import NamedSharding, PartitionSpec

from multimodal.nn.layers import (
    KEPT,
    POLICIES,
    REMAT,
    BlockConfig,
    Layers,
    Stack,
    gelu,
    keeps,
    layer_norm,
)
from multimodal.nn.rows import add_positions, embed
from multimodal.training.sharding import make_mesh
from tests import laws


@pytest.mark.parametrize(
    ("remat", "unroll"),
    [
        *((remat, 1) for remat in (*POLICIES, *REMAT)),
        *(("context+residual+up", n) for n in (1, 2, 9)),
    ],
)
def test_remat_and_unrolling_change_no_gradient(remat, unroll):
    x = np.random.default_rng(0).standard_normal((2, 5, 16), np.float32)
    stack = Stack(BlockConfig(16, 2, 32), Layers(3, scan=True))
    params = stack.init(jax.random.key(0), x)

    def gradient(stack):
        return jax.jit(jax.grad(lambda p: (stack.apply(p, x) ** 3).sum()))(params)

    changed = stack.clone(layers=Layers(3, scan=True, unroll=unroll, remat=remat))
    assert laws.worst(gradient(changed), gradient(stack)) < 1e-5


# Forward 8 products (query, key, value, logits, values, out, up, down), backward twice as many.
@pytest.mark.parametrize(
    ("remat", "again"),
    [
        ("none", 0),
        ("products", 0),
        ("dots", 2),  # logits, values
        ("full", 7),  # all but down
        ("attention", 3),  # logits, out, up
        ("context", 6),  # all but values, down
        ("context+residual+up", 4),  # query, key, value, logits
        ("query+key+value+context+residual+up", 1),
        ("elementwise", 1),  # logits, as XLA attends
    ],
)
def test_what_is_kept_is_not_computed_again(remat, again):
    cfg = BlockConfig(16, 2, 32, dtype="bfloat16", attention_kernel="bfloat16")
    x = jnp.zeros((2, 128, 16), jnp.bfloat16)

    def products(remat):
        stack = Stack(cfg, Layers(1, remat=remat))
        params = jax.eval_shape(stack.init, jax.random.key(0), x)
        grad = jax.value_and_grad(lambda p, x: stack.apply(p, x).astype(jnp.float32).sum(), (0, 1))
        jaxpr = jax.make_jaxpr(grad)(params, x).jaxpr
        jaxpr = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]
        return str(jaxpr).count("dot_general[")

    assert products(remat) == 24 + again


def test_every_name_keeps_something():
    def kept(remat):
        stack = Stack(BlockConfig(16, 2, 32), Layers(1, remat=remat))
        x = jnp.zeros((2, 5, 16))
        params = jax.eval_shape(stack.init, jax.random.key(0), x)
        back = jax.eval_shape(lambda p, x: jax.vjp(stack.apply, p, x)[1], params, x)
        return sum(leaf.size for leaf in jax.tree.leaves(back))

    # [2, 5, 16] or, of the MLP, 32; a bias of 16 or 32 may no longer be needed instead.
    more = {name: kept(name) - kept("full") for name in KEPT}
    sizes = dict.fromkeys(KEPT, 160) | {"normed": 320, "up": 320, "act": 320}  # of two norms
    assert all(0.9 * sizes[n] <= k <= 1.01 * sizes[n] for n, k in more.items()), more


def test_kept_context_goes_with_what_cudnn_gives_beside_it(monkeypatch):
    """cuDNN's attention is not computed again, as its normalisers are kept too."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 99_999)
    monkeypatch.setattr(fused, "check_compute_capability", lambda *_: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda *_: False)
    cfg = BlockConfig(16, 2, 32, dtype="bfloat16", attention_kernel="cudnn")
    x = jnp.zeros((2, 5, 16), jnp.bfloat16)

    def forward_passes(remat):
        stack = Stack(cfg, Layers(1, remat=remat))
        params = jax.eval_shape(stack.init, jax.random.key(0), x)
        grad = jax.grad(lambda p: stack.apply(p, x).astype(jnp.float32).sum())
        jaxpr = jax.make_jaxpr(grad)(params).jaxpr
        jaxpr = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]
        return str(jaxpr).count("dot_product_attention_fwd_wrapper[")

    found = {remat: forward_passes(remat) for remat in ("none", "full", "elementwise")}
    assert found == {"none": 1, "full": 2, "elementwise": 1}


def test_gradients_of_rows_that_many_examples_share_are_summed_in_float32():
    """In bfloat16 256 + 1 is 256."""
    ids = jnp.zeros((40, 10), jnp.int32).at[0, 0].set(2)
    table, rows = jnp.ones((3, 4)), jnp.ones((1, 10, 4))

    def loss(table, rows):
        return add_positions(embed(table, ids, "bfloat16"), rows).astype(jnp.float32).sum()

    of_table, of_rows = jax.grad(loss, (0, 1))(table, rows)
    assert (np.asarray(of_table) == [[399], [0], [1]]).all()
    assert of_table.dtype == of_rows.dtype == jnp.float32 and (np.asarray(of_rows) == 40).all()
    assert (np.asarray(embed(table, ids, "bfloat16")) == 1).all()
    exact = jax.grad(lambda t: (jnp.take(t, ids, axis=0) ** 3).sum())(table)
    assert laws.worst(jax.grad(lambda t: (embed(t, ids, "float32") ** 3).sum())(table), exact) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_of_norms_are_not_computed_again(dtype):
    norm, x = layer_norm(1e-6, dtype, None), jnp.zeros((2, 5, 16), dtype)
    params = norm.init(jax.random.key(0), x)

    def sums(apply):
        grad = jax.value_and_grad(lambda p, x: apply(p, x).astype(jnp.float32).sum(), (0, 1))
        jaxpr = jax.make_jaxpr(grad)(params, x).jaxpr
        return str(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]).count("reduce_sum[")

    assert sums(jax.checkpoint(norm.apply, policy=keeps("full"))) == sums(norm.apply)
    assert sums(jax.checkpoint(norm.apply)) > sums(norm.apply)


@pytest.mark.parametrize("remat", ["full", "context+residual+up"])
def test_remat_of_rows_that_examples_share_changes_no_gradient(remat):
    half = dict(dtype="bfloat16", attention_kernel="bfloat16")
    cfg = BlockConfig(16, 2, 32, causal=True, key_bias=False, **half)  # whose gradient is rounding
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 64, 16)), jnp.bfloat16)
    stack = Stack(cfg, Layers(2, scan=True))
    params = stack.init(jax.random.key(0), x)

    def gradient(remat):
        changed = stack.clone(layers=Layers(2, scan=True, remat=remat))
        return jax.jit(jax.grad(lambda p: changed.apply(p, x).astype(jnp.float32).std()))(params)

    # Another compilation rounds to 16 bits in other places.
    assert laws.worst(gradient(remat), gradient("none")) < 2**-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_norm_is_flaxs_to_the_bit(dtype):
    x = np.random.default_rng(0).normal(2, 3, (5, 7, 32)).astype(dtype)
    flaxs = nn.LayerNorm(epsilon=1e-5, dtype=dtype, use_fast_variance=dtype == "bfloat16")
    params = {"params": {k: np.random.default_rng(1).random(32) for k in ("scale", "bias")}}
    params = jax.tree.map(jnp.float32, params)
    ours, theirs = (jax.jit(m.apply)(params, x) for m in (layer_norm(1e-5, dtype, None), flaxs))
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


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


def test_gradients_of_shared_rows_gather_no_examples(monkeypatch):
    """As on GPUs, where positions' gradient fixes a layout: a device sums over its own examples."""
    table, rows = jnp.ones((64, 8)), jnp.ones((1, 6, 8))
    ids = jnp.zeros((16, 6), jnp.int32)

    def loss(table, rows, ids):
        return (add_positions(embed(table, ids, "float32"), rows) ** 2).sum()

    exact = jax.grad(loss, (0, 1))(table, rows, ids)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda x, cuda, default: cuda(x))
    mesh = make_mesh(fsdp=2)
    with jax.set_mesh(mesh):
        spread = jax.device_put(ids, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(table, rows, spread).compile()
        found = compiled(table, rows, spread)
    assert "all-reduce" in compiled.as_text() and "all-gather" not in compiled.as_text()
    assert laws.worst(found, exact) < 1e-6
