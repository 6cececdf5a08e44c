"""One integer an array, by which a damaged or diverged one is known: exact on any mesh."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from multimodal.training.sharding import path_of

PRIME, MIX = 0x9E3779B1, 0x85EBCA77


def fingerprints(tree) -> dict[str, int]:
    """{path: fingerprint} of a pytree of arrays.

    sum(bits x odd weight(index)) mod 2^32: any change within one element changes it, and integer
    sums do not depend on their order, so that every mesh finds the same.
    """
    # One after the other: where CPUs' processes exchange for several programs at once, each may
    # wait for another.
    return {path_of(p): int(fingerprint(x)) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


@jax.jit  # a program for each kind of array: one of all takes many times as long to compile
def fingerprint(x):
    """uint32 scalar of an array; see fingerprints."""
    words = _words(x)
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):  # no reshape, which would move data between devices
        place = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index = index + place * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    weight = index * jnp.uint32(PRIME)
    weight = (weight ^ (weight >> 15)) * jnp.uint32(MIX) | jnp.uint32(1)
    return jnp.sum(words * weight, dtype=jnp.uint32)


def _words(x):
    """The bits of x as uint32: elements of eight bytes become two, smaller ones are widened."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    kinds = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
    return jax.lax.bitcast_convert_type(x, kinds[x.dtype.itemsize]).astype(jnp.uint32)


def diverged(tree) -> list[str]:
    """Paths of the arrays whose copies on different devices are not the same, bit for bit.

    Each device computes the fingerprint of what it holds; devices that should hold the same compare
    them. Finds what a broken chip has changed (silent data corruption).
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [path_of(p) for p, x in leaves if _comparison(x.sharding.mesh, x.sharding.spec)(x)]


@functools.cache
def _comparison(mesh, spec):
    """The program that compares the copies of an array that lies so on a mesh; see _differ."""
    differ = functools.partial(_differ, spec=spec, mesh=mesh)
    return jax.jit(
        jax.shard_map(differ, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False)
    )


def _differ(part, spec, mesh):
    """1 where some device's part differs from its copies, on every device; inside a shard_map."""
    split = {a for axes in spec if axes for a in ((axes,) if isinstance(axes, str) else axes)}
    copies = tuple(a for a in mesh.axis_names if a not in split)
    mine = fingerprint(part)
    unlike = jax.lax.pmax(mine, copies) != jax.lax.pmin(mine, copies) if copies else mine != mine
    return jax.lax.pmax(unlike.astype(jnp.int32), mesh.axis_names)
