"""Pictures of a run's metrics."""

import collections
import math
import pathlib

import numpy as np

from multimodal.errors import UserError
from multimodal.training.logging import read_metrics

MAX_LINES = 8  # in a panel: more cannot be told apart
FEW_POINTS = 25  # up to here points are drawn as they are, with markers


def loss_curves(workdir):
    """Draw all metrics of workdir/metrics.jsonl over the steps as small multiples.

    A panel holds the metrics of one group ("group/name") that are of like size, so that a learning
    rate does not flatten a loss. Long series are smoothed, with the raw values behind.

    Returns: path of the picture, workdir/pictures/loss_curves.png.
    Raises: UserError where there is nothing to draw.
    """
    from matplotlib.figure import Figure  # slow to import; without pyplot no display is needed

    panels = _panels(_series(read_metrics(workdir)))
    if not panels:
        raise UserError(f"{workdir}/metrics.jsonl holds no metrics yet: train some steps first")
    columns = min(4, math.ceil(math.sqrt(len(panels))))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (title, lines) in zip(axes, panels):
        _draw_panel(axis, title, lines)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    path = pathlib.Path(workdir, "pictures", "loss_curves.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def smooth(values, window):
    """Exponential moving average over about `window` values, unbiased; gaps stay out."""
    decay = 1 - 1 / max(1, window)
    total = weight = 0.0
    out = []
    for value in values:
        if math.isfinite(value):
            total, weight = decay * total + value, decay * weight + 1
        out.append(total / weight if weight else math.nan)
    return np.array(out)


def _series(rows):
    """{key: (steps, values)}; where a step was logged twice, the later value counts.

    Left out are what a run cost (run/...), and counts of skipped steps that stayed zero.
    """
    series = collections.defaultdict(dict)
    for row in rows:
        for key, value in row.items():
            if key != "step" and not key.startswith("run/") and isinstance(value, int | float):
                series[key][row["step"]] = value
    for key in ("train/skipped", "train/skipped_in_row"):
        if not any(series.get(key, {}).values()):
            series.pop(key, None)
    # One point is no curve: a run's only evaluation is in its table.
    longest = max(map(len, series.values()), default=0)
    series = {key: values for key, values in series.items() if len(values) > 1 or longest == 1}
    points = {key: sorted(values.items()) for key, values in series.items()}
    return {key: tuple(np.array(pairs, float).T) for key, pairs in points.items()}


def _panels(series):
    """[(title, {name: (steps, values)})]: groups as they appear, split by size of values."""
    groups = collections.defaultdict(dict)
    for key, points in series.items():
        group, _, name = key.rpartition("/")
        groups[group][name] = points
    panels = []
    for group, lines in groups.items():
        for names in _like_sizes(lines):
            for i in range(0, len(names), MAX_LINES):
                part = {name: lines[name] for name in names[i : i + MAX_LINES]}
                title = group if len(part) > 1 else "/".join(filter(None, (group, *part)))
                panels.append((title, part))
    return panels


def _like_sizes(lines):
    """Lists of names: losses apart, sizes following each other within a factor of 5."""
    sizes = {}
    for name, (_, values) in lines.items():
        finite = np.abs(values[np.isfinite(values)])
        sizes[name] = max(float(np.median(finite)), 1e-12) if finite.size else 1.0
    clusters, last = [], None
    for name in sorted(sizes, key=lambda name: ("loss" in name, sizes[name])):
        if last is None or ("loss" in name) != ("loss" in last) or sizes[name] / sizes[last] > 5:
            clusters.append(set())
        clusters[-1].add(name)
        last = name
    ordered = [[name for name in lines if name in cluster] for cluster in clusters]
    return sorted(ordered, key=lambda names: list(lines).index(names[0]))


def _is_noisy(values):
    """Whether the series often turns; a schedule does not, and smoothing would distort it."""
    turns = np.diff(np.sign(np.diff(values[np.isfinite(values)]))) != 0
    return turns.size > 0 and turns.mean() > 0.2


def _draw_panel(axis, title, lines):
    everything = np.concatenate([values for _, values in lines.values()])
    everything = everything[np.isfinite(everything)]
    for i, (name, (steps, values)) in enumerate(lines.items()):
        color = f"C{i}"
        if len(steps) <= FEW_POINTS or not _is_noisy(values):
            marker = "." if len(steps) <= FEW_POINTS else None
            axis.plot(steps, values, color=color, lw=1.6, marker=marker, label=name)
        else:
            axis.plot(steps, values, color=color, lw=0.6, alpha=0.25)
            axis.plot(steps, smooth(values, len(values) // 40), color=color, lw=1.6, label=name)
        bad = steps[~np.isfinite(values)]
        if bad.size:
            axis.axvline(
                bad[0], color=color, ls=":", label=f"{name}: not finite from step {bad[0]:.0f}"
            )
    # Not below 1: shares and rates of success read better on a linear scale.
    if everything.size and everything.max() > 1 and 0 < everything.min() < everything.max() / 100:
        axis.set_yscale("log")
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if len(axis.get_legend_handles_labels()[0]) > 1:
        axis.legend(fontsize=7, framealpha=0.7)
