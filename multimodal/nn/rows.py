"""Rows of tables for words and positions, whose gradients many examples add up to."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from multimodal.nn.batch import batch_axes


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

    For the sum over examples that is the gradient of rows, XLA for GPUs would store x, and the
    residual stream with it, so that neighbours in memory are of different examples, and transpose
    that before every product.
    """
    return x + rows.astype(x.dtype)


def _add_positions(x, rows):
    return add_positions(x, rows), rows


def _add_positions_gradient(rows, g):
    kept = jax.lax.platform_dependent(g, cuda=in_rows, default=lambda x: x)
    return g, wide(kept).sum(0).reshape(rows.shape).astype(rows.dtype)


add_positions.defvjp(_add_positions, _add_positions_gradient)


def in_rows(x):
    """x [B, ...] stored example after example, each as its axes are; every device its part."""

    def local(x):
        return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

    axes = batch_axes(len(x))
    if not axes:
        return local(x)
    spec = PartitionSpec(axes)
    return jax.shard_map(local, in_specs=spec, out_specs=spec, check_vma=False)(x)
