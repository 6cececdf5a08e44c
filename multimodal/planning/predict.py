"""From counts to time: what the compiler's cycles, bytes and exchanges take on a chip."""

import dataclasses

from multimodal.chips import torus_bandwidth
from multimodal.planning.cost import ProgramCost
from multimodal.planning.exchanges import Collective
from multimodal.planning.targets import Target

MEMORY_BOUND = 0.6  # share of an operation's time that its HBM traffic alone would take


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that each resource alone needs for a step, at its peak; their largest is a bound.

    Attributes:
      compute: model FLOPs at the peak; memory: HBM traffic; network: exchange between devices.
        None: not known.
    """

    compute: float | None
    memory: float | None
    network: float | None

    @property
    def bound(self):
        """No step is faster than this."""
        return max((t for t in dataclasses.astuple(self) if t is not None), default=None)

    @property
    def binds(self):
        """The resource whose time that is."""
        times = {k: t for k, t in dataclasses.asdict(self).items() if t is not None}
        return max(times, key=times.get) if times else None


def roofline(target: Target, flops: float, hbm: float | None, network: float | None) -> Roofline:
    """The Roofline of model FLOPs of all devices and one device's HBM bytes and network seconds."""
    chip = target.chip
    if chip is None:
        return Roofline(None, None, None)
    memory = None if hbm is None else hbm / chip.hbm_bandwidth
    return Roofline(flops / target.devices / chip.flops, memory, network)


def network_seconds(target: Target, exchanges: list[Collective]) -> float:
    """Seconds of all exchanges one after the other, at the full bandwidth of the links they use."""
    return sum(_seconds(target, e) for e in exchanges)


def exposed_seconds(target: Target, exchanges: list[Collective]) -> float:
    """Seconds of the exchanges that no operation hides: all of those that the program waits for,
    and of the others what is longer than the operations beside them.
    """
    clock = target.chip.clock
    return sum(max(0.0, _seconds(target, e) - e.beside / clock) for e in exchanges)


def _seconds(target, exchange):
    chip = target.chip
    if exchange.kind == "between slices":
        return exchange.bytes / chip.network
    if exchange.kind == "collective-permute":
        return exchange.bytes / (chip.link / chip.per_chip)
    near = torus_bandwidth(chip, target.shape, exchange.group)
    if exchange.group * exchange.stride <= target.near:
        return exchange.bytes / near
    # A ring through all machines: the slower of the links, and of its members' share of a machine's
    # network.
    members = max(1, target.near // exchange.stride)
    between = chip.network * (1 if chip.is_tpu else members)
    if members == 1:
        return exchange.bytes / between
    return exchange.bytes / min(near, between)


def data_parallel_exchanges(config, target: Target, parameter_bytes: float) -> list[Collective]:
    """What a step must exchange at the least, by formula: gradients, and parameters under FSDP.

    parameter_bytes: of the whole model, float32, or of what mesh.tensor leaves of it on a device.
    """
    fsdp, tensor = config.mesh.fsdp, config.mesh.tensor
    data = target.devices // (fsdp * tensor)
    found = []
    if fsdp > 1:
        share = parameter_bytes * (fsdp - 1) / fsdp
        found += [
            # forward and backward, of each micro-batch
            Collective("all-gather", fsdp, 2 * share * config.micro_batches, 2, stride=tensor),
            Collective("reduce-scatter", fsdp, share, 1, stride=tensor),
        ]
    if data > 1:
        size = 2 * parameter_bytes / fsdp * (data - 1) / data
        found.append(Collective("all-reduce", data, size, 1, stride=fsdp * tensor))
    return found


def resource_of(operation, chip) -> str:
    """What binds one operation: 'memory', 'matrix unit', or 'vector unit and layout'."""
    seconds = operation.cycles / chip.clock
    if operation.bytes / chip.hbm_bandwidth > MEMORY_BOUND * seconds:
        return "memory"
    return "matrix unit" if operation.multiplies else "vector unit and layout"


def time_by_resource(cost: ProgramCost, chip) -> dict[str, float]:
    """Seconds of the program's operations by what binds them."""
    out = {}
    for o in cost.operations:
        if o.cycles:
            key = resource_of(o, chip)
            out[key] = out.get(key, 0.0) + o.cycles / chip.clock
    return dict(sorted(out.items(), key=lambda kv: -kv[1]))
