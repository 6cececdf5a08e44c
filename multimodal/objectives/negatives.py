"""Hard negatives by draws that depend on pairs of examples, not on their places in the batch."""

import jax
import jax.numpy as jnp

from multimodal.nn.batch import batch_axes
from multimodal.nn.model import example_keys
from multimodal.objectives import blockwise
from multimodal.objectives.sampling import dot

TILE = 1 << 22  # pairs that a device looks at together


def draw_negatives(rng, x, y, ids, present, index, scale, block=0):
    """For each row of x one of y, drawn in proportion to exp(scale x y^T) among present examples of
    other ids, in blocks of columns: [B, B] is never held.

    The draw is the largest of logits with Gumbel noise (Gumbel 1954; Maddison et al. 2014, A*
    sampling), whose entry (i, j) depends on examples i and j only: leaving out or moving others
    changes none. ALBEF masks its softmax afterwards, and dies where what is left underflows.

    Args:
      rng: a key; index: [B] int, what tells examples apart; x, y: [B, d]; ids: [B] int; present:
        [B] bool; scale: scalar.
      block: columns at a time, of all devices; 0: TILE pairs of each device.
    Returns: places in the batch [B] int32 (0 for a row without any negative), found [B] bool; no
      gradient.
    """
    axes, size = batch_axes(len(x)), len(x)

    def run(x, y, ids, present, index, place, rng, scale):
        rows = example_keys(jax.random.wrap_key_data(rng), index)

        def tile(found, z, j, v, i, at):
            z, j, v, i, at = blockwise.gather(axes, z, j, v, i, at)
            logits = scale * dot(x, z, 1, 1)
            noisy = logits + pair_gumbel(rows, i).astype(logits.dtype)
            allowed = (ids[:, None] != j[None]) & present[:, None] & v[None]
            return blockwise.best(found, jnp.where(allowed, noisy, -jnp.inf), at), ()

        columns = block or max(1, TILE // len(x))
        none = jnp.full(len(x), -jnp.inf, blockwise.sum_dtype(x)), jnp.zeros(len(x), place.dtype)
        (best, choice), _ = blockwise.stream(
            tile, none, (y, ids, present, index, place), axes, columns
        )
        return choice, best > -jnp.inf

    given = x, y, ids, present, index, jnp.arange(size, dtype=jnp.int32), jax.random.key_data(rng)
    given = map(jax.lax.stop_gradient, (*given, scale))
    return blockwise.over(axes, run, (True,) * 6 + (False,) * 2, (True, True))(*given)


def pair_gumbel(rows, index):
    """Gumbel noise [M, C] of rows' keys [M] and columns' index [C]."""
    return jax.vmap(lambda k: jax.vmap(jax.random.gumbel)(example_keys(k, index)))(rows)
