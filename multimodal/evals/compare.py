"""Compare runs by robustness: python -m multimodal.evals.compare RUN RUN ... [--reference RUN]
[--out DIR]

Reads the newest eval/STEP.json of each run, prints a table and writes DIR/compare.md, compare.json
and compare.png. The reference, against which effective robustness is taken, is the first run unless
another one is named.
"""

import json
import pathlib
import sys

from multimodal.errors import UserError
from multimodal.evals.grids import alone_first, by_first, by_size, cell, levels_of, sections
from multimodal.evals.robustness import area, effective

PERCENT, SIGNED = "{:.1f}", "{:+.1f}"


def read_scores(run) -> dict:
    """The newest eval/STEP.json of a run's folder. Raises UserError where there is none."""
    folder = pathlib.Path(run).expanduser()
    steps = [p for p in folder.glob("eval/*.json") if p.stem.isdigit()]
    if not steps:
        raise UserError(f"{run}: no eval/STEP.json: train or evaluate it first")
    path = max(steps, key=lambda p: int(p.stem))
    try:
        metrics = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as e:
        raise UserError(f"{path}: cannot be read ({e})") from None
    if not sections(metrics, "robustness"):
        raise UserError(
            f"{path}: has no robustness metrics: run eval.py --workdir {run} --evals robustness"
        )
    return metrics


def methods_of(runs) -> dict:
    """{name: path}: the folder's name, or as much of its path as tells it from the others."""
    paths = list(dict.fromkeys(pathlib.Path(run).expanduser().resolve() for run in runs))

    def name(path):
        n = 1
        while sum(other.parts[-n:] == path.parts[-n:] for other in paths) > 1:
            n += 1
        return "/".join(path.parts[-n:])

    return {name(path): path for path in paths}


def curves(metrics) -> dict:
    """{'SPLIT: NAME': {subset: {s: v}, noise: {modality: {level: v}}}} of a run's metrics."""
    found = {}
    for split, values in sections(metrics, "robustness").items():
        for name, rest in by_first(values).items():
            parts = by_first(rest)
            noise = alone_first(by_first(parts.get("noise", {})))
            found[f"{split}: {name}"] = {
                "subset": by_size(parts.get("subset", {})),
                "noise": {m: levels_of(ladder) for m, ladder in noise.items()},
            }
    return found


def compare(scores, reference) -> dict:
    """{block: {method: {clean, subset, noise, area, effective}}} of {method: metrics}.

    Args:
      reference: metrics of the run against which effective robustness is taken. It is an area over
        the levels that both have; see robustness.effective.
    """
    wanted = curves(reference)
    blocks = {}
    for method, metrics in scores.items():
        for block, found in curves(metrics).items():
            theirs = wanted.get(block, {"noise": {}})["noise"]
            whole = list(found["subset"].values())
            blocks.setdefault(block, {})[method] = found | {
                "clean": whole[-1] if whole else None,
                "area": {m: area(tuple(c), list(c.values())) for m, c in found["noise"].items()},
                "effective": {
                    m: value
                    for m, c in found["noise"].items()
                    if (value := _effective(c, theirs.get(m, {}))) is not None
                },
            }
    return blocks


def _effective(curve, reference):
    """Over the levels of both, or None where they share fewer than two, or not the clean one."""
    levels = [v for v in curve if v in reference]
    if len(levels) < 2 or levels[0] != 0:
        return None
    return effective(levels, [curve[v] for v in levels], [reference[v] for v in levels])


def markdown(blocks, reference) -> str:
    """A table for each block: a row a method; scores in percent, areas likewise."""
    parts = ["# Robustness\n"]
    for block, runs in blocks.items():
        subsets = list(by_size(dict.fromkeys(k for r in runs.values() for k in r["subset"])))
        noises = list(alone_first(dict.fromkeys(k for r in runs.values() for k in r["noise"])))
        heads = ["method", "clean", *subsets[:-1], *(f"area {m}" for m in noises)]
        heads += [f"effective {m}" for m in noises]
        rows = []
        for method, r in runs.items():
            cells = [cell(v, PERCENT) for v in (r["clean"], *map(r["subset"].get, subsets[:-1]))]
            cells += [cell(r["area"].get(m), PERCENT) for m in noises]
            cells += [_signed(r["effective"].get(m)) for m in noises]
            rows.append([method, *cells])
        parts += [f"## {block}\n", _table(heads, rows), ""]
    parts.append(
        "Scores in percent: clean, with only some modalities present, and as area under the curve "
        "over the level of noise on a modality. Effective robustness: area between a curve and "
        f"that of {reference}, shifted to start with it (Taori et al. 2020); above 0 loses less. "
        "Raw values: they do not depend on which runs are compared."
    )
    return "\n".join(parts) + "\n"


def _signed(value):
    return "-" if value is None else SIGNED.format(100 * value)


def _table(heads, rows):
    widths = [max(len(r[i]) for r in [heads, *rows]) for i in range(len(heads))]
    rule = ["-" * widths[0]] + ["-" * (w - 1) + ":" for w in widths[1:]]

    def line(cells):
        numbers = [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join([cells[0].ljust(widths[0]), *numbers])} |"

    return "\n".join(map(line, [heads, rule, *rows]))


def write_comparison(runs, reference="", out=".") -> str:
    """Compare runs and write compare.md, compare.json and compare.png to `out`; returns the table.

    Raises: UserError for runs without robustness metrics.
    """
    from multimodal.evals.curves import draw_comparison

    methods = methods_of(runs)
    scores = {name: read_scores(path) for name, path in methods.items()}
    reference = pathlib.Path(reference or runs[0]).expanduser().resolve()
    name = next((n for n, path in methods.items() if path == reference), reference.name)
    blocks = compare(scores, scores.get(name) or read_scores(reference))
    text = markdown(blocks, name)
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.md").write_text(text, encoding="utf-8")
    found = json.dumps({"reference": name, "blocks": blocks}, indent=1)
    (out / "compare.json").write_text(found + "\n", encoding="utf-8")
    draw_comparison(out / "compare.png", blocks)
    return text


def parse_args(argv):
    """(runs, reference, out). Raises UserError for arguments that do not fit."""
    import argparse

    usage = "usage: python -m multimodal.evals.compare RUN RUN ... [--reference RUN] [--out DIR]"
    if {"-h", "--help"} & set(argv):
        print(usage)
        sys.exit(0)
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False, add_help=False)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--reference", default="")
    parser.add_argument("--out", default=".")
    try:
        args, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as e:
        raise UserError(f"{e}; {usage}") from None
    if rest or not args.runs:
        raise UserError(f"{'unknown argument ' + rest[0] if rest else 'no RUN is given'}; {usage}")
    return args


def main():
    try:
        args = parse_args(sys.argv[1:])
        print(write_comparison(args.runs, args.reference, args.out))
        print(f"written: {pathlib.Path(args.out, 'compare')}.md, .json, .png")
    except UserError as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as e:
        print(f"error: {e.strerror}: {e.filename}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
