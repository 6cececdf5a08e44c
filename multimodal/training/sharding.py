"""One mesh (replica, data, fsdp, tensor), and the rule that lays the train state out on it."""

import math
import re

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from multimodal.errors import UserError
from multimodal.nn.batch import BATCH_AXES

MESH_AXES = (*BATCH_AXES, "tensor")
SMALL = 2**14  # arrays below this many elements are not worth sharding
# Kernels [..., width, heads, d] that fsdp splits by heads where it can: gathered along their width
# they make the TPU compiler lay queries and keys out so that it multiplies them twice (ViT-L/14 on
# v5e-256: 852 instead of 778 ms a step by its own estimate).
HEADS = r".*/(query|key|value)/kernel"


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, replica: int = 0, devices=None
) -> Mesh:
    """A mesh of all devices with the axes replica x data x fsdp x tensor.

    Args:
      data: -1 takes what the others leave.
      tensor: parameters that a rule splits over it; the batch is the same on all of it.
      replica: 0 means the number of TPU slices, which only gradients then cross.
    Raises UserError where the axes do not make up the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    shape = mesh_shape(len(devices), slices, data, fsdp, tensor, replica)
    return Mesh(_arrange(shape, slices, devices), MESH_AXES, axis_types=_auto())


def axes_of(config) -> dict:
    """The sizes that a config asks for, as make_mesh and abstract_mesh take them."""
    return {axis: config.mesh[axis] for axis in MESH_AXES}


def abstract_mesh(n: int, slices: int = 1, **axes) -> AbstractMesh:
    """The mesh of n devices that need not be there, for shapes and shardings."""
    return AbstractMesh(mesh_shape(n, slices, **axes), MESH_AXES, axis_types=_auto())


def _auto():
    return (AxisType.Auto,) * len(MESH_AXES)


def mesh_shape(n, slices=1, data=-1, fsdp=1, tensor=1, replica=0) -> tuple[int, ...]:
    """(replica, data, fsdp, tensor) of n devices in so many slices; see make_mesh."""
    replica = replica or slices
    rest = fsdp * tensor * replica
    if data == -1 and rest > 0:
        if n % rest:
            raise UserError(
                f"config.mesh: replica x fsdp x tensor = {replica} x {fsdp} x {tensor} = {rest} "
                f"does not divide {n} device{'s' if n != 1 else ''}; change one of them"
            )
        data = n // rest
    if min(data, fsdp, tensor, replica) < 1 or data * rest != n:
        raise UserError(
            f"config.mesh: replica x data x fsdp x tensor = {replica} x {data} x {fsdp} x {tensor} "
            f"does not make {n} device{'s' if n != 1 else ''}; set mesh.fsdp to a divisor of {n} "
            "and mesh.data to -1"
        )
    return replica, data, fsdp, tensor


def _arrange(shape, slices, devices):
    """Devices in the mesh's shape: on TPUs by their places in the torus, elsewhere in order, so
    that each process has a contiguous part of the batch.
    """
    if devices[0].platform != "tpu":
        return np.array(devices).reshape(shape)
    if slices > 1 and shape[0] == slices:
        within, across = (1, *shape[1:]), (slices, 1, 1, 1)
        return mesh_utils.create_hybrid_device_mesh(within, across, devices)
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def batch_sharding(mesh) -> NamedSharding:
    """Leading axis over all batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def path_of(key_path) -> str:
    """'encoder_image/stack/block_0/mlp/up/kernel' for a pytree key path."""
    return "/".join(
        str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in key_path
    )


def check_rules(rules):
    """Raise UserError unless config.mesh.rules is ((regex, spec), ...), a spec a tuple with None or
    one or several axes of the mesh for each axis of an array, none twice.
    """
    example = "give (('.*/mlp/up/kernel', (None, 'tensor')),)"
    if not isinstance(rules, tuple | list):
        raise UserError(f"config.mesh.rules is {rules!r:.80}: {example}")
    for rule in rules:
        where = f"config.mesh.rules: {rule!r:.80}"
        pair = isinstance(rule, tuple | list) and len(rule) == 2
        if not pair or not isinstance(rule[0], str) or not isinstance(rule[1], tuple | list):
            raise UserError(f"{where} is no pair of a pattern and a tuple: {example}")
        try:
            re.compile(rule[0])
        except re.error as e:
            raise UserError(f"{where}: {rule[0]!r} is no regular expression: {e}") from None
        axes = [a for part in rule[1] for a in (part if isinstance(part, tuple | list) else [part])]
        axes = [a for a in axes if a is not None]
        if wrong := [a for a in axes if a not in MESH_AXES]:
            raise UserError(f"{where}: no axis {wrong[0]!r}; known: {', '.join(MESH_AXES)}")
        if len(axes) != len(set(axes)):
            raise UserError(f"{where} names an axis twice")


def _ruled(path, x, mesh, spec):
    """The sharding that a rule gives an array. Raises UserError where it does not divide it."""
    sizes = [
        math.prod(mesh.shape[a] for a in (part if isinstance(part, tuple | list) else [part]))
        for part in [p or () for p in spec]
    ]
    if len(spec) > x.ndim or any(n % s for n, s in zip(x.shape, sizes)):
        raise UserError(
            f"config.mesh.rules: {tuple(spec)!r} does not divide {path}, an array of shape "
            f"{x.shape}, over {sizes} devices"
        )
    return NamedSharding(mesh, PartitionSpec(*spec))


def state_shardings(state, mesh, rules=()):
    """A sharding for every array of a pytree: a rule's, else rows over all batch axes (the momentum
    queue), else fsdp over the heads of attention or the largest axis it divides, else replicated.

    Args:
      state: pytree of arrays or ShapeDtypeStructs.
      rules: ((regex of the path, partition spec as a tuple), ...); the first match wins.
    """
    fsdp, rows = mesh.shape["fsdp"], math.prod(mesh.shape[a] for a in BATCH_AXES)

    def place(key_path, x):
        path = path_of(key_path)
        for pattern, spec in rules:
            if re.fullmatch(pattern, path):
                return _ruled(path, x, mesh, spec)
        if path.startswith("queue/") and x.ndim and x.shape[0] % rows == 0:
            return batch_sharding(mesh)
        axes = [i for i, n in enumerate(x.shape) if n % fsdp == 0]
        if fsdp == 1 or x.size < SMALL or not axes:
            return NamedSharding(mesh, PartitionSpec())
        axis = max(axes, key=lambda i: x.shape[i])
        if re.fullmatch(HEADS, path) and x.ndim - 2 in axes:
            axis = x.ndim - 2
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    placed = jax.tree_util.tree_map_with_path(place, state)
    paths = [path_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(state)]
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, path) for path in paths):
            known = next((p for p in paths if p.startswith("params/")), paths[-1])
            raise UserError(f"config.mesh.rules: {pattern!r} matches no array, such as {known}")
    return placed


def check_batch(batch_size: int, mesh, micro_batches: int, processes: int = 1):
    """Raise UserError unless the global batch divides over mesh, micro-batches and processes."""
    n = math.prod(mesh.shape[a] for a in BATCH_AXES)
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


def placed(value, like):
    """A host's array with the type of `like` and, where that is a jax.Array, laid out as it: each
    device gets its part only. Every process must give the same value.
    """
    value = np.asarray(value, like.dtype)
    if not isinstance(like, jax.Array):
        return value
    return jax.make_array_from_callback(value.shape, like.sharding, lambda part: value[part])


def to_global(batch, mesh):
    """This process's slice of a batch (NumPy) -> global arrays, sharded over the mesh."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
