"""Metrics as text tables for a terminal."""

from multimodal.evals.grids import grids
from multimodal.evals.languages import language
from multimodal.evals.retrieval import RECALLS, parse

COLUMNS = tuple(f"r{n}" for n in RECALLS) + ("median_rank",)
HEADS = tuple(f"R@{n}" for n in RECALLS) + ("medR",)


def table(metrics: dict) -> str:
    """Tables of all metrics that our evaluators give; '' where there are none.

    Retrieval: one table a split, pair of modalities and ranking; a row for all, one a group, one
    for chance; R@1, R@5, R@10 in percent and median rank, both ways.
    """
    names = {key: parsed for key in metrics if (parsed := parse(key))}
    tables = dict.fromkeys(
        (n.split, frozenset((n.query, n.target)), n.reranked) for n in names.values()
    )
    blocks = [_retrieval_table(metrics, names, *which) for which in sorted(tables, key=_order)]
    return "\n\n".join([*blocks, *_zeroshot_lines(metrics), *grids(metrics)])


def _order(which):
    split, pair, reranked = which
    return split, sorted(pair), reranked


def _retrieval_table(metrics, names, split, pair, reranked):
    mine = {
        n: metrics[key]
        for key, n in names.items()
        if (n.split, frozenset((n.query, n.target)), n.reranked) == (split, pair, reranked)
    }
    a, b = sorted(pair)
    # Text first where there is one: searching by words is what people look for.
    directions = [(b, a), (a, b)] if b == "text" else [(a, b), (b, a)]
    values = {(n.group, n.query, n.target, n.metric): v for n, v in mine.items()}
    groups = sorted({n.group for n in mine} - {""}, key=language)
    rows = [("all", _cells(values, "", directions))]
    rows += [(_label(g), _cells(values, g, directions)) for g in groups]
    rows.append(("chance", _cells(values, "", directions, "chance_")))
    if groups:  # A group has fewer targets, so its chance level is another one.
        rows.append(("chance in a group", _cells(_mean_chance(values, groups), "", directions)))
    title = f"{split}: " + ", ".join(
        f"{values['', q, t, 'count']:,.0f} {q}{'s' if values['', q, t, 'count'] != 1 else ''}"
        for q, t in reversed(directions)
    )
    title += ", re-ranked by the matching head" if reranked else ""
    return _layout(title, [f"{q} -> {t}" for q, t in directions], rows)


def _mean_chance(values, groups):
    """Chance level of each direction and metric, averaged over the groups."""
    metrics = dict.fromkeys((q, t, m) for _, q, t, m in values if not m.startswith("chance_"))
    found = {}
    for q, t, m in metrics:
        there = [
            values[g, q, t, f"chance_{m}"] for g in groups if (g, q, t, f"chance_{m}") in values
        ]
        if there:
            found["", q, t, m] = sum(there) / len(there)
    return found


# Names of metrics that are the data's or the evaluator's, whatever the model does.
CONSTANTS = ("count", "targets", "classes", "majority", "components", "l2")


def headline(metrics: dict) -> dict:
    """The metrics worth following over the steps: of whole splits, no counts or chance levels; of a
    ladder of noise the area alone.
    """
    kept = {}
    for key, value in metrics.items():
        name = key.rpartition("/")[2]
        parsed = parse(key)
        constant = name in CONSTANTS or name.startswith("chance")
        step = "/noise/" in key and name != "area"
        if not constant and not step and not (parsed and parsed.group):
            kept[key] = value
    return kept


def _label(group):
    name = language(group)
    return name if name == group else f"{name} ({group})"


def _cells(values, group, directions, prefix=""):
    cells = []
    for q, t in directions:
        for column in COLUMNS:
            value = values.get((group, q, t, prefix + column))
            cells.append(_cell(column, value))
    return cells


def _cell(column, value):
    if value is None:
        return "-"
    return f"{value:.4g}" if column == "median_rank" else f"{100 * value:.1f}"


def _layout(title, directions, rows):
    first = max(len(label) for label, _ in rows)
    width = max(6, *(len(c) + 1 for _, cells in rows for c in cells))
    half = width * len(COLUMNS)
    heads = "".join(h.rjust(width) for h in HEADS)
    lines = [
        title,
        " " * first + "".join("  " + d.rjust(half) for d in directions),
        " " * first + ("  " + heads) * len(directions),
    ]
    rule = "-" * len(lines[-1])
    for label, cells in rows:
        lines += [rule] if label in ("all", "chance") else []
        parts = (cells[i : i + len(COLUMNS)] for i in range(0, len(cells), len(COLUMNS)))
        lines.append(
            label.ljust(first) + "".join("  " + "".join(c.rjust(width) for c in p) for p in parts)
        )
    return "\n".join(lines)


def _zeroshot_lines(metrics):
    lines = []
    for split in sorted(k.split("/")[0] for k in metrics if k.endswith("/zeroshot/top1")):
        v = {
            k: metrics[f"{split}/zeroshot/{k}"]
            for k in ("top1", "top5", "mean_per_class", "count", "classes")
        }
        lines.append(
            f"{split}: zero-shot over {v['classes']:.0f} classes, {v['count']:,.0f} examples: "
            f"top-1 {100 * v['top1']:.1f}, top-5 {100 * v['top5']:.1f}, mean per class "
            f"{100 * v['mean_per_class']:.1f}, chance {100 / v['classes']:.1f}"
        )
    return lines
