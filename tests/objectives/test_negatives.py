"""Hard negatives: the draws of the whole matrix, whatever the blocks and the mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal.objectives.negatives import draw_negatives
from multimodal.training.sharding import batch_sharding, make_mesh
from tests.objectives.test_blockwise import MESHES, features


@jax.jit
def by_formula(rng, x, y, ids, present, index, scale):
    """What draw_negatives computes, with all logits, one key a pair."""
    pairs = jax.vmap(
        lambda i: jax.vmap(lambda j: jax.random.fold_in(jax.random.fold_in(rng, i), j))(index)
    )(index)
    noise = jax.vmap(jax.vmap(jax.random.gumbel))(pairs)
    allowed = (ids[:, None] != ids[None]) & present[:, None] & present[None]
    noisy = jnp.where(allowed, scale * (x @ y.T) + noise, -jnp.inf)
    return noisy.argmax(1), allowed.any(1)


def arguments(n, seed=0):
    xs, ids, present = features(n, seed=seed)
    index = jnp.asarray(np.random.default_rng(seed).permutation(1000)[:n], jnp.int32)
    return jax.random.key(seed), xs[0], xs[1], ids, present, index, jnp.float32(3.0)


def assert_equal(found, wanted):
    for f, w in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(f, w)


@pytest.mark.parametrize("n, block", [(24, 0), (24, 24), (24, 7), (23, 1), (1, 0), (2, 1)])
def test_any_block_on_one_device(n, block):
    given = arguments(n)
    assert_equal(
        jax.jit(functools.partial(draw_negatives, block=block))(*given), by_formula(*given)
    )


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("block", [0, 16])
def test_any_mesh(shape, block):
    mesh = make_mesh(data=shape[0], fsdp=shape[1])
    given = arguments(48, seed=1)
    with jax.set_mesh(mesh):
        rows = jax.device_put(given[1:6], batch_sharding(mesh))
        run = jax.jit(functools.partial(draw_negatives, block=block))
        found = run(given[0], *rows, given[6])
    assert_equal(found, by_formula(*given))


def test_without_negatives_the_place_is_0_and_not_found():
    rng, x, y, _, _, index, scale = arguments(8)
    present = jnp.arange(8) != 3
    ids = jnp.where(jnp.arange(8) < 6, 0, 1)  # 6 and 7 are the others' only negatives
    choice, found = draw_negatives(rng, x, y, ids, present, index, scale, block=3)
    assert found.tolist() == [True] * 3 + [False] + [True] * 4
    assert choice[3] == 0 and set(choice[:3].tolist()) <= {6, 7}
    assert set(choice[6:].tolist()) <= {0, 1, 2, 4, 5}
    choice, found = draw_negatives(rng, x, y, jnp.zeros(8, int), present, index, scale)
    assert not found.any() and not choice.any()


def test_draws_are_in_proportion_to_exp_of_logits():
    x = jnp.eye(4)[:1].repeat(4, 0)
    y = jnp.log(jnp.array([[1.0], [2.0], [3.0], [4.0]])) * jnp.eye(4)[:1]
    given = x, y, jnp.arange(4), jnp.ones(4, bool), jnp.arange(4), 1.0
    keys = jax.random.split(jax.random.key(0), 4000)
    choice, _ = jax.vmap(lambda k: draw_negatives(k, *given, block=3))(keys)
    shares = np.bincount(choice[:, 0], minlength=4) / 4000
    np.testing.assert_allclose(shares, [0, 2 / 9, 3 / 9, 4 / 9], atol=0.03)


def test_all_pairs_are_never_held():
    n, given = 2048, arguments(1000)
    x, y = jnp.zeros((2, n, 12))
    given = given[0], x, y, jnp.arange(n), jnp.ones(n, bool), jnp.arange(n), given[6]
    held = [
        jax.jit(functools.partial(draw_negatives, block=b)).lower(*given).compile()
        .memory_analysis().temp_size_in_bytes for b in (64, n)
    ]  # fmt: skip
    assert held[0] < held[1] / 8 and held[1] > 4 * n * n
