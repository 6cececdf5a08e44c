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


def of(lowered):
    """FLOPs of a lowered program over all devices, counted by XLA before it optimises.

    Bodies of scans are counted once, so a model with scanned layers is underestimated.
    """
    cost = lowered.cost_analysis() or {}
    return cost.get("flops", 0.0)
