"""Facts of a picture's objects: counted by hand, and the same whichever colours are exchanged."""

import itertools
import json
import re

import pytest

from multimodal.data.augment import Augment
from multimodal.data.nlvr import COLOURS, NAMES, facts


def thing(colour, shape="square", y=40, x=40, size=20):
    key = {name: key for key, name in NAMES.items()}[colour]
    return dict(color=key, type=shape, x_loc=x, y_loc=y, size=size)


def row(*boxes):
    return {"structured_rep": [list(box) for box in boxes]}


def test_facts_by_hand():
    tower = [thing("blue", y=80), thing("black", y=59), thing("blue", y=38)]
    found = facts(row(tower, [thing("yellow", "circle", x=50)], []))
    assert {"tower of 3", "blue top", "blue base", "tower of 3, blue top"} <= found
    assert {"blue square over 1 in all", "blue object exactly 2 in a box"} <= found
    assert {"any object over 3 in all", "any object exactly 0 in a box"} <= found
    assert {"any object in over 1 boxes", "any square over 2 in a box"} <= found
    assert "any object over 4 in all" not in found and "any square in over 1 boxes" not in found
    assert {n for n in found if n.endswith("at a wall")} == {
        f"{colour} {shape} at a wall"
        for colour in ("any", "blue")
        for shape in ("object", "square")
    }  # the tower stands on one
    assert "yellow top" not in found and facts(row([], [], [])) <= set(facts.names)


def test_all_facts_have_names():
    many = [thing("blue", shape, x=x) for shape in ("square", "circle") for x in range(0, 80, 10)]
    for size in range(len(many)):
        assert facts(row(many[:size], many[:1], [])) <= set(facts.names)


def exchanged(row, order):
    new = dict(zip(NAMES, order))
    return {"structured_rep": [[o | {"color": new[o["color"]]} for o in b] for b in row]}


def test_exchanging_colours_exchanges_their_names_in_the_facts(shared):
    path = shared / "data" / "nlvr" / "examples.jsonl"
    if not path.is_file():
        pytest.skip("no ../shared/data/nlvr")
    rows = [json.loads(line)["structured_rep"] for line in path.open(encoding="utf-8")][::97]
    words = re.compile("|".join(COLOURS))
    for boxes, order in itertools.product(rows, itertools.permutations(NAMES)):
        names = {NAMES[old]: NAMES[key] for old, key in zip(NAMES, order)}
        wanted = {words.sub(lambda m, n=names: n[m[0]], f) for f in facts(exchanged(boxes, NAMES))}
        assert facts(exchanged(boxes, order)) == wanted <= set(facts.names)


def test_an_augmentation_finds_each_name_that_it_makes():
    Augment({"swap_colours": {"colours": COLOURS}}, {"image": {}, "text": {}}, {"f": facts.names})
