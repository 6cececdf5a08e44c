"""Masked means and random draws that depend on examples, not on their places in the batch."""

import jax
import jax.numpy as jnp


def dot(a, b, ca, cb):
    """Product over axis ca of a and cb of b, accumulated in at least float32. Operands of less than
    float32 are multiplied as they are, others in full: TPUs and recent GPUs would use fewer bits.
    """
    wide = jnp.promote_types(a.dtype, jnp.float32)
    precision = jax.lax.Precision.HIGHEST if a.dtype == wide else None
    return jax.lax.dot_general(
        a, b, (((ca,), (cb,)), ((), ())), precision=precision, preferred_element_type=wide
    )


def similarity(x, y):
    """x y^T [B, C]; see dot."""
    return dot(x, y, 1, 1)


def masked_mean(x, w):
    """Mean of x where w is set; 0 where nothing is."""
    w = jnp.broadcast_to(w, x.shape).astype(x.dtype)
    return jnp.where(w > 0, x, 0).sum() / jnp.maximum(w.sum(), 1)


def index_of(batch, size):
    """[B] what tells examples apart for random draws: batch['index'], else their places."""
    return batch.get("index", jnp.arange(size))
