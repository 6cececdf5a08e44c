"""Products of dense layers: on a CPU the kernel's gradient takes another form, the same value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import (
    AbstractDevice,
    AbstractMesh,
    AxisType,
    PartitionSpec,
    use_abstract_mesh,
)

from multimodal.nn import dense
from multimodal.nn.dense import Dense, DenseGeneral, Heads, product
from multimodal.nn.layers import Mlp
from tests import laws

# Rows, what a kernel takes and what it gives: wider, narrower, square, several axes, few rows.
SHAPES = [
    ((2, 7), (4,), (16,)),
    ((2, 70), (16,), (4,)),
    ((3,), (5,), (5,)),
    ((2, 9), (6,), (2, 3)),
    ((2, 9), (2, 3), (6,)),
    ((2, 90), (2, 8), (2, 3)),
    ((1,), (64,), (2,)),
]


def given(rows, into, out, dtype):
    rng = np.random.default_rng(0)
    arrays = (rng.standard_normal(s) for s in ((*rows, *into), (*into, *out), (*rows, *out)))
    x, kernel, weight = (jnp.asarray(a, dtype) for a in arrays)
    n, k = len(into), len(rows)
    dims = ((tuple(range(k, k + n)), tuple(range(n))), ((), ()))
    return x, kernel, weight, dims


@pytest.mark.parametrize(("rows", "into", "out"), SHAPES)
def test_values_and_gradients_are_those_of_jaxs_product(rows, into, out):
    with jax.enable_x64():
        x, kernel, weight, dims = given(rows, into, out, jnp.float64)

        def loss(multiply, x, kernel):
            return (jnp.tanh(multiply(x, kernel, dims)) * weight).sum()

        def second(multiply, x, kernel):  # a gradient of a gradient, as critics' penalties take
            dx, dk = jax.grad(loss, (1, 2))(multiply, x, kernel)
            return (dx**2).sum() + (dk**3).sum()

        for fn in (loss, second):
            ours, jaxs = (
                jax.jit(jax.value_and_grad(fn, (1, 2)), static_argnums=0)(multiply, x, kernel)
                for multiply in (product, jax.lax.dot_general)
            )
            assert laws.worst(ours, jaxs) < 1e-12


@pytest.mark.parametrize(("rows", "into", "out"), SHAPES)
def test_the_gradient_turns_the_fewer_numbers(rows, into, out):
    """Of x before the product, or of dy before it and the result after."""
    x, kernel, weight, dims = given(rows, into, out, jnp.float32)
    grad = jax.grad(lambda kernel: (product(x, kernel, dims) * weight).sum())
    products = [e for e in jax.make_jaxpr(grad)(kernel).eqns if e.primitive.name == "dot_general"]
    first = products[-1].invars[0].aval.shape
    if x.size <= weight.size + kernel.size:
        assert first == x.shape
    else:
        assert first == weight.shape


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_what_is_compiled_for_other_devices_has_jaxs_own_gradient(kind):
    device = AbstractDevice(device_kind=kind, num_cores=None, platform=kind)
    mesh = AbstractMesh((1,), ("data",), abstract_device=device)
    x, kernel, _, dims = given((2, 7), (4,), (16,), jnp.float32)

    def gradient(fn):
        return str(jax.make_jaxpr(jax.grad(lambda kernel: fn(x, kernel, dims).sum()))(kernel))

    with use_abstract_mesh(mesh):
        there = gradient(product)
    assert there == gradient(jax.lax.dot_general) != gradient(product)


def test_layers_have_flaxs_parameters_and_values():
    x = np.random.default_rng(0).standard_normal((2, 5, 12), np.float32)
    pairs = [
        (Dense(8), nn.Dense(8), x),
        (DenseGeneral(8, axis=(-2, -1)), nn.DenseGeneral(8, axis=(-2, -1)), x.reshape(2, 5, 3, 4)),
    ]
    for ours, flaxs, given in pairs:
        params = ours.init(jax.random.key(1), given)
        assert laws.worst(params, flaxs.init(jax.random.key(1), given)) == 0
        assert laws.worst(ours.apply(params, given), flaxs.apply(params, given)) == 0


def test_heads_are_a_dense_layer_of_the_same_parameters_however_it_adds_its_bias():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 16)), jnp.float32)
    for bias in (True, False):
        usual, flat = (Heads((2, 8), use_bias=bias, flat=flat) for flat in (False, True))
        flaxs = nn.DenseGeneral((2, 8), use_bias=bias)
        params = [m.init(jax.random.key(0), x) for m in (usual, flat, flaxs)]
        assert all(laws.worst(p, params[0]) == 0 for p in params)
        shifted = jax.tree.map(lambda p: p + 0.1, params[0])
        gradients = [
            jax.grad(lambda p, m=m: (m.apply(p, x) ** 3).sum())(shifted)
            for m in (usual, flat, flaxs)
        ]
        assert all(laws.worst(g, gradients[0]) < 1e-5 for g in gradients)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Manual])
def test_where_types_tell_the_layout_jaxs_product_is_taken(kind):
    mesh = AbstractMesh((1,), ("data",), axis_types=(kind,))
    x, kernel, _, dims = given((2, 7), (4,), (16,), jnp.float32)
    with use_abstract_mesh(mesh):
        assert not dense.partitioned_by_xla()
    gradient = jax.shard_map(
        jax.grad(lambda kernel, x: product(x, kernel, dims).sum()),
        mesh=jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,)),
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(),
    )(kernel, x)
    assert laws.worst(gradient, jnp.broadcast_to(x.sum((0, 1))[:, None], kernel.shape)) < 1e-5


def test_mixed_types_have_jaxs_own_gradients():
    x, kernel, _, dims = given((2, 7), (4,), (16,), jnp.float32)
    grads = jax.grad(lambda x, kernel: product(x, kernel, dims).sum(), (0, 1))
    assert [g.dtype for g in grads(x, kernel.astype(jnp.bfloat16))] == [x.dtype, jnp.bfloat16]
    half = [a.astype(jnp.bfloat16) for a in (x, kernel)]
    assert [g.dtype for g in grads(*half)] == [jnp.bfloat16] * 2


def test_an_mlps_gradients_take_no_product_of_the_slow_kind(monkeypatch):
    """JAX's own do. Once they do not either, this rule can go."""
    x = jnp.ones((2, 50, 16))
    mlp = Mlp(16, 64)
    params = mlp.init(jax.random.key(0), x)

    def slow():
        step = jax.jit(jax.grad(lambda p: (mlp.apply(p, x) ** 2).sum()))
        text = step.lower(params).compile().as_text()
        return text.count("lhs_contracting_dims={0}, rhs_contracting_dims={1}")

    ours = slow()
    monkeypatch.setattr(dense, "platform", lambda: "tpu")
    assert ours == 0 < slow()
