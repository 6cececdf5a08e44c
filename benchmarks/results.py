"""Runs behind docs/results.md:
python benchmarks/results.py --out DIR [--only PREFIX,PREFIX] [--seeds N] [--jobs N]

Trains each experiment once a seed (a run that is there is not repeated), then prints its table:
mean and spread (largest minus smallest) over the seeds, and the seconds a run took.
"""

import argparse
import concurrent.futures
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIGITS = "configs/av_digits.py"
FAST = ["eval.names=('classification',)"]
STAGES = ("early", "hybrid", "late")
GRID = ("concat", "attention", "tensor")
MORE = ("low_rank_tensor", "gated", "multiplicative")
ACCURACY = "val/classify/digit/accuracy"


def cell(stage, operator):
    return [f"model.fusion.stage={stage}", f"model.fusion.operator={operator}"]


def experiments():
    """name -> (config, overrides, metrics of the table)."""
    found = {}

    def add(name, config, overrides=(), metrics=(ACCURACY,)):
        found[name] = (config, list(overrides), metrics)

    for m in ("image", "audio"):
        add(f"expert/{m}", f"{DIGITS}:{m},degraded", FAST)
    for operator in GRID:
        for stage in STAGES:
            add(f"grid/{stage}-{operator}", f"{DIGITS}:degraded", FAST + cell(stage, operator))
    names = ["eval.names=('classification','gap')"]
    gap = [f"val/gap/audio_image/{k}" for k in ("centroid", "probe")]
    for word in ("", "contrastive", "critic", "cca", "adversarial", "formula"):
        variant = ",".join(w for w in (word, "degraded") if w)
        add(f"align/{word or 'none'}", f"{DIGITS}:{variant}", names, (ACCURACY, *gap))
    subsets = [f"val/robustness/digit/subset/{s}" for s in ("audio+image", "image", "audio")]
    areas = [f"val/robustness/digit/noise/{m}/area" for m in ("image", "audio")]
    for word in ("", "dropout", "missing"):
        add(f"missing/{word or 'none'}", f"{DIGITS}:{word},degraded", (), (*subsets, *areas))
    for word in ("", "cca", "critic", "adversarial", "missing", "image", "audio"):
        add(f"clean/{word or 'none'}", f"{DIGITS}:{word}", FAST)
    for word in ("", "missing", "audio"):
        add(f"new-voice/{word or 'none'}", f"{DIGITS}:{word},speakers", FAST)
    for operator in MORE:
        add(f"more/late-{operator}", f"{DIGITS}:degraded", FAST + cell("late", operator))
    slots = ("command", "colour", "preposition", "letter", "digit", "adverb")
    by = [f"val/classify/{m}_{s}/accuracy" for m in ("audio", "video") for s in slots]
    three = [f"val/{a}_to_{b}/r1" for a, b in (("audio", "text"), ("video", "text"))]
    add("face/align", "configs/grid.py", (), (*by, *three))
    add(
        "face/fusion",
        "configs/grid.py:fusion",
        FAST,
        [f"val/classify/{s}/accuracy" for s in slots],
    )
    for fold in (1, 2, 3, 4):
        add(f"sounds/{fold}", f"configs/esc10.py:{fold}", (), ["val/classify/sound/accuracy"])
        add(
            f"sounds-zeroshot/{fold}",
            f"configs/esc10.py:{fold},zeroshot",
            (),
            ["val/zeroshot/top1"],
        )
    for word in ("", "critic"):
        splits = ("unseen_glyph", "unseen_style", "unseen_both")
        shown = [f"{s}/text_to_image/r1" for s in splits]
        shown += [f"unseen_style/gap/image_text/{k}" for k in ("centroid", "probe")]
        add(f"styles/{word or 'clip'}", f"configs/emoji_styles.py:{word}", (), shown)
    for word in ("", "blind", "image", "text"):
        name = f"true-or-false/{word or 'both'}"
        add(name, f"configs/nlvr.py:{word}", (), ["val/classify/truth/accuracy"])
    return found


def run(out, name, config, overrides, seed):
    """Train one experiment unless it is there; True if it worked."""
    folder = pathlib.Path(out, name, f"seed{seed}")
    if (folder / "seconds.txt").exists():
        return True
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "train.py", "--config", config, "--workdir", str(folder)]
    command += [f"--config.{o}" for o in (*overrides, f"seed={seed}", "eval.pictures=0")]
    began = time.perf_counter()
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log)
    if done.returncode:
        print(f"{name}, seed {seed}: exit {done.returncode}, see {folder / 'log.txt'}", flush=True)
        return False
    (folder / "seconds.txt").write_text(f"{time.perf_counter() - began:.0f}")
    return True


def row(out, name, metrics):
    """One line of the table, or None where no seed has run."""
    folders = [p.parent for p in sorted(pathlib.Path(out, name).glob("seed*/seconds.txt"))]
    if not folders:
        return None
    scores = []
    for folder in folders:
        newest = max((folder / "eval").glob("*.json"), key=lambda p: int(p.stem))
        scores.append(json.loads(newest.read_text()))
    cells = []
    for metric in metrics:
        values = [s[metric] for s in scores if metric in s]
        spread = max(values) - min(values) if values else 0
        cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}" if values else "-")
    seconds = statistics.mean(float((f / "seconds.txt").read_text()) for f in folders)
    return [name, *cells, f"{seconds:.0f} s", str(len(folders))]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    args = parser.parse_args()
    chosen = {k: v for k, v in experiments().items() if k.startswith(tuple(args.only.split(",")))}
    wanted = [(n, s) for s in range(0 if args.table else args.seeds) for n in chosen]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda w: run(args.out, w[0], *chosen[w[0]][:2], w[1]), wanted))
    shown = None
    for name, (_, _, metrics) in chosen.items():
        line = row(args.out, name, metrics)
        if line is None:
            continue
        if metrics != shown:
            heads = ["run", *(m.partition("/")[2] for m in metrics), "time", "seeds"]
            print(f"\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
            shown = metrics
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
