"""Bytes on one device, from shapes: the train state exactly, activations by an estimate."""

import dataclasses
import math

import jax
from jax.extend.core import Literal

from multimodal.nn.attention import LANES, PLATFORMS
from multimodal.training import setup
from multimodal.training.optim import CLASSIFIER
from multimodal.training.sharding import abstract_mesh, axes_of, make_mesh
from multimodal.training.step import make_loss


def state_bytes(config, devices: int, slices: int = 1) -> dict[str, int]:
    """Bytes on one of so many devices: parameters, optimizer, ema, queue and batch."""
    mesh = abstract_mesh(devices, slices, **axes_of(config))
    _, _, state = setup.state_shapes(_traceable(config), mesh)
    kinds = {"parameters": state.params, "optimizer": state.opt, "ema": state.ema}
    kinds |= {"queue": state.queue, "batch": setup.batch_shapes(config, mesh)}
    return {k: sum(map(shard_bytes, jax.tree.leaves(tree))) for k, tree in kinds.items()}


def _traceable(config):
    """A copy with attention as its formula where its kernel is one that this machine may lack."""
    config = config.copy_and_resolve_references()
    config.unlock()
    if config.model.attention_kernel in PLATFORMS:
        config.model.attention_kernel = "xla"
    return config


def shard_bytes(x) -> int:
    """Bytes that one device holds of a ShapeDtypeStruct with a sharding."""
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def activation_bytes(config, devices: int, fuses: bool = False) -> float:
    """An estimate of what one device keeps from the forward pass for the backward pass."""
    return sum(activation_parts(config, devices, fuses))


def activation_parts(config, devices: int, fuses: bool = False) -> tuple[float, float]:
    """(bytes kept between micro-batches, bytes kept within one) of activation_bytes.

    It is what the traced program keeps, remat and micro-batches included, and what one layer of the
    largest rematerialised stack keeps while it is computed again. Micro-batches keep what one of
    them does, and what goes into them and comes out for the whole batch. A compiler that `fuses`
    what is element-wise into matrix products (a TPU's) keeps no more than those of a layer, except
    of a loop over layers, which hands on what is traced. Attention is counted as its formula.
    """
    config = _traceable(config)
    between = _residual_bytes(config, devices) if config.micro_batches > 1 else 0.0
    config.batch_size, config.micro_batches = config.batch_size // config.micro_batches, 1
    usual = "products" if fuses else "none"
    stacks = [s for s in (*config.modalities.values(), config.model.fusion) if "remat" in s]
    for stack in stacks:
        if stack.remat == "none" and not _loops(stack):
            stack.remat = usual
    kept, largest = _residual_bytes(config, devices), 0.0
    for stack in stacks:
        remat, stack.remat = stack.remat, usual
        if remat not in ("none", usual):
            more = _residual_bytes(config, devices) - kept
            largest = max(largest, more / max(1, stack.get("depth", 1)))
        stack.remat = remat
    return between, kept + largest


def _loops(stack):
    """Whether a stack's layers run in a loop that is one when compiled, too."""
    return stack.get("scan", False) and stack.get("unroll", 1) < stack.get("depth", 1)


def _residual_bytes(config, devices):
    """Bytes of all that a gradient's forward pass hands to its backward pass, over the devices."""
    mesh = make_mesh(devices=jax.local_devices()[:1])
    model, _, state = setup.state_shapes(config, mesh)
    loss = make_loss(config, model, setup.get_objectives(config, None))

    def forward(params, state, batch):
        frozen = config.init.freeze  # a linear probe
        moved = {k: v for k, v in params.items() if not frozen or CLASSIFIER.fullmatch(k)}
        return jax.vjp(lambda p: loss(params | p, state, batch)[0], moved)[1]

    with jax.set_mesh(mesh):
        jaxpr = jax.make_jaxpr(forward)(state.params, state, setup.batch_shapes(config, mesh)).jaxpr
    given = set(map(id, jaxpr.invars))
    kept = {
        id(v): v.aval for v in jaxpr.outvars if id(v) not in given and not isinstance(v, Literal)
    }
    b, k = config.batch_size, config.micro_batches
    weights = {x.shape for x in jax.tree.leaves(state.params)}  # kept in another type, say

    def spread(shape):
        return shape not in weights and _has_batch(shape, b, k)

    return sum(
        a.size * a.dtype.itemsize / (devices if spread(a.shape) else 1) for a in kept.values()
    )


def _has_batch(shape, b, k=1):
    """Whether one axis is the batch's, two are that of k micro-batches, or one is of rows which
    examples share (nn/attention.py).
    """
    if any(n and n % b == 0 for n in shape):
        return True
    if k > 1 and any(n == k and m and m % (b // k) == 0 for n, m in zip(shape, shape[1:])):
        return True
    rows = (n for i, n in enumerate(shape) if LANES in shape[i + 1 :])
    return any(n * 2**i == b for n in rows for i in range(1, 8))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes on one device by formula: kinds as in state_bytes, gradients and activations; and those
    of the activations that each micro-batch has anew.
    """

    kinds: dict[str, float]
    anew: float

    @property
    def total(self):
        """Bytes in all."""
        return sum(self.kinds.values())


def estimate(config, devices: int, fuses: bool = False, slices: int = 1) -> Estimate:
    """The memory of a step by formula, without a compiler; fuses: see activation_parts."""
    kinds = dict(state_bytes(config, devices, slices))
    # A linear probe's are those of classifiers alone.
    kinds["gradients"] = 0 if config.init.freeze else kinds["parameters"]
    between, within = activation_parts(config, devices, fuses)
    kinds["activations"] = between + within
    return Estimate(kinds, within)
