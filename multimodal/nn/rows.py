"""Rows of tables for words and positions, whose gradients many examples add up to."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


def wide(x):
    """x in float32 or better."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def embed(table, ids, dtype):
    """table[ids] in this type: [V, D], [...] -> [..., D]. A row's gradient is summed in float32: in
    16 bits a word that occurs a few hundred times in a batch would no longer count.
    """
    return jnp.take(table.astype(dtype), ids, axis=0)


def _embed(table, ids, dtype):
    return embed(table, ids, dtype), (table, ids)


def _embed_gradient(dtype, kept, g):
    table, ids = kept
    g = wide(g)
    return jnp.zeros(table.shape, g.dtype).at[ids].add(g).astype(table.dtype), None


embed.defvjp(_embed, _embed_gradient)


@jax.custom_vjp
def add_positions(x, rows):
    """x [B, T, D] + rows [1, T, D], or [T, D], in x's type.

    On a GPU XLA would sum rows' gradient along an axis that lies next to each other, so lay out x
    and all that it is added to with the batch last, and transpose that before every product.
    """
    return x + rows.astype(x.dtype)


def _add_positions(x, rows):
    return add_positions(x, rows), rows


def _add_positions_gradient(rows, g):
    kept = jax.lax.platform_dependent(g, cuda=in_rows, default=lambda x: x)
    return g, wide(kept).sum(0).reshape(rows.shape).astype(rows.dtype)


add_positions.defvjp(_add_positions, _add_positions_gradient)


def in_rows(x):
    """x with its last axis next to each other in memory, the first one farthest apart."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))
