"""Attention by every kernel: the same values and gradients."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from multimodal.nn import attention
from multimodal.nn.attention import (
    attend,
    best_kernel,
    by_formula,
    divided,
    examples_a_row,
    flash,
    rounded,
)
from multimodal.nn.layers import Attention, BlockConfig, Layers, Stack
from multimodal.training.sharding import make_mesh


def inputs(t, s, batch=2, heads=2, width=16, dtype=np.float32):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(batch, n, heads, width)).astype(dtype) for n in (t, s, s))
    mask = np.arange(s) < rng.integers(1, s, (batch, 1))
    return q, k, v, mask


def gradients(fn, q, k, v, mask, causal):
    weights = np.random.default_rng(1).normal(size=q.shape)

    def loss(q, k, v):
        return (fn(q, k, v, mask, causal) * weights).sum()

    return jax.value_and_grad(loss, (0, 1, 2))(q, k, v)


def close(a, b, tolerance=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance, rtol=1e-5), a, b)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_xla_is_the_formula(causal, masked):
    q, k, v, mask = inputs(7, 7)
    mask = mask if masked else None

    def xla(*args):
        return attend(*args, kernel="xla")

    close(gradients(xla, q, k, v, mask, causal), gradients(by_formula, q, k, v, mask, causal))


@pytest.mark.parametrize(
    ("t", "s", "causal", "masked"),
    [(128, 128, False, False), (77, 77, True, False), (50, 197, False, True)],
)
def test_flash_is_the_formula_whatever_the_length(t, s, causal, masked):
    q, k, v, mask = inputs(t, s)
    mask = mask if masked else None
    with pltpu.force_tpu_interpret_mode():
        found = jax.jit(lambda *a: gradients(flash, *a, mask, causal))(q, k, v)
    close(found, gradients(by_formula, q, k, v, mask, causal))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("peaked", [1, 8])  # deviation of the logits
def test_rounded_logits_err_at_most_twice_as_much_as_bfloat16_does(peaked, causal):
    q, k, v, mask = inputs(128, 128)
    mask[:, 0] = True  # a causal row without any key is finite, whatever it is

    def found(dtype, kernel):
        def fn(*args):
            *args, mask, causal = args
            args = (x.astype(dtype) for x in args)
            return attend(*args, mask, causal, kernel=kernel).astype(jnp.float32)

        return gradients(fn, peaked * q, k, v, mask, causal)[1]

    exact = found(jnp.float32, "xla")

    def errors(kernel):
        pairs = zip(found(jnp.bfloat16, kernel), exact, strict=True)
        return np.array([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs])

    assert (errors("bfloat16") < 2 * errors("xla")).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_examples_of_a_row_do_not_see_each_other(causal, masked):
    q, k, v, mask = inputs(32, 32, batch=8)
    mask[2] = False  # an example without any key looks at nobody else's either
    mask = mask if masked else None

    def in_rows(*args):
        *args, causal = args
        args = (None if x is None else x.reshape(2, 128, *x.shape[2:]) for x in args)
        return rounded(*args, causal, length=32).reshape(q.shape)

    # rounded rounds to its arguments' type: nothing of float32
    close(gradients(in_rows, q, k, v, mask, causal), gradients(by_formula, q, k, v, mask, causal))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_rows_is_that_of_examples(masked):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 32, 16)), jnp.bfloat16)
    mask = jnp.asarray(np.arange(32) < rng.integers(1, 32, (8, 1))) if masked else None
    layer = Attention(16, 2, dtype="bfloat16")
    params = layer.init(jax.random.key(0), x, x)
    found = layer.clone(attention_kernel="bfloat16").apply(params, x, x, mask)
    assert examples_a_row(x, "bfloat16", "bfloat16") == 4
    assert examples_a_row(x, "bfloat16", "xla") == examples_a_row(x, "float32", "bfloat16") == 1
    assert examples_a_row(x[:6], "bfloat16", "bfloat16") == 1
    close(*(y.astype(jnp.float32) for y in (found, layer.apply(params, x, x, mask))), 2**-6)


def test_rows_are_shared_only_within_a_device():
    x = jnp.zeros((24, 64, 8), jnp.bfloat16)
    with jax.set_mesh(make_mesh()):  # two examples a device
        assert [examples_a_row(x[:b], x.dtype, "bfloat16") for b in (16, 8, 24)] == [2, 1, 1]


def test_only_rounded_attention_takes_shared_rows():
    q, k, v, _ = inputs(128, 128)
    with pytest.raises(ValueError, match="share rows"):
        attend(q, k, v, kernel="bfloat16", length=64)


def test_divided_has_the_quotients_gradient():
    x, total, g = np.random.default_rng(0).random((3, 4, 5, 2, 8), np.float32) + 0.5
    total = total[..., :1]
    found, back = jax.vjp(divided, x, total)
    exact, exact_back = jax.vjp(jnp.divide, x, total)
    close((found, back(g)), (exact, exact_back(g)), 1e-6)


def test_only_bfloat16_is_rounded():
    q, k, v, mask = inputs(7, 7)
    same = attend(q, k, v, mask, kernel="bfloat16") == attend(q, k, v, mask, kernel="xla")
    assert np.asarray(same).all()


def test_flash_works_on_each_devices_part_of_the_batch():
    q, k, v, mask = inputs(20, 30, batch=8)
    with jax.set_mesh(make_mesh(fsdp=2)), pltpu.force_tpu_interpret_mode():
        found = jax.jit(lambda *a: flash(*a, mask))(q, k, v)
    close(found, by_formula(q, k, v, mask))


def test_dropout_and_float64_go_by_the_formula_whatever_the_kernel():
    q, k, v, mask = inputs(4, 4)
    keys = jax.random.split(jax.random.key(0), 2)
    close(
        attend(q, k, v, mask, rate=0.5, keys=keys, kernel="cudnn"),
        by_formula(q, k, v, mask, rate=0.5, keys=keys),
    )


@pytest.mark.parametrize(
    ("platform", "dtype", "t", "s", "kernel"),
    [
        ("cpu", jnp.bfloat16, 1024, 1024, "xla"),
        ("tpu", jnp.bfloat16, 256, 256, "xla"),
        ("tpu", jnp.float32, 1024, 1024, "flash"),
        ("gpu", jnp.bfloat16, 1024, 1024, "cudnn"),
        ("gpu", jnp.bfloat16, 197, 77, "cudnn"),
        ("gpu", jnp.bfloat16, 1024, 32, "xla"),
        ("gpu", jnp.float32, 1024, 1024, "xla"),
    ],
)
def test_auto_takes_what_suits_the_device(monkeypatch, platform, dtype, t, s, kernel):
    monkeypatch.setattr(attention.jax, "default_backend", lambda: platform)
    monkeypatch.setattr(attention, "has_cudnn", lambda: True)
    assert best_kernel("auto", dtype, t, s, 64) == kernel
    assert best_kernel("xla", dtype, t, s, 64) == "xla"
    if min(t, s) < 512:
        assert best_kernel("auto", dtype, t, s, 64, masked=True) == "xla"


@pytest.mark.parametrize("capability", ["7.5", "gfx942", None])
def test_auto_leaves_cudnn_out_where_it_does_not_attend(monkeypatch, capability):
    attention.has_cudnn.cache_clear()
    device = types.SimpleNamespace(compute_capability=capability)
    if capability is None:
        del device.compute_capability
    monkeypatch.setattr(attention.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention.jax, "local_devices", lambda: [device])
    assert best_kernel("auto", jnp.bfloat16, 197, 197, 64) == "xla"
    device.compute_capability = "9.0"
    attention.has_cudnn.cache_clear()
    assert best_kernel("auto", jnp.bfloat16, 197, 197, 64) == "cudnn"
    attention.has_cudnn.cache_clear()


@pytest.mark.parametrize(("causal", "masked"), [(False, False), (True, False), (False, True)])
def test_what_cudnn_is_given_beyond_an_odd_length_is_seen_by_no_other(monkeypatch, causal, masked):
    """It differentiates even lengths only. Tried with XLA in cuDNN's place."""

    def instead(q, k, v, implementation, **kwargs):
        assert implementation == "cudnn" and not (q.shape[1] % 2 or k.shape[1] % 2)
        return usual(q, k, v, implementation="xla", **kwargs)

    usual = jax.nn.dot_product_attention
    q, k, v, mask = inputs(7, 7)
    mask = mask if masked else None
    monkeypatch.setattr(attention.jax.nn, "dot_product_attention", instead)
    found = jax.vjp(lambda *a: attend(*a, mask, causal, kernel="cudnn"), q, k, v)
    exact = jax.vjp(lambda *a: by_formula(*a, mask, causal), q, k, v)
    close((found[0], found[1](q)), (exact[0], exact[1](q)), 1e-5)


