"""The converter: a table of names, and two functions that read it forwards and backwards."""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from multimodal.errors import UserError
from multimodal.interop.transforms import Same

LISTED = 12  # names that an error message shows at most


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of theirs and what it is here.

    Attributes:
      theirs: its name.
      ours: paths, each beginning with 'params/', 'ema/' or 'queue/'; several where theirs is fused.
      transform: see transforms.
      resize: fn(array of ours, shape) -> array, for position embeddings.
    """

    theirs: str
    ours: tuple[str, ...]
    transform: object = Same()
    resize: Callable | None = None

    @property
    def part(self):
        """'params', 'ema' or 'queue'."""
        return self.ours[0].split("/", 1)[0]


@dataclasses.dataclass(frozen=True)
class Table:
    """A format: entries, names tied to others ((copy, original), ...), and regexes of buffers that
    carry nothing."""

    entries: tuple[Entry, ...]
    tied: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()


def matches(name, patterns) -> bool:
    """Does any of the regexes match the whole name?"""
    return any(re.fullmatch(p, name) for p in patterns)


def bare(path) -> str:
    """A path without its part: 'params/temperature' -> 'temperature'."""
    return path.partition("/")[2]


def listed(names) -> str:
    """Names for an error message."""
    names = sorted(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def load(state, table, shapes, where, allow_unused=(), allow_missing=(), resize=False) -> dict:
    """A state dict of theirs -> {path: array} of ours.

    Args:
      state: {name: array}.
      shapes: {path: shape} that the model wants; the queue's paths may be absent, any size is then
        right.
      where: the file, for messages.
      allow_unused: regexes of names in the file that may stay unused.
      allow_missing: regexes of names, or of paths of ours, that the file need not have.
      resize: resize position embeddings to the model's number of positions.
    Raises UserError for keys left over or missing, wrong shapes and unequal tied weights. A file
    without any teacher or without any queue is fine, one with half of it is not.
    """
    flat, missing = {}, {}
    for entry in table.entries:
        if entry.theirs in state:
            flat |= convert(entry, state[entry.theirs], shapes, where, resize)
        else:
            missing.setdefault(entry.part, []).append(entry)
    check_missing(missing, flat, table, shapes, where, allow_missing)
    known = {e.theirs for e in table.entries} | {copy for copy, _ in table.tied}
    ignored = table.ignored + tuple(allow_unused)
    unused = [k for k in state if k not in known and not matches(k, ignored)]
    if unused:
        raise UserError(
            f"{where}: {len(unused)} weights would stay unused: {listed(unused)}: allow them with "
            "allow_unused (regexes), or use the model that they belong to"
        )
    for copy, original in table.tied:
        if copy in state and original in state and not np.array_equal(state[copy], state[original]):
            raise UserError(f"{where}: {copy} differs from {original}, but the model ties them")
    return flat


def check_missing(missing, flat, table, shapes, where, allowed):
    """Raise UserError for what neither the file has nor the allow-list names."""
    covered = {path for e in table.entries for path in e.ours}
    lacking = [("", (p,)) for p in shapes if p.startswith("params/") and p not in covered]
    for part, entries in missing.items():
        if part == "params" or any(path.startswith(part + "/") for path in flat):
            lacking += [(e.theirs, e.ours) for e in entries]
    names = []
    for theirs, ours in lacking:
        paths = [bare(p) for p in ours]
        if not matches(theirs, allowed) and not all(matches(p, allowed) for p in paths):
            names.append(f"{theirs} ({', '.join(paths)})".strip())
    if names:
        raise UserError(
            f"{where}: {len(names)} weights that the model needs are missing: {listed(names)}: "
            "allow them with allow_missing (regexes), they then keep their initial values"
        )


def convert(entry, x, shapes, where, resize):
    """{path: array} for one array of theirs."""
    want = [shapes.get(path) for path in entry.ours]
    if want[0] is None:
        return dict(zip(entry.ours, entry.transform.to_ours(x, [None]), strict=True))
    expected = expected_shape(entry, want)
    if x.shape != expected and not (x.size == 1 and expected in ((), (1,))):
        if entry.resize is None or not same_but_length(x.shape, expected):
            raise UserError(
                f"{where}: {entry.theirs} has shape {x.shape}, the model needs {expected}"
            )
        if not resize:
            raise UserError(
                f"{where}: {entry.theirs} has shape {x.shape}, the model needs {expected}: "
                "set resize_pos_embed=True to resize it"
            )
        (y,) = entry.transform.to_ours(x, want)
        return {entry.ours[0]: entry.resize(y, want[0])}
    return dict(zip(entry.ours, entry.transform.to_ours(x, want), strict=True))


def same_but_length(a, b):
    """Shapes [..., L, D] that differ in L only."""
    return len(a) == len(b) and a[-1] == b[-1] and a[:-2] == b[:-2]


def expected_shape(entry, shapes):
    """The shape that theirs has when ours have these."""
    dummies = [np.broadcast_to(np.int8(0), s) for s in shapes]
    return entry.transform.to_theirs(dummies).shape


def dump(flat, table, where) -> dict:
    """{path: array} of ours -> state dict of theirs; the inverse of load.

    Parts ('ema', 'queue') that are absent are left out. Raises UserError for a parameter that the
    format has no name for and for a name without parameter.
    """
    parts = {path.split("/", 1)[0] for path in flat}
    state, used = {}, set()
    for entry in table.entries:
        if entry.part not in parts:
            continue
        lacking = [p for p in entry.ours if p not in flat]
        if lacking:
            raise UserError(
                f"{where}: the model has no {listed(map(bare, lacking))}, "
                f"which the format calls {entry.theirs}"
            )
        arrays = [np.asarray(flat[p]) for p in entry.ours]
        state[entry.theirs] = np.array(entry.transform.to_theirs(arrays), order="C")
        used.update(entry.ours)
    extra = [p for p in flat if p.startswith("params/") and p not in used]
    if extra:
        raise UserError(
            f"{where}: the format has no name for {listed(map(bare, extra))}: its models are of "
            "another kind; take another --format, or use the run as it is (multimodal.load)"
        )
    state |= {copy: state[original] for copy, original in table.tied if original in state}
    return state
