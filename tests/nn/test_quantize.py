"""Blocks in eight bits: close to the model that they are of."""

import sys

import jax
import numpy as np
import optax
import pytest

from multimodal.config import load_config
from multimodal.errors import UserError
from multimodal.nn import dense
from multimodal.nn.model import Net, build_model
from multimodal.training.setup import example_batch
from tests import laws

SCAN = [f"modalities.{m}.{k}" for m in ("image", "text") for k in ("scan=True", "remat=full")]


def model_of(kind, overrides=()):
    return build_model(
        load_config("configs/emoji.py:smoke", [f"model.quantize={kind}", *overrides])
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    empty = example_batch(load_config("configs/emoji.py:smoke"), 4)
    return empty | {
        "image": rng.integers(0, 256, empty["image"].shape).astype(np.uint8),
        "text": rng.integers(1, 256, empty["text"].shape).astype(np.int32),
    }


def loss(model, params, batch):
    net = Net(model, params, chunks=2)
    out = net.encode(batch)
    fused = net.fuse(out["text"].tokens, out["image"].tokens).x
    pattern = np.sin(np.arange(fused.size).reshape(fused.shape))
    return (out["image"].embed * out["text"].embed).sum() + (fused * pattern).mean()


@pytest.mark.parametrize(("kind", "short"), [("int8", "i8["), ("fp8", "f8_e4m3fn[")])
@pytest.mark.parametrize("overrides", [(), SCAN], ids=["unrolled", "scanned"])
def test_products_are_of_eight_bits(batch, kind, short, overrides):
    pytest.importorskip("qwix", reason="the extra quantize is not installed")
    exact, small = model_of("", overrides), model_of(kind, overrides)
    params = jax.eval_shape(exact.init, jax.random.key(0), batch)["params"]
    assert short in str(jax.make_jaxpr(lambda p: loss(small, p, batch))(params))
    assert short not in str(jax.make_jaxpr(lambda p: loss(exact, p, batch))(params))


def test_a_cpus_form_of_products_leaves_qwix_its_gradients(batch, monkeypatch):
    pytest.importorskip("qwix", reason="the extra quantize is not installed")
    model = model_of("int8")
    params = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]

    def blocks():
        jaxpr = jax.make_jaxpr(jax.grad(lambda p: loss(model, p, batch)))(params)
        return [str(e) for e in jaxpr.eqns if "i8[" in str(e)]

    here = blocks()
    monkeypatch.setattr(dense, "platform", lambda: "tpu")
    assert len(here) > 50 and here == blocks()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_values_and_gradients_stay_close(batch, kind):
    pytest.importorskip("qwix", reason="the extra quantize is not installed")
    exact, small = model_of("", SCAN), model_of(kind, SCAN)
    params = laws.initial(exact, batch)
    (value, grad), (value8, grad8) = (
        jax.jit(jax.value_and_grad(lambda p, m=m: loss(m, p, batch)))(params)
        for m in (exact, small)
    )
    assert abs(value - value8) < 0.1
    cosine = optax.tree.vdot(grad, grad8) / optax.tree.norm(grad) / optax.tree.norm(grad8)
    assert cosine > 0.97


def test_without_qwix_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"-e '\.\[quantize\]"):
        model_of("int8")
