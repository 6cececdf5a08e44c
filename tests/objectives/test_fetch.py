"""Rows by all-to-all: those of plain indexing, gradients too, however many ask one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal.nn.layers import Tokens
from multimodal.objectives.fetch import fetch
from multimodal.training.sharding import batch_sharding, make_mesh

N = 32


def tokens():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((N, 3, 4), np.float32))
    return Tokens(x, jnp.asarray(rng.random((N, 3)) < 0.5), jax.random.split(jax.random.key(1), N))


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 8)])
@pytest.mark.parametrize("asked", ["random", "all of one device", "one row", "own"])
def test_rows_and_gradients(shape, asked):
    rng = np.random.default_rng(3)
    index = {
        "random": rng.integers(0, N, N),
        "all of one device": rng.integers(4, 8, N),
        "one row": np.full(N, 31),
        "own": np.arange(N),
    }[asked]
    t, weights = tokens(), jnp.asarray(rng.standard_normal((N, 3, 4), np.float32))

    def value(x, t, index, how):
        got = fetch(t.replace(x=x), index, how, capacity=2)
        return (got.x**2 * weights).sum(), got

    wanted = jax.value_and_grad(value, has_aux=True)(t.x, t, jnp.asarray(index), "gather")
    mesh = make_mesh(*shape)
    with jax.set_mesh(mesh):
        placed, at = jax.device_put((t, jnp.asarray(index)), batch_sharding(mesh))
        run = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=3)
        found = run(placed.x, placed, at, "all_to_all")
    (_, ours), dx = found
    (_, theirs), wanted_dx = wanted
    np.testing.assert_array_equal(ours.x, theirs.x)
    np.testing.assert_array_equal(ours.mask, theirs.mask)
    np.testing.assert_array_equal(*(jax.random.key_data(v.keys) for v in (ours, theirs)))
    np.testing.assert_allclose(dx, wanted_dx, rtol=1e-5, atol=1e-6)


def test_no_gather_in_the_program():
    mesh = make_mesh(8, 1)
    with jax.set_mesh(mesh):
        x, at = jax.device_put((tokens().x, jnp.arange(N)[::-1]), batch_sharding(mesh))
        text = jax.jit(lambda x, i: fetch(x, i)).lower(x, at).compile().as_text()
    assert "all-to-all" in text and "all-gather" not in text


def test_cotangents_of_bfloat16_are_added_in_float32():
    """One row that all ask for: added up in bfloat16, 32 numbers lose two digits."""
    weights = np.random.default_rng(3).random((N, 3, 4))
    weights = jnp.asarray(weights, jnp.bfloat16)
    t = tokens()
    t = t.replace(x=t.x.astype(jnp.bfloat16))

    def value(x, index):
        return (fetch(t.replace(x=x), index, "all_to_all", capacity=2).x * weights).sum()

    mesh = make_mesh(8, 1)
    with jax.set_mesh(mesh):
        x, at = jax.device_put((t.x, jnp.full(N, 31)), batch_sharding(mesh))
        dx = jax.jit(jax.grad(value))(x, at)
    wanted = np.asarray(weights, np.float64).sum(0)
    np.testing.assert_allclose(np.asarray(dx[31], np.float64), wanted, rtol=2**-8)
