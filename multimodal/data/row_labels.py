"""Labels of rows: classes by name or number, one or several at once."""

import numpy as np

from multimodal import paths
from multimodal.data.row_template import check_fields, get_field, word
from multimodal.data.sources import read_label_names
from multimodal.errors import UserError
from multimodal.registry import lookup, nearest

_KEYS = ("field", "fn", "names", "names_field", "multi")
_MOST_CLASSES = 100_000


class Labels:
    """The labels of one key: `names` of the classes, and `all`, the labels of the rows: a class, or
    uint8 [C] where there may be several.

    The value is the row's `field`, or what `fn` (`package.module:function(row)`) makes of the row;
    the function may have `names`.
    An integer is a class itself; any other value (text, true, false) is looked up among the names,
    and a number that is a text, as in tables, is a class where it is no name. Unknown is -1, but
    not for all rows. Names are those of the spec (a list, or a file below the root, one a line), or
    those of `names_field` in the rows, or the sorted values of all rows; give them where another
    file of the same kind may lack a class.
    """

    def __init__(self, spec, rows, root, where):
        spec = {"field": spec} if isinstance(spec, str) else dict(spec)
        for key in spec:
            if key not in _KEYS:
                raise UserError(f"{where}: unknown key {key!r}{nearest(key, _KEYS)}")
        self._field, self._where = spec.get("fn", spec.get("field", "")), where
        self._multi, self._function = bool(spec.get("multi", False)), None
        if "fn" in spec:
            if "field" in spec:
                raise UserError(f"{where}: field and fn: give one of them")
            self._function = lookup({}, spec["fn"], f"{where}.fn", takes=("row",))
        else:
            check_fields([self._field], rows, where)
        found = [self._values(row) for row in rows]
        values = [v for some in found for v in some]
        names = spec.get("names", getattr(self._function, "names", None))
        names = paths.join(root, names) if names and isinstance(names, str) else names
        self.names = read_label_names(names) or self._find_names(rows, values, spec)
        self._numbers = {name: i for i, name in enumerate(self.names)}
        if len(self._numbers) != len(self.names):
            raise UserError(f"{where}: a name occurs twice among the names of classes")
        known = [v for v in values if not (_is_number(v) and v < 0)]  # those mean "not known"
        if known and all(self._number(v) < 0 for v in known):
            raise UserError(
                f"{where}: no row's {self._field!r} is among the names {', '.join(self.names):.100}"
                f"; the first is {known[0]!r:.60}"
            )
        self.all = [self._label(some) for some in found]

    def _label(self, values):
        numbers = [self._number(v) for v in values]
        if not self._multi:
            return numbers[0] if numbers else -1
        out = np.zeros(len(self.names), np.uint8)
        out[[n for n in numbers if n >= 0]] = 1
        return out

    def _values(self, row):
        value = self._computed(row) if self._function else get_field(row, self._field)
        if isinstance(value, list) and not self._multi:
            raise UserError(
                f"{self._where}: field {self._field!r} is a list: set multi=True, or name one of "
                f"its places ('{self._field}.0')"
            )
        values = value if isinstance(value, list) else [value]
        return [
            v if _is_number(v) else word(v, self._field, self._where)
            for v in values
            if v is not None
        ]

    def _computed(self, row):
        """What the function makes of a row: a name or number, or a list of them."""
        try:
            value = self._function(row)
            if isinstance(value, np.ndarray | np.generic):
                value = value.tolist()
            return list(value) if isinstance(value, set | frozenset | tuple) else value
        except Exception as e:  # it is a user's, and may raise anything
            raise UserError(
                f"{self._where}: {self._field} fails with {e!r:.100} for the row {row!r:.100}"
            ) from e

    def _number(self, value):
        if _is_number(value):
            return value if 0 <= value < len(self.names) else -1
        number = self._numbers.get(value, _as_number(value))
        return number if _is_number(number) and number < len(self.names) else -1

    def _find_names(self, rows, values, spec):
        if "names_field" in spec:
            return self._names_of(rows, spec["names_field"])
        values = list(map(_as_number, values))
        if not all(map(_is_number, values)):
            return sorted({word(v, self._field, self._where) for v in values})
        return [str(i) for i in range(self._classes(values))]

    def _names_of(self, rows, field):
        """Names by number, from a second field of the same rows."""
        check_fields([field], rows, self._where)
        names = {}
        for row in rows:
            name = get_field(row, field)
            for number in map(_as_number, self._values(row)):
                if not _is_number(number) or names.setdefault(number, name) != name:
                    raise UserError(
                        f"{self._where}: {self._field!r} {number!r} is no number, or has several "
                        f"names in {field!r}: {names.get(number)!r}, {name!r}"
                    )
        return [str(names.get(i, i)) for i in range(self._classes(names))]

    def _classes(self, numbers):
        count = max(numbers, default=-1) + 1
        if not 0 < count <= _MOST_CLASSES:
            raise UserError(
                f"{self._where}: {self._field!r} goes up to {count - 1}, so it is no class; give "
                "`names`"
            )
        return count


def _is_number(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _as_number(value):
    """The number that a text is, otherwise the value itself."""
    digits = isinstance(value, str) and value.isascii() and value.isdecimal()
    return int(value) if digits and len(value) < 10 else value
