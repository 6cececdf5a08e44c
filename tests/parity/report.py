"""Rows of a parity table, and how an error is measured."""

import dataclasses

import numpy as np
from flax.traverse_util import flatten_dict

TOLERANCE = {"float32": 1e-5, "float64": 1e-9}
ROUNDING = 1e-6  # of float32 gradients, relative to the largest of an array: what the tables show
TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class Row:
    """One compared quantity; tolerance None means that it was not compared."""

    quantity: str
    error: float
    tolerance: float | None
    note: str = ""

    @property
    def ok(self):
        """Within tolerance; NaN is not."""
        return self.tolerance is None or self.error <= self.tolerance


class Report:
    """The table of one folder."""

    def __init__(self, name):
        self.name, self.rows, self.used = name, [], set()

    def load(self, path) -> dict:
        """The arrays of a file, which is thereby covered."""
        self.used.add(path.name)
        with np.load(path, allow_pickle=False) as z:
            return {k: z[k] for k in z.files}

    def add(self, quantity, error, dtype, note=""):
        """One row; the dtype decides on the tolerance."""
        self.rows.append(Row(quantity, float(error), TOLERANCE[np.dtype(dtype).name], note))

    def compare(self, quantity, ours, theirs, dtype, note="", scale=None):
        """One row for an array, or for the worst of two trees' arrays."""
        if not isinstance(ours, dict):
            return self.add(quantity, relative(ours, theirs, scale), dtype, note)
        return self.worst_of(quantity, errors_of(ours, theirs, scale), dtype, note)

    def worst_of(self, quantity, errors: dict, dtype, note=""):
        """One row for the worst of {path: error}."""
        worst = max(errors, key=lambda k: nan_last(errors[k]))
        count = f"{len(errors)} arrays, worst {worst}" if len(errors) > 1 else worst
        return self.add(quantity, errors[worst], dtype, f"{count}; {note}" if note else count)

    def skip(self, quantity, why):
        """A row that was not compared."""
        self.rows.append(Row(quantity, 0.0, None, why))

    @property
    def checked(self):
        """The rows that were compared."""
        return [r for r in self.rows if r.tolerance is not None]

    @property
    def ok(self):
        """Something was checked, and all of it is within tolerance."""
        return bool(self.checked) and all(r.ok for r in self.rows)

    def table(self) -> str:
        """The rows as text."""
        wide = max([len(r.quantity) for r in self.rows] + [8])
        lines = [f"== {self.name}", f"   {'quantity':{wide}}  {'error':>8}  {'limit':>6}"]
        for r in self.rows:
            if r.tolerance is None:
                lines.append(f"   {r.quantity:{wide}}  {'-':>8}  {'-':>6}  {r.note}")
            else:
                mark = "  " if r.ok else "X "
                numbers = f"{r.error:8.1e}  {r.tolerance:6.0e}"
                lines.append(f" {mark}{r.quantity:{wide}}  {numbers}  {r.note}".rstrip())
        if not self.checked:
            lines.append(" X nothing in this folder could be checked")
        return "\n".join(lines)


def relative(a, b, scale=None) -> float:
    """max|a - b| / max|b|, or over a scale given; infinite for different shapes."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a - b).max(initial=0.0) / max(scale or np.abs(b).max(initial=0.0), TINY))


def nan_last(x):
    """Sort key by which NaN is the worst."""
    return (np.isnan(x), x)


def errors_of(ours: dict, theirs: dict, scale=None) -> dict:
    """{path: relative error} over two trees, which must have the same paths."""
    ours, theirs = flatten_dict(ours, sep="/"), flatten_dict(theirs, sep="/")
    differ = set(ours) ^ set(theirs)
    return {
        k: float("inf") if k in differ else relative(ours[k], theirs[k], scale)
        for k in ours | theirs
    }


def within_adam(ours, theirs, gradients, learning_rate, eps) -> dict:
    """{path: error} of float32 weights after Adam's steps, as shares of each element's limit times
    the tolerance.

    An element's limit is the tolerance of its array's largest weight, plus how far Adam carries a
    rounding error of its gradients, lr * sum_t min(2, ROUNDING * max|g_t| / (|g_t| + eps)), because
    it divides an element's gradient by its own size: where that is near zero, not even the step's
    sign is determined in float32. Without that term a handful of elements in 10^5 fail, on which
    the original's run is as far from exact arithmetic as ours (up to 5e-5 of an array's largest
    weight, both measured against float64 from the same start). Elsewhere the term is negligible.
    """
    gradients = [flatten_dict(g, sep="/") for g in gradients]
    errors = {}
    for k, w in theirs.items():
        carried = 0.0
        for g in (np.abs(np.asarray(g[k], np.float64)) for g in gradients):
            carried = carried + np.minimum(2.0, ROUNDING * g.max(initial=0) / (g + eps))
        limit = TINY + np.abs(w).max(initial=0) + learning_rate * carried / TOLERANCE["float32"]
        errors[k] = float((np.abs(np.asarray(ours[k]) - w) / limit).max(initial=0))
    return errors


def split_key_biases(tree: dict) -> tuple[dict, dict]:
    """(all but, only) biases of attention keys.

    They shift all logits of a query alike, so their gradient is zero in exact arithmetic and
    rounding noise in fact.
    """
    flat = flatten_dict(tree, sep="/")
    zero = {k: v for k, v in flat.items() if k.endswith("/key/bias")}
    return {k: v for k, v in flat.items() if k not in zero}, zero


def compare_gradients(report, quantity, ours, theirs, dtype, note=""):
    """Two rows: gradients, and those that are zero in exact arithmetic, measured against the
    largest gradient."""
    (ours, ours_zero), (theirs, theirs_zero) = split_key_biases(ours), split_key_biases(theirs)
    report.compare(quantity, ours, theirs, dtype, note)
    if theirs_zero:
        largest = max(float(np.abs(v).max()) for v in theirs.values())
        report.compare(
            f"{quantity}, key biases",
            ours_zero,
            theirs_zero,
            dtype,
            "zero but for rounding: over the largest",
            largest,
        )
