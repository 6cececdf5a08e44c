"""Rows of a batch that lies over many devices, by their number, without gathering all of it."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from multimodal.nn.batch import batch_axes
from multimodal.objectives.blockwise import over

CAPACITY = 4  # rows that a device asks another one for in a round


def fetch(tree, index, how="auto", capacity=CAPACITY):
    """v[index] for every array v [B, ...] of a pytree.

    Args:
      index: [B] int, rows of the whole batch.
      how: 'gather' leaves it to the compiler, which gathers every v on every device; 'all_to_all'
        moves just the rows asked for, in as many rounds as it takes; 'auto': the latter where the
        batch lies over several devices, but for CPUs of several processes. The result is the same.
      capacity: rows that each device asks each other one for in a round.
    """
    axes = batch_axes(len(index))
    if how == "gather" or not axes or (how == "auto" and _out_of_order()):
        return jax.tree.map(lambda v: v[index], tree)

    def one(v):
        if jnp.issubdtype(v.dtype, jax.dtypes.prng_key):
            moved = _exchange(axes, capacity, jax.random.key_data(v), index)
            return jax.random.wrap_key_data(moved, impl=jax.random.key_impl(v))
        return _exchange(axes, capacity, v, index)

    return jax.tree.map(one, tree)


def _out_of_order():
    """Whether exchanges of a loop and those beside it may start in another order in each process:
    XLA runs them so on CPUs, and gloo then waits for ever.
    """
    return jax.default_backend() == "cpu" and jax.distributed.is_initialized()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _exchange(axes, capacity, x, index):
    return _forward(axes, capacity, x, index)[0]


def _forward(axes, capacity, x, index):
    def run(x, index):
        def send(at, slot, mine, out):
            rows = lax.all_to_all(x[at.reshape(-1)], axes, 0, 0, tiled=True)
            return jnp.where(_like(mine, out), rows[slot], out)

        return _rounds(axes, capacity, index, jnp.zeros_like(x), send)

    return over(axes, run, (True, True), True)(x, index), index


def _backward(axes, capacity, index, g):
    """The same rounds the other way: each cotangent goes to the row's owner, who adds it up."""

    def run(g, index):
        def send(at, slot, mine, out):
            parts = jnp.zeros((at.size, *g.shape[1:]), g.dtype)
            parts = parts.at[jnp.where(mine, slot, at.size)].set(g, mode="drop")
            parts = lax.all_to_all(parts, axes, 0, 0, tiled=True)
            return out.at[at.reshape(-1)].add(parts.astype(out.dtype))

        sums = jnp.zeros(g.shape, jnp.promote_types(g.dtype, jnp.float32))
        return _rounds(axes, capacity, index, sums, send).astype(g.dtype)

    if not jnp.issubdtype(g.dtype, jnp.inexact):
        return None, None
    return over(axes, run, (True, True), True)(g, index), None


_exchange.defvjp(_forward, _backward)


def _rounds(axes, capacity, index, out, send):
    """Fold send(at, slot, mine, out) over the rounds that serve every request, equally many on all
    devices.

    at: [n, capacity] own rows that the others ask for in this round; slot: [M] where a row lies in
    the flattened [n * capacity] exchange; mine: [M] whether it is this round's turn.
    """
    m, n = len(index), math.prod(lax.axis_size(a) for a in axes)
    owner, row = index // m, index % m
    asked = (owner[:, None] == jnp.arange(n)[None]).astype(jnp.int32)
    rank = jnp.take_along_axis(jnp.cumsum(asked, 0), owner[:, None], 1)[:, 0] - 1
    last = lax.pmax(rank.max(), axes) // capacity

    def turn(state):
        r, out = state
        mine = rank // capacity == r
        slot = owner * capacity + rank % capacity
        want = jnp.zeros(n * capacity, index.dtype)
        want = want.at[jnp.where(mine, slot, n * capacity)].set(row, mode="drop")
        at = lax.all_to_all(want.reshape(n, capacity), axes, 0, 0, tiled=True)
        return r + 1, send(at, slot, mine, out)

    return lax.while_loop(lambda s: s[0] <= last, turn, (jnp.zeros((), rank.dtype), out))[1]


def _like(mask, x):
    return mask.reshape(-1, *[1] * (x.ndim - 1))
