"""Learning-rate traces."""

import numpy as np

from multimodal.schedules import Schedule
from tests.parity.common import precision


def trace(spec, total, steps):
    """Our schedule's values."""
    schedule = Schedule.parse(spec, total)
    return np.array([schedule(int(s)) for s in steps], np.float64)


def check_albef(folder, report):
    """ALBEF's staircase warm-up and cosine by epoch; peak, start and end are read off the trace."""
    path = folder / "pretrain_lr.npz"
    if not path.is_file():
        return
    z = report.load(path)
    epoch0, epochs = z["epoch0"], z["epochs"]
    start, peak, count = float(epoch0[0]), float(epoch0.max()), len(epochs) + 1
    last = 0.5 * (1 + np.cos(np.pi * (count - 1) / count))
    end = (float(epochs[-1]) - peak * last) / (1 - last)
    first = int(np.argmax(epoch0 != start))  # the rate of iteration i was set after iteration i - 1
    spec = {
        "schedule": "albef",
        "peak": peak,
        "start": start,
        "end": end,
        "steps_per_epoch": len(epoch0),
        "epochs": count,
        "warmup_every": first - 1,
        "warmup_steps": round((peak - start) / (epoch0[first] - start)),
    }
    note = f"peak {peak:.3g}, start {start:.3g}, end {end:.3g}, {spec['warmup_steps']} stairs"
    with precision(np.float64):
        ours = trace(spec, len(epoch0) * count, range(len(epoch0)))
        later = trace(spec, len(epoch0) * count, [e * len(epoch0) for e in range(1, count)])
    report.compare("learning rate, epoch 0", ours, epoch0, np.float64, note)
    report.compare(f"learning rate, epochs 1 to {count - 1}", later, epochs, np.float64)


def check_cosine(folder, report):
    """open_clip's cosine; peak, warm-up and total are read off the trace."""
    path = folder / "cosine_lr.npz"
    if not path.is_file():
        return
    lr = report.load(path)["lr"]
    peak = float(lr.max())
    warmup = round(peak / float(lr[0]))
    step = len(lr) - 1
    total = warmup + round(np.pi * (step - warmup) / np.arccos(2 * lr[step] / peak - 1))
    with precision(np.float64):
        ours = trace({"schedule": "cosine", "peak": peak, "warmup": warmup}, total, range(len(lr)))
    report.compare(
        "cosine learning rate",
        ours,
        lr,
        np.float64,
        f"peak {peak:.3g}, warm-up {warmup} of {total}",
    )
