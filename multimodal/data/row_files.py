"""Files of rows: JSON Lines, and tables with a header (`.csv`: commas, `.tsv`: tabs)."""

import csv
import io

from multimodal.data import jsonl_rows
from multimodal.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_rows(path):
    """Rows of a file, by its name's end: list of (line number, dict).

    Values of a table are strings, quoted as in RFC 4180; an empty field is no value. Raises
    UserError with the line for what is damaged, not UTF-8, or of another length than the header.
    """
    for end, delimiter in DELIMITERS.items():
        if str(path).lower().endswith(end):
            return _read_table(path, delimiter)
    return jsonl_rows.read_jsonl(path)


def _read_table(path, delimiter):
    records = _records(path, delimiter)
    number, header = next(records, (0, ()))
    seen = set()
    for name in header:
        if not name or name in seen:
            what = f"the header names {name!r} twice" if name else "a column has no name"
            raise jsonl_rows.fault(path, number, f"{what}: {', '.join(header):.200}")
        seen.add(name)
    if len(header) == 1 and any(sign in header[0] for sign in ",;\t"):
        raise jsonl_rows.fault(
            path, number, f"the header is one field, {header[0]!r:.80}: commas separate those of "
            ".csv, tabs those of .tsv"
        )  # fmt: skip
    rows = []
    for number, values in records:
        if len(values) != len(header):
            raise jsonl_rows.fault(
                path, number, f"has {len(values)} fields, but the header {len(header)} "
                f"({', '.join(header):.100}); double quotes enclose a field that holds a separator"
            )  # fmt: skip
        rows.append((number, {k: v for k, v in zip(header, values) if v}))
    if not rows:
        raise UserError(f"{path}: no records (the file is empty, or has a header alone)")
    return rows


def _records(path, delimiter):
    """(first line, fields) of each record; blank lines are left out."""
    data = jsonl_rows.read_bytes(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise jsonl_rows.fault(path, line, f"not UTF-8 ({e.reason}); save it as UTF-8") from None
    # The csv module's own limit on a field (128 KiB) ends a quote that is never closed.
    reader, line = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1
    try:
        for values in reader:
            if values:
                yield line, values
            line = reader.line_num + 1
    except csv.Error as e:
        raise jsonl_rows.fault(path, line, f"not valid CSV ({e})") from None
