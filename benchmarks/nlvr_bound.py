"""How much 478 sentences teach: NLVR by a closed form that is told what lies in every picture.

    python -m benchmarks.nlvr_bound [--root ../shared/data/nlvr]

Kernel ridge regression on products of words and of counts of the true objects (`structured_rep`):
no pixel has to be understood. Five folds over the sentences, and the validation split.
"""

import argparse
import collections
import itertools
import json
import pathlib
import re

import numpy as np

COLOURS = {"Yellow": "yellow", "Black": "black", "#0099ff": "blue"}
SHAPES = ("square", "circle", "triangle")
NUMBERS = dict(zip(("one", "two", "three", "four", "five", "six"), "123456"))


def facts(boxes):
    """What holds in a picture: names of counts of objects by colour and shape, of its towers."""
    boxes = [[(COLOURS[o["color"]], o["type"], o["y_loc"]) for o in box] for box in boxes]
    found = set()
    for colour, shape in itertools.product((None, *COLOURS.values()), (None, *SHAPES)):
        counts = [
            sum(colour in (None, c) and shape in (None, s) for c, s, _ in box) for box in boxes
        ]
        name = f"{colour} {shape}"
        found |= {f"{name} in all {sum(counts)}", f"{name} at most {max(counts)}"}
        found |= {f"{name} in all over {k}" for k in range(sum(counts))}
        found |= {f"{name} in a box {k}" for k in counts}
        found |= {f"{name} in boxes {sum(map(bool, counts))}"}
    for box in boxes:
        if box and all(shape == "square" for _, shape, _ in box):
            tower = sorted(box, key=lambda o: o[2])
            found |= {f"top {tower[0][0]}", f"base {tower[-1][0]}", f"tower {len(box)}"}
            found |= {f"{len(box)} top {tower[0][0]}", f"{len(box)} base {tower[-1][0]}"}
    return found


def words(sentence):
    """Words and pairs of neighbours, numbers as digits, without the plural's s."""
    found = re.findall(r"[a-z0-9]+", sentence.lower())
    found = [NUMBERS.get(w, w).rstrip("s") for w in found]
    return set(found) | set(map(" ".join, itertools.pairwise(found)))


def matrix(sets, least):
    """[N, names] of 0 and 1; names that fewer than `least` rows have are left out."""
    counts = collections.Counter(itertools.chain.from_iterable(sets))
    names = sorted(n for n, c in counts.items() if c >= least)
    return np.array([[n in s for n in names] for s in sets], np.float64)


def accuracy(x, t, y, train, ridge):
    """Share of the other rows that a ridge on products of x and t, fitted to `train`, has right."""
    x = (x - x[train].mean(0)) / (x[train].std(0) + 0.1)
    kernel = (x @ x[train].T / x.shape[1] + 0.05) * (t @ t[train].T)
    mean = y[train].mean()
    weights = np.linalg.solve(kernel[train] + ridge * np.eye(train.sum()), y[train] - mean)
    guess = kernel[~train] @ weights + mean > 0
    return (guess == (y[~train] > 0)).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="../shared/data/nlvr")
    path = pathlib.Path(parser.parse_args().root, "examples.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    x = matrix([facts(r["structured_rep"]) for r in rows], 5)
    t = matrix([words(r["sentence"]) for r in rows], 20)
    t /= np.sqrt(np.maximum(t.sum(1, keepdims=True), 1))
    y = np.array([1.0 if r["label"] else -1.0 for r in rows])
    sentences = sorted({r["sentence"] for r in rows})
    fold = dict(zip(sentences, np.random.default_rng(0).integers(0, 5, len(sentences))))
    fold = np.array([fold[r["sentence"]] for r in rows])
    split = np.array([r["split"] == "train" for r in rows])
    print(f"{len(rows)} sets of {len(sentences)} sentences; {x.shape[1]} facts, {t.shape[1]} words")
    print(f"majority: {np.mean(y > 0):.3f} of all, {np.mean(y[~split] > 0):.3f} of the val split")
    for ridge in (0.3, 3.0, 30.0):
        folds = [accuracy(x, t, y, fold != k, ridge) for k in range(5)]
        val = accuracy(x, t, y, split, ridge)
        print(f"ridge {ridge:4}: five folds {np.mean(folds):.3f}, val {val:.3f}")


if __name__ == "__main__":
    main()
