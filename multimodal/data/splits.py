"""Which split a row or a file belongs to, for sources whose files do not know splits themselves."""

from multimodal.errors import UserError
from multimodal.registry import nearest

ALONE = "train"  # the only split of rows that nothing tells apart


def fill(pattern, split):
    """A path or pattern, or a list of them, with `{split}` filled in: (the same kind, whether it
    was there)."""
    if isinstance(pattern, str):
        return pattern.replace("{split}", split), "{split}" in pattern
    found = [fill(p, split) for p in pattern]
    return [p for p, _ in found], bool(found) and all(told for _, told in found)


def check_alone(name, split, how):
    """Raise UserError for any split but 'train' of rows that nothing tells apart; `how` to mend.

    The rows that a run trains on must not become its evaluation without a word.
    """
    if split != ALONE:
        raise UserError(
            f"{name}: nothing tells the splits apart, so there is {ALONE!r} alone, not {split!r}: "
            f"{how}"
        )


def choose(values, split, name):
    """Places of the split among the values of a field. Raises UserError where there is none."""
    found = [i for i, value in enumerate(values) if value == split]
    if not found:
        there = sorted({str(v) for v in values})
        raise UserError(
            f"{name}: no examples in split {split!r}{nearest(split, there)}; there are "
            f"{', '.join(there):.200}"
        )
    return found
