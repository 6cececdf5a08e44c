"""The momentum queue of teacher embeddings (He et al. 2020, MoCo; Li et al. 2021, ALBEF section
3.2).
"""

import jax
import jax.numpy as jnp

from multimodal.nn.model import unit

EMPTY = -1  # the id of a slot that nothing was written to


def empty_queue(size: int, dims: dict, rng, dtype=jnp.float32):
    """A queue of `size` slots: {m: [size, E]} unit-length noise, 'id' [size] (EMPTY), 'ptr' scalar.

    ALBEF counts the noise as negatives; the corrected mode skips empty slots.
    """
    keys = jax.random.split(rng, len(dims))
    queue = {
        m: unit(jax.random.normal(k, (size, d), dtype))
        for k, (m, d) in zip(keys, sorted(dims.items()), strict=True)
    }
    return queue | {"id": jnp.full((size,), EMPTY, jnp.int32), "ptr": jnp.zeros((), jnp.int32)}


def enqueue(queue, embeds: dict, ids, keep):
    """Write a batch's teacher embeddings over the oldest entries.

    Args:
      embeds: {m: [B, E]}; ids: [B]; keep: [B] bool, examples that have every modality of the queue.
        Others are written as empty slots, so that the pointer does not depend on the data.
    A batch of any size: the queue's size need not be a multiple, and the newest survive a batch
    larger than the queue.
    """
    size = len(queue["id"])
    ids = jnp.where(keep, ids, EMPTY)
    start = max(0, len(ids) - size)
    slots = (queue["ptr"] + jnp.arange(start, len(ids))) % size
    new = {m: queue[m].at[slots].set(embeds[m][start:].astype(queue[m].dtype)) for m in embeds}
    return new | {
        "id": queue["id"].at[slots].set(ids[start:].astype(jnp.int32)),
        "ptr": (queue["ptr"] + len(ids)) % size,
    }
