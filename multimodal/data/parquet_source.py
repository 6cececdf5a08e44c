"""Tables: Parquet files, and Hugging Face's map-style data sets on disk."""

import bisect
import itertools
import os
import threading

import numpy as np

from multimodal import paths
from multimodal.data.extras import require
from multimodal.data.sources import is_label, strings
from multimodal.errors import BadRecord, UserError, first_line
from multimodal.registry import nearest

GROUPS = 4  # row groups of Parquet kept in memory


class _Table:
    """What both kinds share: columns of a row, as an example.

    columns: modality, 'id' or 'label...' -> name of a column. Media are bytes, or Hugging Face's
    {bytes, path} with bytes; texts are strings or lists of them; labels integers.
    """

    label_names, optional = None, ()

    def _take(self, columns, there, name):
        self.name, self._columns = name, dict(columns)
        if not self._columns:
            raise UserError(f"{name}: columns is empty: give modality -> name of a column")
        for key, column in self._columns.items():
            if column not in there:
                raise UserError(
                    f"{name}: columns.{key}: no column {column!r}{nearest(column, there)}; there "
                    f"are {', '.join(there)}"
                )
        self.targets = {k: None for k in self._columns if is_label(k)}

    def _example(self, index, row):
        example = {"id": index}
        for key, column in self._columns.items():
            value = row[column]
            if key == "id" or is_label(key):
                if isinstance(value, bool) or not isinstance(value, int | np.integer):
                    raise BadRecord(f"column {column!r} is {value!r:.40}, not an integer")
                example[key] = int(value)
            elif value is not None:
                example[key] = _raw(value, column)
        return example


def _raw(value, column):
    if isinstance(value, dict) and "bytes" in value:
        value = value["bytes"]
        if value is None:  # a path, which may lead anywhere
            raise BadRecord(f"column {column!r} has a path and no bytes")
    if isinstance(value, list | tuple) and not all(isinstance(v, str) for v in value):
        try:
            return np.asarray(value)
        except ValueError as e:
            raise BadRecord(f"column {column!r} is no array ({first_line(e)})") from None
    return value


class ParquetSource(_Table):
    """Rows of Parquet files: `ParquetSource('train', files='data/{split}-*.parquet',
    columns=dict(image='image', text='caption'))`.

    files: a pattern or a list of them, also of URLs; `{split}` filled in. Needs the extra
    `parquet`.
    """

    def __init__(self, split, files, columns):
        self._parquet = require("pyarrow.parquet", "parquet", "reading Parquet files")
        patterns = [files] if isinstance(files, str) else list(files)
        found = (paths.find(p.replace("{split}", split)) for p in patterns)
        self._paths = sorted(set(itertools.chain.from_iterable(found)))
        if not self._paths:
            raise UserError(f"no Parquet files match {files!r} (split {split!r})")
        self._groups, ends, names = [], [], None
        for number, path in enumerate(self._paths):
            meta = self._open(path)
            for group in range(meta.num_row_groups):
                self._groups.append((number, group))
                ends.append(meta.row_group(group).num_rows)
            names = names or meta.schema.to_arrow_schema().names
        self._ends = list(itertools.accumulate(ends))
        self._take(columns, names, f"parquet:{split}")
        self._restart()

    def _restart(self):
        self._cache, self._lock = {}, threading.Lock()

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k not in ("_cache", "_lock", "_parquet")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._parquet = require("pyarrow.parquet", "parquet", "reading Parquet files")
        self._restart()

    def _open(self, path):
        try:
            return self._parquet.read_metadata(paths.handle(path))
        except Exception as e:  # pyarrow's errors are many
            raise UserError(f"{path}: not a Parquet file ({first_line(e)})") from None

    def __len__(self):
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index):
        place = bisect.bisect_right(self._ends, index)
        first = self._ends[place - 1] if place else 0
        table, row = self._group(place), index - first
        try:
            values = {n: table[n][row].as_py() for n in self._columns.values()}
        except Exception as e:  # a text that is not UTF-8, a time out of range
            raise BadRecord(f"row {row} of a group: {first_line(e)}") from None
        return self._example(index, values)

    def _group(self, place):
        """Columns of a row group, from memory or from the file."""
        with self._lock:
            if place in self._cache:
                return self._cache[place]
        number, group = self._groups[place]
        try:
            file = self._parquet.ParquetFile(paths.handle(self._paths[number]))
            table = file.read_row_group(group, columns=sorted(set(self._columns.values())))
        except Exception as e:  # as above
            at = f"{self._paths[number]}, row group {group}"
            raise paths.failure(e, self._paths[number], at) from None
        with self._lock:
            while len(self._cache) >= GROUPS:
                self._cache.pop(next(iter(self._cache)))
            return self._cache.setdefault(place, table)

    def texts(self, modality):
        """All texts of a modality, without reading anything else; of a damaged row group none."""
        column = self._columns[modality]
        for number, group in self._groups:
            try:
                file = self._parquet.ParquetFile(paths.handle(self._paths[number]))
                values = file.read_row_group(group, columns=[column]).column(column)
            except Exception as e:  # as above; its rows are counted when training meets them
                if paths.is_outage(e, self._paths[number]):
                    raise paths.failure(e, self._paths[number]) from None
                continue
            for value in values:
                try:
                    yield from strings(value.as_py())
                except ValueError:  # not UTF-8
                    continue


class HuggingFaceSource(_Table):
    """A data set that `datasets` saved with save_to_disk: `HuggingFaceSource('train',
    path='data/set', columns=dict(image='image', text='caption'))`.

    Images and sounds stay encoded. Nothing is downloaded and no script of the set is run.
    """

    def __init__(self, split, path, columns):
        datasets = require("datasets", "huggingface", "reading Hugging Face data sets")
        try:
            found = datasets.load_from_disk(os.path.expanduser(path))
        except Exception as e:  # many, not documented
            raise UserError(f"{path}: cannot load it: {first_line(e)}") from None
        if isinstance(found, datasets.DatasetDict):
            if split not in found:
                raise UserError(
                    f"{path}: no split {split!r}{nearest(split, found)}; it has {', '.join(found)}"
                )
            found = found[split]
        name = f"{os.path.basename(os.path.normpath(path))}:{split}"
        self._take(columns, found.column_names, name)
        for column, feature in found.features.items():
            if isinstance(feature, datasets.Image | datasets.Audio):
                plain = type(feature)(decode=False)
                found = found.cast_column(column, plain)
        self._data = found

    def __len__(self):
        return len(self._data)

    def __getitem__(self, index):
        try:
            row = self._data[index]
        except Exception as e:  # as above, of a file that was damaged since
            raise BadRecord(f"cannot be read ({first_line(e)})") from None
        return self._example(index, row)
