"""What a step costs, and what the devices could do."""

import jax

# Dense bfloat16 peak of one device, FLOP/s, from the makers' data sheets.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops():
    """FLOP/s of all devices together; None where the kind is not in the table (a CPU, say)."""
    kind = jax.devices()[0].device_kind
    matches = [k for k in PEAKS if kind.startswith(k)]
    return PEAKS[max(matches, key=len)] * jax.device_count() if matches else None


def of(lowered, config):
    """FLOPs of a lowered step over all devices, counted by XLA before it optimises.

    XLA counts the body of a loop once, so scanned layers and micro-batches have no count: 0.
    """
    stacks = [*config.modalities.values(), config.model.fusion]
    if config.micro_batches > 1 or any(s.get("scan", False) for s in stacks):
        return 0.0
    cost = lowered.cost_analysis() or {}
    return cost.get("flops", 0.0)
