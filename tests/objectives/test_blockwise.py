"""The kernel law: contrastive losses by blocks are the plain ones, value and gradient, on any mesh,
with duplicate ids, missing pairs, a teacher and a queue, at any block size and temperature.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal.objectives import contrastive as c
from multimodal.objectives.blockwise import nearest, sigmoid_pairs, softmax_pairs
from multimodal.objectives.blockwise_soft import softmax_rows
from multimodal.training.sharding import batch_sharding, make_mesh

MESHES = [(8, 1), (4, 2), (2, 4), (1, 8)]
LIMIT = {"float32": 1e-6, "float64": 1e-12}


def features(n=24, d=12, seed=0, dtype=np.float32):
    """x, y, the teacher's x, y; ids with duplicates; a mask with holes."""
    rng = np.random.default_rng(seed)
    xs = rng.standard_normal((4, n, d))
    xs /= np.linalg.norm(xs, axis=-1, keepdims=True)
    ids = rng.integers(0, max(1, n * 2 // 3), n).astype(np.int32)
    return jnp.asarray(xs, dtype), jnp.asarray(ids), jnp.asarray(rng.random(n) < 0.8)


def queue_of(n=16, d=12, dtype=np.float32):
    (q, *_), ids, valid = features(n, d, seed=7, dtype=dtype)
    return q, ids, valid


def plain_pairs(x, y, ids, valid, scale, block=0):
    halves = [
        c.plain_rows(p, None, (q, None), None, ids, valid, scale) for p, q in ((x, y), (y, x))
    ]
    return sum(halves) / 2, c.plain_nearest(x, y, ids, valid)


def plain_sigmoid(x, y, ids, valid, scale, bias, block=0):
    logits = scale * c.similarity(x, y) + bias
    signed = jnp.where(ids[:, None] == ids[None], logits, -logits)
    loss = -jnp.where(valid[:, None] & valid[None], jax.nn.log_sigmoid(signed), 0).sum(1)
    return c.masked_mean(loss, valid), c.plain_nearest(x, y, ids, valid)


def graded(fn, x, y, ids, valid, *scalars, block=0):
    """(loss, metric, gradients of x, y and the scalars)."""

    def run(x, y, *scalars):
        return fn(x, y, ids, valid, *scalars, block=block)

    many = tuple(range(2 + len(scalars)))
    (loss, hits), grads = jax.jit(jax.value_and_grad(run, argnums=many, has_aux=True))(
        x, y, *scalars
    )
    return loss, hits, grads


def worst(found, wanted):
    """Largest error relative to the largest entry of each array, at least 1e-3."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    errors = [
        np.abs(np.asarray(f) - np.asarray(w)).max() / max(np.abs(np.asarray(w)).max(), 1e-3)
        for f, w in pairs
    ]
    return np.max(errors)  # not Python's max, which passes over what is not a number


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_pairs_on_every_mesh(kind, shape, dtype):
    ours, plain = {
        "softmax": (softmax_pairs, plain_pairs),
        "sigmoid": (sigmoid_pairs, plain_sigmoid),
    }[kind]
    with jax.enable_x64(dtype == "float64"):
        xs, ids, valid = features(dtype=dtype)
        scalars = [jnp.asarray(v, dtype) for v in ((14.3,), (9.0, -4.0))[kind == "sigmoid"]]
        wanted = graded(plain, *xs[:2], ids, valid, *scalars)
        mesh = make_mesh(*shape)
        with jax.set_mesh(mesh):
            place = functools.partial(jax.device_put, device=batch_sharding(mesh))
            rows = [place(v) for v in (*xs[:2], ids, valid)]
            for block in (0, 8):  # one slice, and one column a device at a time
                found = graded(ours, *rows, *scalars, block=block)
                assert worst(found[::2], wanted[::2]) < LIMIT[dtype]
                assert found[1] == pytest.approx(float(wanted[1]))


@pytest.mark.parametrize("shape", [(4, 2), (1, 8), None])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("with_queue, alpha", [(True, 0.4), (False, 0.0), (True, 0.0)])
def test_rows_with_teacher_and_queue(shape, frozen, with_queue, alpha):
    with jax.enable_x64(True):
        (x, y, tx, ty), ids, valid = features(dtype=np.float64)
        queue = queue_of(dtype=np.float64) if with_queue else None
        scale = jnp.asarray(20.0)

        def value(fn, x, tx, y, ty, queue, ids, valid, **kw):
            def run(x, y, scale):
                seen = jax.lax.stop_gradient(y) if frozen else y
                teachers = (seen, ty)
                return fn(x, tx, teachers, queue, ids, valid, scale, alpha=alpha, **kw)

            return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2)))(x, y, scale)

        wanted = value(c.plain_rows, x, tx, y, ty, queue, ids, valid, frozen=frozen)
        given = (x, tx, y, ty, queue, ids, valid)
        if shape is None:
            found = [value(softmax_rows, *given, frozen=frozen, block=b) for b in (0, 5)]
        else:
            mesh = make_mesh(*shape)
            with jax.set_mesh(mesh):
                given = jax.device_put(given, batch_sharding(mesh))
                found = [value(softmax_rows, *given, frozen=frozen, block=b) for b in (0, 8)]
        for one in found:
            assert worst(one, wanted) < 1e-12


@pytest.mark.parametrize("n, block", [(1, 4), (7, 3), (13, 13), (13, 5), (24, 1)])
def test_any_size_on_one_device(n, block):
    """Blocks that do not divide, one pair, none valid: exact and finite."""
    xs, ids, valid = features(n)
    for mask in (valid, jnp.ones(n, bool), jnp.zeros(n, bool)):
        for scale in (1.0, 100.0):  # the temperature's bounds
            ours = graded(softmax_pairs, *xs[:2], ids, mask, jnp.float32(scale), block=block)
            wanted = graded(plain_pairs, *xs[:2], ids, mask, jnp.float32(scale))
            assert np.isfinite(jax.tree.leaves(ours)[0])
            assert worst(ours, wanted) < 5e-6
        ours = nearest(*xs[:2], ids, mask, block)
        assert ours == pytest.approx(float(c.plain_nearest(*xs[:2], ids, mask)))


def test_bfloat16_products():
    """Close to the products in full; the gradient comes back in the features' own type."""
    xs, ids, valid = features(64, 32)
    wanted = graded(plain_pairs, *xs[:2], ids, valid, jnp.float32(14.3))
    narrow = [x.astype(jnp.bfloat16) for x in xs[:2]]
    found = graded(softmax_pairs, *narrow, ids, valid, jnp.float32(14.3), block=16)
    assert found[2][0].dtype == jnp.bfloat16
    assert worst(found[0], wanted[0]) < 3e-3 and worst(found[2], wanted[2]) < 3e-2


def test_chosen_by_memory():
    x = np.zeros((256, 64), np.float32)
    assert not c.use_blocks("auto", x, 256) and c.use_blocks("blockwise", x, 256)
    big = np.zeros((8192, 64), np.float32)
    assert c.use_blocks("auto", big, 8192) and not c.use_blocks("plain", big, 8192)


def test_blocks_hold_less():
    """The compiler's own account: temporaries do not grow with N x N."""
    n, d = 4096, 64
    shapes = [jax.ShapeDtypeStruct((n, d), np.float32)] * 2
    ids, valid = jnp.arange(n), jnp.ones(n, bool)

    def temp(fn):
        run = jax.jit(jax.grad(lambda x, y: fn(x, y, ids, valid, 10.0, block=256)[0]))
        return run.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temp(plain_pairs) > 2 * n * n * 4
    assert temp(softmax_pairs) < n * n


@pytest.mark.parametrize("logit", [8.0, 18.0])
def test_sigmoid_of_a_confident_positive_keeps_its_digits(logit):
    x, one = jnp.ones((1, 1)), jnp.ones(1, bool)
    given = (x, x, jnp.zeros(1, jnp.int32), one, jnp.float32(1.0), jnp.float32(logit - 1))
    *_, grads = graded(sigmoid_pairs, *given)
    np.testing.assert_allclose(grads[-1], -1 / (1 + np.exp(np.float64(logit))), rtol=1e-6)


def test_soft_targets_of_bfloat16_features_are_mixed_in_float32():
    (x, y, tx, ty), ids, valid = features(dtype=jnp.bfloat16)
    given = (x, tx, (y, ty), None, ids, valid, jnp.float32(20.0))
    plain, ours = (jax.jit(fn)(*given, alpha=0.4) for fn in (c.plain_rows, softmax_rows))
    np.testing.assert_allclose(ours, plain, rtol=1e-6)
