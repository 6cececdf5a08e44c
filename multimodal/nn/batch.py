"""What the batch axis asks of every layer: its sharding, and randomness by example."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

BATCH_AXES = ("replica", "data", "fsdp")


def batch_axes(size: int) -> tuple[str, ...]:
    """The axes of the mesh that is set which a batch of this size lies over; () on one device, or
    where it does not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(a for a in BATCH_AXES if a in mesh.axis_names and mesh.shape[a] > 1)
    return axes if size % device_count(axes) == 0 else ()


def device_count(axes) -> int:
    """Devices along these axes of the mesh that is set."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[a] for a in axes)


def platform() -> str:
    """The platform, 'cpu' say, of the mesh that is set, else the default backend: what is compiled
    for other devices than are here, for a plan, is traced for them.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def shard_batch(x):
    """Keep the leading axis of x sharded over the mesh's batch axes, if a mesh is set and divides
    it.

    One such constraint a block keeps the partitioner from re-sharding activations under FSDP.
    """
    axes = batch_axes(len(x))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes)) if axes else x


def fold_keys(keys, data: int):
    """Fold an integer into per-example keys [B]; None stays None."""
    return None if keys is None else jax.vmap(lambda k: jax.random.fold_in(k, data))(keys)


def dropout(x, rate: float, keys):
    """Inverted dropout of x [B, ...] with one PRNG key an example; identity where keys is None."""
    if keys is None or not rate:
        return x
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
