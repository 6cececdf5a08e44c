"""Pictures of robustness: scores over the level of noise, and by the modalities present."""

import pathlib

from multimodal.evals.grids import alone_first, by_first, by_size, levels_of

INK, GREY, ALL_COLOUR, BAR = "#1f2328", "#6e7781", "#1f2328", "#4c78a8"
MARKERS = "os^DvPX*"


def draw_robustness(path, found, title=""):
    """A row for each classifier: curves over noise, and bars of the subsets of the modalities.

    Args:
      path: PNG to write; folders are made.
      found: name -> metrics as {'subset/image+audio': v, 'noise/image/0.25': v, 'majority': v}.
    Returns: path.
    """
    bars = any(len(by_first(v).get("subset", {})) > 1 for v in found.values())
    figure, axes = _figure(len(found), 1 + bars, (6.0, 3.4))
    known = [by_first(by_first(v).get("noise", {})) for v in found.values()]
    places = {m: i for i, m in enumerate(alone_first(dict.fromkeys(sum(map(list, known), []))))}
    for (name, values), row in zip(found.items(), axes, strict=True):
        parts = by_first(values)
        chance = values.get("majority")
        what = f"{name}: {'F1' if chance is None else 'accuracy'}"
        if "_to_" in name:
            what = f"{name.replace('_to_', ' to ')}: R@1"
        ladders = alone_first(by_first(parts.get("noise", {})))
        for modality, ladder in ladders.items():
            i, curve = places[modality], levels_of(ladder)
            together = modality == "all"
            label = f"{'all together' if together else modality}  (area {100 * ladder['area']:.1f})"
            look = {"color": ALL_COLOUR, "ls": "--"} if together else {"color": f"C{i}"}
            scores = [100 * v for v in curve.values()]
            row[0].plot(list(curve), scores, marker=MARKERS[i % 8], ms=4.5, label=label, **look)
        _dress_curves(row[0], f"{what} (%) by level of noise", chance)
        # Beside the curves: within the panel it would lie on some of them.
        beside = dict(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        row[0].legend(fontsize=8, title="noise on", title_fontsize=8, **beside)
        subset = by_size(parts.get("subset", {}))
        if len(subset) > 1:
            _draw_bars(row[1], subset, chance)
        elif bars:
            row[1].set_visible(False)
    return _save(figure, path, title)


def draw_comparison(path, blocks, title=""):
    """A row for each classifier: one panel of subsets and one for each modality's noise.

    Args:
      blocks: {block: {method: {'subset': {subset: v}, 'noise': {modality: {level: v}}}}}.
    Returns: path.
    """
    panels = 1 + max(len(_names(methods, "noise")) for methods in blocks.values())
    figure, axes = _figure(len(blocks), panels, (3.9, 3.3))
    methods = list(dict.fromkeys(m for block in blocks.values() for m in block))
    looks = {m: {"color": f"C{i % 10}", "marker": MARKERS[i % 8]} for i, m in enumerate(methods)}
    for (block, runs), row in zip(blocks.items(), axes, strict=True):
        _draw_dots(row[0], block, runs, looks)
        noises = list(alone_first(dict.fromkeys(_names(runs, "noise"))))
        for axis, modality in zip(row[1:], noises):
            for method, values in runs.items():
                curve = values["noise"].get(modality, {})
                scores = [100 * v for v in curve.values()]
                axis.plot(list(curve), scores, ms=4, lw=1.5, **looks[method])
            noise = "all modalities" if modality == "all" else modality
            _dress_curves(axis, f"{block}\nscore (%), noise on {noise}")
        for axis in row[1 + len(noises) :]:
            axis.set_visible(False)
    handles = [axes[0][0].plot([], [], ls="-", ms=5, label=m, **looks[m])[0] for m in methods]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return _save(figure, path, title)


def _names(runs, part):
    """Keys of a part of all runs, each once, in order."""
    return list(dict.fromkeys(k for values in runs.values() for k in values[part]))


def _draw_dots(axis, block, runs, looks):
    """Subsets as lines of text, a mark for each method's score."""
    names = list(by_size(dict.fromkeys(_names(runs, "subset"))))[::-1]
    offsets = [0.32 * (i - (len(runs) - 1) / 2) / max(1, len(runs) - 1) for i in range(len(runs))]
    for offset, (method, values) in zip(offsets[::-1], runs.items(), strict=True):
        places = [i + offset for i, n in enumerate(names) if n in values["subset"]]
        scores = [100 * values["subset"][n] for n in names if n in values["subset"]]
        axis.plot(scores, places, ls="none", ms=5.5, alpha=0.9, **looks[method])
    axis.set_yticks(range(len(names)), [n.replace("+", " + ") for n in names], fontsize=8)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_title(f"{block}\nscore (%), modalities present", fontsize=9, color=INK)
    axis.margins(x=0.08)
    _plain(axis)


def _draw_bars(axis, subset, chance):
    names = [n.replace("+", " + ") for n in subset]
    scores = [100 * v for v in subset.values()]
    drawn = axis.barh(names, scores, color=BAR, height=0.62)
    axis.bar_label(drawn, fmt="%.1f", padding=3, fontsize=8, color=INK)
    axis.invert_yaxis()
    axis.set_xlim(0, 112)
    axis.set_xticks(range(0, 101, 20))
    if chance is not None:
        axis.axvline(100 * chance, color=GREY, ls=":", lw=1)
    axis.set_title("Modalities present (%)", fontsize=9, color=INK)
    _plain(axis)


def _dress_curves(axis, title, chance=None):
    axis.set_title(title, fontsize=9, color=INK)
    axis.set_xlabel("level of noise (0: clean)", fontsize=8, color=GREY)
    if chance is not None:
        axis.axhline(
            100 * chance, color=GREY, ls=":", lw=1, label=f"most frequent class {100 * chance:.1f}"
        )
    axis.set_ylim(-3, 103)
    axis.set_xlim(-0.03, 1.03)
    _plain(axis)


def _plain(axis):
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _figure(rows, columns, size):
    from matplotlib.figure import Figure  # slow to import; without pyplot no display is needed

    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.6), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure, path, title):
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
