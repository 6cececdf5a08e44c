"""What is true of a picture of Cornell NLVR, from its objects: labels to learn to see by."""

import itertools

COLOURS = dict(yellow=(255, 255, 0), black=(0, 0, 0), blue=(0, 153, 255))  # as drawn
NAMES = {"Yellow": "yellow", "Black": "black", "#0099ff": "blue"}  # what an object's `color` says
SHAPES = ("square", "circle", "triangle")
_SIDE = 100  # of a box, in the objects' pixels
_MOST, _TALLEST = 6, 4  # objects, and blocks of a tower, that are counted


def _kinds(colours, shapes):
    """(colour, shape, what that is called) for all combinations; None: any."""
    for colour, shape in itertools.product((None, *colours), (None, *shapes)):
        yield colour, shape, f"{colour or 'any'} {shape or 'object'}"


def facts(row):
    """Names of the facts that hold for a row's `structured_rep`: boxes of objects with `color`,
    `type`, `x_loc`, `y_loc` and `size`. Counts by colour and shape, in all and box by box; what
    touches a wall; the tops and bases of towers.
    """
    boxes = [
        [(NAMES[o["color"]], o["type"], _at_wall(o), o["y_loc"]) for o in box]
        for box in row["structured_rep"]
    ]
    found = set()
    for colour, shape, kind in _kinds(COLOURS, SHAPES):
        members = [
            [o for o in box if colour in (None, o[0]) and shape in (None, o[1])] for box in boxes
        ]
        found |= _counted(kind, [len(m) for m in members])
        if any(o[2] for m in members for o in m):
            found.add(f"{kind} at a wall")
    for box in boxes:
        if 0 < len(box) <= _TALLEST and all(shape == "square" for _, shape, *_ in box):
            tower = sorted(box, key=lambda o: o[3])
            found |= _tower(len(box), tower[0][0], tower[-1][0])
    return found


def _tower(height, top, base):
    return {
        f"tower of {height}",
        *(f"{colour} {end}" for colour, end in ((top, "top"), (base, "base"))),
        *(f"tower of {height}, {colour} {end}" for colour, end in ((top, "top"), (base, "base"))),
    }


def _counted(kind, counts):
    """Facts of the number of such objects in each box."""
    found = {f"{kind} over {k} in all" for k in range(min(sum(counts), _MOST))}
    found |= {f"{kind} over {k} in a box" for k in range(1, min(max(counts), _MOST - 1))}
    found |= {f"{kind} exactly {k} in a box" for k in counts if k < _MOST}
    return found | {f"{kind} in over {k} boxes" for k in range(1, sum(map(bool, counts)))}


def _at_wall(o):
    return min(o["x_loc"], o["y_loc"]) <= 1 or max(o["x_loc"], o["y_loc"]) + o["size"] >= _SIDE - 1


def _all_names():
    names = set()
    for _, _, kind in _kinds(COLOURS, SHAPES):
        names |= {f"{kind} at a wall"}.union(*(_counted(kind, [k] * 3) for k in range(_MOST)))
    for height, colour in itertools.product(range(1, _TALLEST + 1), COLOURS):
        names |= _tower(height, colour, colour)
    return tuple(sorted(names))


facts.names = _all_names()  # the same for any rows, and whichever colours are exchanged
