"""Model FLOPs of a step, counted from its own operations, and what the devices could do."""

import inspect
import math

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from multimodal import objectives
from multimodal.chips import chip_of
from multimodal.training import setup
from multimodal.training.sharding import make_mesh
from multimodal.training.step import make_step


def peak_flops():
    """FLOP/s of all devices together; None where the kind is not in the table (a CPU, say)."""
    chip = chip_of(jax.devices()[0].device_kind)
    return chip.flops * jax.device_count() if chip else None


def of_step(config, batch=None) -> float:
    """Model FLOPs of one training step over all devices: 2 for each multiply-add of a matrix
    product or convolution, forward and backward.

    They are read off the step's jaxpr, so that any encoder and objective counts: the body of a loop
    as often as it runs, a frozen or averaged network forward only, and what no one needs not at
    all. What the backward pass computes again (remat, micro-batches) is no progress and is left
    out, as in PaLM's definition of MFU (Chowdhery et al. 2022, appendix B); so are element-wise
    operations, below a few per cent. Nothing is compiled or computed.

    Args:
      batch: a global batch, for its shapes; None: what the config's towers and classifiers take.
    """
    return of_jaxpr(step_jaxpr(plain(config), batch))


def plain(config):
    """The config without recomputation, and with attention and losses as their formulas: kernels
    make other products of them (rows that examples share, blocks that are computed again), or a
    call that nothing can be read off.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.micro_batches, config.model.attention_kernel = 1, "xla"
        for stack in (*config.modalities.values(), config.model.fusion):
            if "remat" in stack:
                stack.remat = "none"
        for goal in objectives.build(config):
            if "kernel" in inspect.signature(goal.fn).parameters:
                config.objectives[goal.name].kernel = "plain"
    return config


def step_jaxpr(config, batch=None) -> Jaxpr:
    """The jaxpr of a step for one device, without what its results do not need: sharding does not
    change what is to be computed.
    """
    mesh = make_mesh(devices=jax.local_devices()[:1])
    model, tx, state = setup.state_shapes(config, mesh)
    step = make_step(config, model, setup.get_objectives(config, None), tx)
    given = setup.batch_shapes(config, mesh) if batch is None else batch
    batch = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in given.items()}
    with jax.set_mesh(mesh):
        jaxpr = jax.make_jaxpr(step)(state, batch).jaxpr
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def of_jaxpr(jaxpr) -> float:
    """FLOPs of the matrix products and convolutions of a jaxpr."""
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return float(sum(_of_equation(e) for e in jaxpr.eqns))


def _of_equation(e):
    name, inner = e.primitive.name, list(_inner(e))
    if name == "dot_general":
        (contract, _), _ = e.params["dimension_numbers"]
        depth = math.prod(e.invars[0].aval.shape[i] for i in contract)
        return 2 * depth * e.outvars[0].aval.size
    if name == "conv_general_dilated":
        return _of_convolution(e)
    if name == "cond":
        return max(map(of_jaxpr, inner))
    times = e.params["length"] if name == "scan" else 1
    return times * sum(map(of_jaxpr, inner))


def _of_convolution(e):
    """2 x kernel taps and input channels a group x output, or in a gradient with a dilated input
    the output positions of the forward convolution: those taps that meet a number.
    """
    kernel, out = e.invars[1].aval, e.outvars[0].aval
    dims = e.params["dimension_numbers"]
    taps = math.prod(kernel.shape[i] for i in dims.rhs_spec[2:])
    channels = kernel.shape[dims.rhs_spec[1]]
    dilated = math.prod(e.params["lhs_dilation"])
    return 2 * taps * channels * out.size / dilated


def _inner(e):
    """The jaxprs in an equation's parameters."""
    for value in e.params.values():
        for v in value if isinstance(value, tuple | list) else (value,):
            if isinstance(v, ClosedJaxpr | Jaxpr):
                yield v
