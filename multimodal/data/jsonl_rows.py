"""Rows of JSON Lines and what is in them: strict reading, every error names file and line."""

import json

from multimodal import paths
from multimodal.data import splits
from multimodal.errors import UserError


def read_bytes(path):
    """A file of text without its BOM. Raises UserError where there is none, or it is packed."""
    try:
        data = paths.read(path)
    except OSError as e:
        raise UserError(f"cannot read {str(path)!r}: {e.strerror}") from None
    if data[:2] == b"\x1f\x8b":
        raise UserError(f"{path}: is gzip, not text; unpack it first")
    return data.removeprefix(b"\xef\xbb\xbf")


def read_jsonl(path):
    """Objects of a JSONL file: list of (line number, dict); blank lines and a BOM may be there."""
    rows = []
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        if line.strip():
            rows.append((number, _parse(path, number, line)))
    if not rows:
        raise UserError(f"{path}: no records (the file is empty)")
    return rows


def _parse(path, number, line):
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as e:
        raise fault(path, number, f"not UTF-8 ({e.reason})") from None
    except (ValueError, RecursionError) as e:
        raise fault(path, number, f"not valid JSON ({e})") from None
    if not isinstance(row, dict):
        raise fault(path, number, f"must be an object, not {type(row).__name__}")
    return row


def _no_constant(name):
    raise ValueError(f"{name} is not allowed")


def fault(path, number, message):
    """The UserError for one line of a file."""
    return UserError(f"{path}, line {number}: {message}")


def string_field(path, number, row, field):
    """A required, non-empty string."""
    value = row.get(field)
    if not isinstance(value, str) or not value:
        raise fault(path, number, f"field {field!r} must be a non-empty string, not {value!r:.60}")
    return value


def of_split(path, rows, split, field=None):
    """Those of the rows that belong to a split.

    Args:
      field: tells the splits apart; '': nothing does, and every split is all rows; None: 'split'
        where a row has it, and otherwise there is 'train' alone.
    Raises: UserError for a row without the field, and for a split that has no rows.
    """
    if field is None:
        field = "split" if any("split" in row for _, row in rows) else ""
        if not field:
            how = "put {split} into the file's name, give the rows a field 'split' (or name one "
            how += "with split_field), or set split_field='' to take all rows for every split"
            splits.check_alone(path, split, how)
    if not field:
        return rows
    values = [string_field(path, line, row, field) for line, row in rows]
    return [rows[i] for i in splits.choose(values, split, path)]


def captions(path, number, row, field, required=True):
    """The captions of a row, as a list; [] only where `required` is false and there are none.

    `field` holds a string or a list of them. '': a list in 'captions', or either in 'caption'.
    """
    plural = not field and "captions" in row
    field = field or ("captions" if plural else "caption")
    if field not in row and not required:
        return []
    value = row.get(field)
    values = [value] if isinstance(value, str) and value and not plural else value
    if not isinstance(values, list) or not values or not all(isinstance(c, str) for c in values):
        name = repr(field) if field in row else "'captions' or 'caption'"
        what = f"it is {value!r:.60}" if field in row else "it is missing"
        what += "; a single one is called 'caption'" if plural and isinstance(value, str) else ""
        kind = "a non-empty list of strings" if plural else "a text, or a list of them"
        raise fault(path, number, f"field {name} must be {kind}; {what}")
    return values


def label(path, number, row, field, label_names):
    """The class of a row, or None where it has none; checked against the label names."""
    if field not in row:
        return None
    value = row[field]
    if isinstance(value, str) and label_names:
        value = _class(value, label_names)
    if isinstance(value, bool) or not isinstance(value, int):
        why = f"field {field!r} must be an integer or one of `label_names`, not {value!r:.60}"
        raise fault(path, number, why)
    if label_names is None:
        raise fault(path, number, f"has a {field!r}: give the source `label_names` (list or file)")
    if not 0 <= value < len(label_names):
        raise fault(
            path, number, f"{field!r} {value} is outside the {len(label_names)} label names"
        )
    return value


def _class(text, label_names):
    """The number of a class by its name or, as tables have it, by the number as text."""
    if text in label_names:
        return label_names.index(text)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text