def test_a_stack_for_cudnn_fills_up_odd_lengths_once(monkeypatch):
    lengths = []

    def instead(q, k, v, implementation, **kwargs):
        lengths.append((implementation, q.shape[1], kwargs.get("key_value_seq_lengths")))
        return usual(q, k, v, implementation="xla", **kwargs)

    usual = jax.nn.dot_product_attention
    monkeypatch.setattr(attention.jax.nn, "dot_product_attention", instead)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 16)), jnp.bfloat16)
    keys = jax.random.split(jax.random.key(0), 2)
    for causal in (False, True):
        stack = {
            kernel: Stack(
                BlockConfig(16, 2, 32, causal=causal, dtype="bfloat16", attention_kernel=kernel),
                Layers(2),
            )
            for kernel in ("xla", "cudnn")
        }
        params = stack["xla"].init(jax.random.key(1), x)
        exact = stack["xla"].apply(params, x)
        lengths.clear()
        close(stack["cudnn"].apply(params, x), exact, 0.05)
        assert [(kind, t) for kind, t, _ in lengths] == [("cudnn", 6)] * 2
        assert all((real is None) if causal else (real == 5).all() for *_, real in lengths)
    mask = jnp.ones((2, 5), bool).at[0, 3:].set(False)
    assert stack["cudnn"].apply(params, x, None, mask).shape == x.shape
    drops = stack["cudnn"].clone(cfg=dataclasses.replace(stack["cudnn"].cfg, dropout=0.5))
    lengths.clear()
    exact = drops.clone(cfg=dataclasses.replace(drops.cfg, attention_kernel="xla"))
    close(drops.apply(params, x, keys), exact.apply(params, x, keys), 0.05)  # the same draws
