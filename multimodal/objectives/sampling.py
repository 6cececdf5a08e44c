"""Masked means and random draws that depend on examples, not on their places in the batch."""

import jax
import jax.numpy as jnp

from multimodal.nn.model import example_keys


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


def pair_gumbel(rng, index):
    """[B, B] Gumbel noise; entry (i, j) depends on examples i and j only, so that masking or moving
    others
    changes no draw."""
    rows = example_keys(rng, index)
    keys = jax.vmap(lambda k: example_keys(k, index))(rows)
    return jax.vmap(jax.vmap(jax.random.gumbel))(keys)


def draw_negatives(rng, logits, allowed, index):
    """One column a row, drawn in proportion to exp(logits) among the allowed ones.

    Masking comes before the softmax (as -inf); ALBEF zeroes after it and dies when the rest
    underflows.

    Args:
      logits: [B, B]; allowed: [B, B] bool; index: [B].
    Returns: choice [B] int32 (0 for a row without any allowed column), found [B] bool.
    """
    noisy = jnp.where(allowed, logits + pair_gumbel(rng, index).astype(logits.dtype), -jnp.inf)
    return jnp.argmax(noisy, axis=1), allowed.any(1)
