"""Text tables of classification, robustness, modality gap, probe and CCA metrics."""

import collections

PERCENT = "{:.1f}"  # of values in 0..1, times 100
# Columns of a table: head -> (metric, how it is written).
CLASSES = {
    "accuracy": ("accuracy", PERCENT),
    "per class": ("mean_per_class", PERCENT),
    "F1 micro": ("f1_micro", PERCENT),
    "F1 macro": ("f1_macro", PERCENT),
    "exact": ("exact", PERCENT),
    "majority": ("majority", PERCENT),
    "examples": ("count", "{:,.0f}"),
}
GAP = {
    "centroids": ("centroid", "{:.3f}"),
    "probe": ("probe", PERCENT),
    "alignment": ("alignment", "{:.3f}"),
    "uniformity": ("uniformity", "{:.2f}"),
    "records": ("count", "{:,.0f}"),
}
RECALLS = {f"R@{n}": (f"r{n}", PERCENT) for n in (1, 5, 10)}


def sections(metrics, name) -> dict:
    """Metrics 'SPLIT/NAME/REST' of one evaluator: {split: {rest: value}}, as they were given."""
    found = collections.defaultdict(dict)
    for key, value in metrics.items():
        split, here, rest = key.partition(f"/{name}/")
        if here and split:
            found[split][rest] = value
    return dict(found)


def by_first(metrics, parts=1) -> dict:
    """{'a/b/c': v} -> {'a': {'b/c': v}}, or with two parts {'a/b': {'c': v}}."""
    found = collections.defaultdict(dict)
    for key, value in metrics.items():
        words = key.split("/")
        if len(words) > parts:
            found["/".join(words[:parts])]["/".join(words[parts:])] = value
    return dict(found)


def grid(title, heads, rows) -> str:
    """A table with right-aligned columns: rows are (label, cells)."""
    first = max([len(label) for label, _ in rows], default=0)
    widths = [
        2 + max(len(head), *(len(cells[i]) for _, cells in rows)) for i, head in enumerate(heads)
    ]

    def line(label, cells):
        cells = "".join(c.rjust(w) for c, w in zip(cells, widths, strict=True))
        return f"{label.ljust(first)}{cells}"

    head = line("", heads)
    body = [line(label, cells) for label, cells in rows]
    return "\n".join([title, head, "-" * len(head), *body])


def cell(value, form) -> str:
    """A value as text, '-' for none."""
    if value is None:
        return "-"
    return form.format(100 * value if form == PERCENT else value)


def rows_of(named, columns) -> tuple[list, list]:
    """(heads, rows) of {label: metrics}; columns that no row has are left out."""
    there = [h for h, (m, _) in columns.items() if any(m in v for v in named.values())]
    rows = [
        (label, [cell(values.get(columns[h][0]), columns[h][1]) for h in there])
        for label, values in named.items()
    ]
    return there, rows


def grids(metrics) -> list[str]:
    """All tables that the metrics give."""
    return [
        *_classification(metrics),
        *robustness_grids(metrics),
        *_probes(metrics),
        *_gaps(metrics),
        *_cca(metrics),
    ]


def _classification(metrics):
    for split, found in sections(metrics, "classify").items():
        yield grid(f"{split}: classification", *rows_of(by_first(found), CLASSES))


def robustness_grids(metrics):
    """For each classifier (or direction of retrieval): subsets, and noise by level."""
    for split, found in sections(metrics, "robustness").items():
        for name, values in by_first(found).items():
            what = "R@1 of " + name.replace("_to_", " -> ") if "_to_" in name else name
            subset = by_first(values).get("subset", {})
            ladders = by_first(by_first(values).get("noise", {}))
            if len(subset) > 1:
                chance = values.get("majority")
                told = "" if chance is None else f" (most frequent class: {100 * chance:.1f})"
                rows = [(label, [cell(v, PERCENT)]) for label, v in by_size(subset).items()]
                yield grid(f"{split}: {what}, by modalities present{told}", ["score"], rows)
            if ladders:
                yield _ladder_grid(f"{split}: {what}, by level of noise on", ladders)


def by_size(subset) -> dict:
    """Subsets 'a+b' in order of their size, the others' order kept."""
    return dict(sorted(subset.items(), key=lambda item: item[0].count("+")))


def levels_of(ladder) -> dict:
    """{level: score} of a ladder's metrics, ascending."""
    return {float(k): v for k, v in sorted(ladder.items()) if k != "area"}


def _ladder_grid(title, ladders):
    heads = [f"{v:g}" for v in levels_of(next(iter(ladders.values())))] + ["area"]
    rows = [
        (m, [cell(v, PERCENT) for v in (*levels_of(ladder).values(), ladder["area"])])
        for m, ladder in alone_first(ladders).items()
    ]
    return grid(title, heads, rows)


def alone_first(ladders) -> dict:
    """Ladders with that of all modalities together at the end."""
    return dict(sorted(ladders.items(), key=lambda item: (item[0] == "all", item[0])))


def _probes(metrics):
    columns = CLASSES | {"l2": ("l2", "{:g}")}
    for split, found in sections(metrics, "probe").items():
        named = {k.replace("/", " "): v for k, v in by_first(found, 2).items()}
        yield grid(f"{split}: linear probes on frozen features", *rows_of(named, columns))


def _gaps(metrics):
    for split, found in sections(metrics, "gap").items():
        named = {_pair(k): v for k, v in by_first(found).items()}
        title = f"{split}: modality gap (probe: telling the modalities apart, chance 50)"
        yield grid(title, *rows_of(named, GAP))


def _cca(metrics):
    for split, found in sections(metrics, "cca").items():
        named = {}
        for values in by_first(found).values():
            for way, recalls in by_first(values).items():
                named[way.replace("_to_", " -> ")] = values | recalls
        columns = {
            **RECALLS,
            "mean correlation": ("correlation", "{:.3f}"),
            "sum": ("correlation_sum", "{:.2f}"),
            "of": ("components", "{:.0f}"),
        }
        yield grid(f"{split}: linear CCA of pooled features", *rows_of(named, columns))


def _pair(name):
    return " - ".join(name.split("_")) if name.count("_") == 1 else name
