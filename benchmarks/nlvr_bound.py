"""How much 478 sentences teach: NLVR by a closed form that is told what lies in every picture.

    python -m benchmarks.nlvr_bound [--root ../shared/data/nlvr]

Kernel ridge regression on products of words and of facts of the true objects (`structured_rep`):
no pixel has to be understood. Five folds over the sentences, and the validation split; with
examples as they are, and with each in all six exchanges of its colours, in picture and sentence.
"""

import argparse
import collections
import itertools
import json
import pathlib
import re

import numpy as np

from multimodal.data.nlvr import NAMES, facts

NUMBERS = dict(zip(("one", "two", "three", "four", "five", "six"), "123456"))


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


def exchanged(row, colours):
    """A row whose yellow, black and blue are now `colours`, in picture and sentence."""
    new = dict(zip(NAMES.values(), colours))
    keys = {name: key for key, name in NAMES.items()}
    boxes = [
        [o | {"color": keys[new[NAMES[o["color"]]]]} for o in box] for box in row["structured_rep"]
    ]
    text = re.sub("|".join(new), lambda m: new[m.group()], row["sentence"].lower())
    return {"structured_rep": boxes, "sentence": text}


def kernel(rows, orders):
    """[N, N] products of pictures' facts times products of words, averaged over exchanges of
    colours (all six make it blind to which colour is which); and the numbers of facts and words.
    """
    every = [exchanged(r, colours) for colours in orders for r in rows]
    x = matrix([facts(r) for r in every], 5)
    t = matrix([words(r["sentence"]) for r in every], 20)
    x = ((x - x.mean(0)) / (x.std(0) + 0.1)).astype(np.float32)
    t = (t / np.sqrt(np.maximum(t.sum(1, keepdims=True), 1))).astype(np.float32)
    n, found = len(rows), 0.0
    for k in range(len(orders)):
        a, b = x[k * n : (k + 1) * n], t[k * n : (k + 1) * n]
        found = found + (x[:n] @ a.T / x.shape[1] + 0.05) * (t[:n] @ b.T)
    return found.astype(np.float64) / len(orders), x.shape[1], t.shape[1]


def accuracy(k, y, train, ridge):
    """Share of the other rows that a kernel ridge, fitted to `train`, has right."""
    mean = y[train].mean()
    gram = k[np.ix_(train, train)] + ridge * np.eye(train.sum())
    guess = k[np.ix_(~train, train)] @ np.linalg.solve(gram, y[train] - mean) + mean > 0
    return (guess == (y[~train] > 0)).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="../shared/data/nlvr")
    path = pathlib.Path(parser.parse_args().root, "examples.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    y = np.array([1.0 if r["label"] else -1.0 for r in rows])
    sentences = sorted({r["sentence"] for r in rows})
    fold = dict(zip(sentences, np.random.default_rng(0).integers(0, 5, len(sentences))))
    fold = np.array([fold[r["sentence"]] for r in rows])
    split = np.array([r["split"] == "train" for r in rows])
    print(f"{len(rows)} sets of {len(sentences)} sentences")
    print(f"majority: {np.mean(y > 0):.3f} of all, {np.mean(y[~split] > 0):.3f} of the val split")
    names = tuple(NAMES.values())
    for title, orders in (
        ("as they are", [names]),
        ("colours exchanged", list(itertools.permutations(names))),
    ):
        k, x_size, t_size = kernel(rows, orders)
        print(f"{title}: {x_size} facts, {t_size} words")
        for ridge in (0.1, 0.3, 1.0, 3.0):
            folds = [accuracy(k, y, fold != j, ridge) for j in range(5)]
            val = accuracy(k, y, split, ridge)
            print(f"  ridge {ridge:4}: five folds {np.mean(folds):.3f}, val {val:.3f}", flush=True)


if __name__ == "__main__":
    main()
