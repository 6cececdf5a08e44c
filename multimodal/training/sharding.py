"""One mesh (data, fsdp), and the rule that lays the whole train state out on it."""

import re

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from multimodal.errors import UserError
from multimodal.nn.layers import BATCH_AXES

SMALL = 2**14  # arrays below this many elements are not worth sharding


def make_mesh(data: int = -1, fsdp: int = 1, devices=None) -> Mesh:
    """A mesh of all devices with the axes data x fsdp; data = -1 takes what fsdp leaves.

    Raises UserError where the axes do not make up the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(data, fsdp, len(devices))
    return Mesh(np.array(devices).reshape(shape), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def abstract_mesh(data: int, fsdp: int, n: int) -> AbstractMesh:
    """The mesh of n devices that need not be there, for shapes and shardings."""
    return AbstractMesh(mesh_shape(data, fsdp, n), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def mesh_shape(data: int, fsdp: int, n: int) -> tuple[int, int]:
    """(data, fsdp) of n devices; see make_mesh."""
    if data == -1 and fsdp > 0 and n % fsdp == 0:
        data = n // fsdp
    if data < 1 or fsdp < 1 or data * fsdp != n:
        raise UserError(
            f"config.mesh: data x fsdp = {data} x {fsdp} does not make {n} devices; "
            f"set mesh.fsdp to a divisor of {n} and mesh.data to -1"
        )
    return data, fsdp


def batch_sharding(mesh) -> NamedSharding:
    """Leading axis over all batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def path_of(key_path) -> str:
    """'encoder_image/stack/block_0/mlp/up/kernel' for a pytree key path."""
    return "/".join(
        str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in key_path
    )


def state_shardings(state, mesh, rules=()):
    """A sharding for every array of a pytree: a rule's, else fsdp over the largest axis it divides,
    else replicated.

    Args:
      state: pytree of arrays or ShapeDtypeStructs.
      rules: ((regex of the path, partition spec as a tuple), ...); the first match wins.
    """
    fsdp = mesh.shape["fsdp"]

    def place(key_path, x):
        path = path_of(key_path)
        for pattern, spec in rules:
            if re.fullmatch(pattern, path):
                return NamedSharding(mesh, PartitionSpec(*spec))
        axes = [i for i, n in enumerate(x.shape) if n % fsdp == 0]
        if fsdp == 1 or x.size < SMALL or not axes:
            return NamedSharding(mesh, PartitionSpec())
        largest = max(axes, key=lambda i: x.shape[i])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))

    placed = jax.tree_util.tree_map_with_path(place, state)
    paths = [path_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(state)]
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise UserError(f"config.mesh.rules: {pattern!r} matches no array, such as {paths[-1]}")
    return placed


def check_batch(batch_size: int, mesh, micro_batches: int, processes: int = 1):
    """Raise UserError unless the global batch divides over mesh, micro-batches and processes."""
    n = mesh.size
    if batch_size % (n * micro_batches):
        fit = max(1, round(batch_size / (n * micro_batches))) * n * micro_batches
        raise UserError(
            f"config.batch_size {batch_size} does not divide over {n} devices x {micro_batches} "
            f"micro-batches; the nearest size that does is {fit}"
        )
    if batch_size % processes:
        raise UserError(
            f"config.batch_size {batch_size} does not divide over {processes} processes"
        )


def to_global(batch, mesh):
    """This process's slice of a batch (NumPy) -> global arrays, sharded over the mesh."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
