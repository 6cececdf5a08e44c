"""What to change so that a step fits, and whether it then does."""

import functools
import itertools

from multimodal.planning import memory
from multimodal.planning.targets import Target

LEAST = 0.7  # of its share of the whole that a micro-batch keeps at the least: spares tracing some
MARGIN = 0.95  # of the memory; what is estimated should not fill it to the brim


def candidates(config, target: Target) -> list[dict]:
    """Changes {config key: value} that save memory, the cheapest in time first.

    FSDP costs exchange, remat or micro-batches one more forward pass, both of them two.
    """
    batch_devices = target.devices // config.mesh.tensor
    widest = batch_devices // (config.mesh.replica or target.slices)
    sizes = sorted({8, 16, 64, target.near, widest})  # beyond fast links only as the last resort
    splits = [config.mesh.fsdp]
    splits += [f for f in sizes if f > config.mesh.fsdp and f <= widest and widest % f == 0]
    chunks = _chunks(config.micro_batches, config.batch_size // batch_devices)
    stacks = [f"modalities.{m}" for m, c in config.modalities.items() if "remat" in c]
    stacks += ["model.fusion"] if config.model.fusion.kind != "none" else []
    plain = [s for s in stacks if _at(config, s).remat != "full"]
    found = []
    for fsdp, k, remat in itertools.product(splits, chunks, (False, True) if plain else (False,)):
        change = {f"{s}.remat": "full" for s in plain} if remat else {}
        change |= {"mesh.fsdp": fsdp} if fsdp != config.mesh.fsdp else {}
        change |= {"mesh.data": -1} if fsdp != config.mesh.fsdp and config.mesh.data != -1 else {}
        change |= {"micro_batches": k} if k != config.micro_batches else {}
        passes = remat + (k > config.micro_batches)
        if change:
            found.append((passes, splits.index(fsdp) + chunks.index(k), change))
    found.sort(key=lambda item: item[:2])
    return [change for _, _, change in found]


def _chunks(now, most):
    """Numbers of micro-batches: this one, and divisors of a device's examples above it, none less
    than half as large again as the one before.
    """
    found = [now]
    for k in range(now + 1, most + 1):
        if most % k == 0 and (k >= 1.5 * found[-1] or k == most):
            found.append(k)
    return found


def changed(config, change: dict):
    """A copy of the config with {key: value} set."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for key, value in change.items():
            *parents, last = key.split(".")
            node = _at(config, ".".join(parents)) if parents else config
            node[last] = value
    return config


def _at(config, path):
    for part in path.split("."):
        config = config[part]
    return config


def promising(config, target: Target, limit: float, used: float | None):
    """The candidates that fit by formula: (change, estimated bytes), cheapest first.

    used: bytes that the compiler wanted for the config as it is, to which the estimate's
      activations are scaled; None: as estimated.
    """
    fuses = target.platform == "tpu"
    now = memory.estimate(config, target.devices, fuses, target.slices)
    scale = 1.0
    if used:
        fixed = now.total - now.kinds["activations"]
        scale = max(0.05, (used - fixed) / max(1.0, now.kinds["activations"]))

    # Activations do not depend on the mesh, and the state on nothing else: each is traced once.
    @functools.cache
    def activations(rest):
        return memory.activation_bytes(changed(config, dict(rest)), target.devices, fuses)

    @functools.cache
    def fixed_bytes(mesh):
        state = memory.state_bytes(changed(config, dict(mesh)), target.devices, target.slices)
        return sum(state.values()) + (0 if config.init.freeze else state["parameters"])

    for change in candidates(config, target):
        mesh = tuple(item for item in change.items() if item[0].startswith("mesh."))
        rest = tuple(item for item in change.items() if item not in mesh)
        remat = tuple(item for item in rest if item[0] != "micro_batches")
        share = config.micro_batches / dict(rest).get("micro_batches", config.micro_batches)
        room = MARGIN * limit - fixed_bytes(mesh)
        if scale * LEAST * share * activations(remat) > room:
            continue
        total = fixed_bytes(mesh) + scale * activations(rest)
        if total <= MARGIN * limit:
            yield change, total


def as_flags(change: dict) -> str:
    """The change as arguments of train.py."""
    return " ".join(f"--config.{k}={v}" for k, v in change.items())
