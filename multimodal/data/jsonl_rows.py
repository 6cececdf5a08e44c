"""JSON Lines files of captions: strict reading, every error names the file and the line."""

import json

from multimodal import paths
from multimodal.errors import UserError


def read_jsonl(path):
    """Objects of a JSONL file: list of (line number, dict); blank lines and a BOM may be there."""
    try:
        data = paths.read(path)
    except OSError as e:
        raise UserError(f"cannot read {str(path)!r}: {e.strerror}") from None
    if data[:2] == b"\x1f\x8b":
        raise UserError(f"{path}: is gzip, not JSON Lines; unpack it first")
    rows = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
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


def captions(path, number, row, field, required=True):
    """The list of captions of a row; [] only where `required` is false and the field is absent."""
    if field not in row and not required:
        return []
    value = row.get(field)
    good = isinstance(value, list) and value and all(isinstance(c, str) for c in value)
    if not good:
        what = "is missing" if field not in row else f"is {value!r:.60}"
        raise fault(path, number, f"field {field!r} must be a non-empty list of strings; it {what}")
    return value


def label(path, number, row, field, label_names):
    """The class of a row, or None where it has none; checked against the label names."""
    if field not in row:
        return None
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, int):
        raise fault(path, number, f"field {field!r} must be an integer, not {value!r:.60}")
    if label_names is None:
        raise fault(path, number, f"has a {field!r}: give the source `label_names` (list or file)")
    if not 0 <= value < len(label_names):
        raise fault(
            path, number, f"{field!r} {value} is outside the {len(label_names)} label names"
        )
    return value
