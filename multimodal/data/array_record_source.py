"""ArrayRecord files of ours, `SPLIT-00000-of-00010.array_record`; written by data/prepare.py.

A record is its own description in JSON, then bytes: nothing in it is executed when it is read. Its
check sums tell a damaged one.
"""

import json
import pathlib
import re
import struct

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from multimodal import paths
from multimodal.errors import BadRecord, UserError, first_line

DTYPE = re.compile(r"\|b1|\|[iu]1|<[iuf][248]")  # of arrays


def pack(example) -> bytes:
    """An example of a source as one record."""
    head, blobs = {}, []
    for key, value in example.items():
        head[key] = _describe(value, blobs)
    text = json.dumps(head, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return struct.pack("<I", len(text)) + text + b"".join(blobs)


def _describe(value, blobs):
    if isinstance(value, bytes | bytearray | memoryview):
        blobs.append(bytes(value))
        return {"bytes": len(value)}
    if isinstance(value, np.ndarray):
        value = value.astype(value.dtype.newbyteorder("<"))
        if not DTYPE.fullmatch(value.dtype.str):
            raise UserError(f"arrays of {value.dtype} cannot be written as records")
        blobs.append(np.ascontiguousarray(value).tobytes())
        return {"array": [value.dtype.str, list(value.shape)]}
    if isinstance(value, tuple):
        return {"tuple": [_describe(v, blobs) for v in value]}
    return {"json": value.item() if isinstance(value, np.generic) else value}


def unpack(record: bytes) -> dict:
    """The example of a record. Raises BadRecord for anything that `pack` did not make."""
    try:
        (size,) = struct.unpack_from("<I", record)
        head = json.loads(record[4 : 4 + size].decode("utf-8", "surrogatepass"))
        at = [4 + size]
        example = {key: _value(spec, record, at) for key, spec in head.items()}
        if at[0] != len(record):
            raise ValueError("bytes are left over")
        return example
    except Exception as e:  # of whatever kind: `pack` never made it
        raise BadRecord(f"not a record of prepare.py ({e!s:.100})") from None


def _value(spec, record, at):
    ((kind, what),) = spec.items()
    if kind == "json":
        return what
    if kind == "tuple":
        return tuple(_value(v, record, at) for v in what)
    if kind == "array" and not DTYPE.fullmatch(what[0]):
        raise ValueError(f"an array of {what[0]!r}")
    dtype = np.dtype(what[0]) if kind == "array" else np.dtype(np.uint8)
    shape = what[1] if kind == "array" else [what]
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    data = record[at[0] : at[0] + size]
    if len(data) != size or size < 0:
        raise ValueError("it is cut off")
    at[0] += size
    return np.frombuffer(data, dtype).reshape(shape) if kind == "array" else data


class ArrayRecordSource:
    """A split of a folder that `python -m multimodal.data.prepare` wrote.

    Arguments: `folder`, which has SPLIT.json and the files that it names; `on_bad`: 'error', or
    'skip' files that are missing or damaged as a whole, counted in `report`.
    """

    def __init__(self, split, folder, on_bad="error"):
        paths.must_be_local(folder, "folder of ArrayRecord files")
        folder = pathlib.Path(folder).expanduser()
        self.name, self.report = f"{folder.name}:{split}", {}
        about = read_about(folder, split)
        self.optional = tuple(about["optional"])
        self.targets = about["targets"]
        self.label_names = self.targets.get("label")
        self.credit = about.get("credit", "")
        good = [p for p in about["files"] if self._fits(folder, p, on_bad)]
        parts = [f"{folder / p['name']}[0:{p['examples']}]" for p in good]
        self._length = sum(p["examples"] for p in good)
        self._data = ArrayRecordDataSource(parts) if parts else ()

    def _fits(self, folder, part, on_bad):
        path = folder / part["name"]
        if path.name != part["name"]:
            raise UserError(f"{folder}: the file name {part['name']!r} leaves the folder")
        there = path.stat().st_size if path.is_file() else None
        if there == part["bytes"]:
            return True
        what = "missing" if there is None else f"{there} bytes long, not {part['bytes']}"
        if on_bad != "skip":
            raise UserError(f"{path} is {what}; prepare it again or set on_bad='skip'")
        reason = "missing_file" if there is None else "damaged_file"
        self.report[reason] = self.report.get(reason, 0) + 1
        return False

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        try:
            record = self._data[index]
        except Exception as e:  # what a damaged file makes the reader raise is not documented
            raise BadRecord(f"cannot be read ({first_line(e)})") from None
        return unpack(record)


def read_about(folder, split):
    """SPLIT.json. Raises UserError where it is missing or something else."""
    path = pathlib.Path(folder, f"{split}.json")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        for f in about["files"]:
            counts = [f["examples"], f["bytes"]]
            good = all(type(n) is int and 0 <= n < 2**48 for n in counts)
            if not isinstance(f["name"], str) or "\0" in f["name"] or not good:
                raise ValueError(f"a file of it is {f}")
        return about | {"optional": list(about["optional"]), "targets": dict(about["targets"])}
    except FileNotFoundError:
        there = sorted(p.stem for p in pathlib.Path(folder).glob("*.json"))
        raise UserError(
            f"{folder}: no split {split!r}"
            + (f"; there are {', '.join(there)}" if there else ": it holds no prepared data")
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(f"{path}: not what prepare.py writes ({e!s:.100})") from None
