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
    larger than the queue. Where it is one, row i of every batch has the slots i Q/B to (i+1) Q/B:
    a device then writes its part of the batch into its part of the queue, whatever their number.
    """
    size, batch = len(queue["id"]), len(ids)
    new = embeds | {"id": jnp.where(keep, ids, EMPTY)}
    old = {k: v for k, v in queue.items() if k != "ptr"}
    if size % batch == 0:
        turn = queue["ptr"] // batch

        def write(q, x):
            turns = q.reshape(batch, size // batch, *q.shape[1:])
            return turns.at[:, turn].set(x.astype(q.dtype)).reshape(q.shape)

    else:
        start = max(0, batch - size)
        slots = (queue["ptr"] + jnp.arange(start, batch)) % size

        def write(q, x):
            return q.at[slots].set(x[start:].astype(q.dtype))

    return {k: write(old[k], new[k]) for k in old} | {"ptr": (queue["ptr"] + batch) % size}


def from_ring(queue, batch):
    """A queue whose batches of that size lie one after the other, as in the original ALBEF's files,
    in the order of enqueue.
    """
    return _reordered(queue, lambda q: q.reshape(-1, batch, *q.shape[1:]))


def to_ring(queue, batch):
    """The inverse of from_ring."""
    return _reordered(queue, lambda q: q.reshape(batch, -1, *q.shape[1:]))


def _reordered(queue, split):
    return {
        k: v if k == "ptr" else split(v).swapaxes(0, 1).reshape(v.shape) for k, v in queue.items()
    }
