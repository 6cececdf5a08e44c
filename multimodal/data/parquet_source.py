"""Tables: Parquet files, and Hugging Face's map-style data sets on disk."""

import bisect
import itertools
import logging
import os
import threading

import numpy as np

from multimodal import paths
from multimodal.data import splits
from multimodal.data.extras import require
from multimodal.data.sources import is_label, strings
from multimodal.errors import BadRecord, UserError, first_line
from multimodal.registry import nearest

log = logging.getLogger(__name__)
MOST_LOST = 0.01  # of the rows, whose split cannot be read
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


def _split_field(field, told, there, split, name):
    """The column that tells splits apart, or ''; see splits.py.

    Args:
      field: what the config names; None: 'split' where there is such a column.
      told: whether a file's name, or the set itself, tells splits apart.
    """
    if field is None:
        field = "split" if "split" in there and not told else ""
        if not field and not told:
            how = "put {split} into the files' names, name a column with split_field, or set "
            how += "split_field='' to take all rows for every split"
            splits.check_alone(name, split, how)
    if field and field not in there:
        raise UserError(
            f"{name}: split_field: no column {field!r}{nearest(field, there)}; there are "
            f"{', '.join(there)}"
        )
    return field


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

    files: a pattern or a list of them, also of URLs; `{split}` filled in. split_field: the column
    that tells splits apart (default: 'split' where there is one and `files` has no `{split}`; '':
    none, every split is all rows); where nothing does there is 'train' alone. Needs the extra
    `parquet`.
    """

    def __init__(self, split, files, columns, split_field=None):
        self._parquet = require("pyarrow.parquet", "parquet", "reading Parquet files")
        filled, told = splits.fill(files, split)
        found = (paths.find(p) for p in ([filled] if isinstance(filled, str) else filled))
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
        field = _split_field(split_field, told, names, split, f"parquet: {files}")
        self._rows = None  # numbers of those that belong to the split; None: all
        if field:
            self._rows = splits.choose(self._values(field), split, f"parquet: {files}")
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
        if self._rows is not None:
            return len(self._rows)
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index):
        if self._rows is not None:
            index = self._rows[index]
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
        chosen = None if self._rows is None else set(self._rows)
        for index, value in enumerate(self._column(self._columns[modality])):
            if value is None or (chosen is not None and index not in chosen):
                continue
            try:
                yield from strings(value.as_py())
            except ValueError:  # not UTF-8
                continue

    def _values(self, field):
        """The texts of the column that tells splits apart; '' in rows that belong to none.

        Raises UserError where more than a hundredth of them cannot be read.
        """
        found, lost = [], 0
        for value in self._column(field):
            try:
                lost += value is None
                value = value.as_py() if value is not None else None
                value = value.decode() if isinstance(value, bytes) else value
            except ValueError:  # not UTF-8
                value, lost = None, lost + 1
            found.append("" if value is None else str(value))
        if lost:
            told = f"{self._paths[0]}: the split ({field!r}) of {lost} of {len(found)} rows"
            told += " cannot be read"
            if lost > MOST_LOST * len(found):
                raise UserError(f"{told}, which may be of any split: write the file anew")
            log.warning("%s: they are left out", told)
        return found

    def _column(self, column):
        """The value of a column in every row; None in those of a damaged row group."""
        for place, (number, group) in enumerate(self._groups):
            try:
                file = self._parquet.ParquetFile(paths.handle(self._paths[number]))
                values = file.read_row_group(group, columns=[column]).column(column)
            except Exception as e:  # as above; its rows are counted when training meets them
                if paths.is_outage(e, self._paths[number]):
                    raise paths.failure(e, self._paths[number]) from None
                first = self._ends[place - 1] if place else 0
                values = [None] * (self._ends[place] - first)
            yield from values


class HuggingFaceSource(_Table):
    """A data set that `datasets` saved with save_to_disk: `HuggingFaceSource('train',
    path='data/set', columns=dict(image='image', text='caption'))`.

    Images and sounds stay encoded. Nothing is downloaded and no script of the set is run. In
    `path` `{split}` is filled in; of a set without splits of its own `split_field` is as of
    `ParquetSource`.
    """

    def __init__(self, split, path, columns, split_field=None):
        datasets = require("datasets", "huggingface", "reading Hugging Face data sets")
        path, told = splits.fill(path, split)
        try:
            found = datasets.load_from_disk(os.path.expanduser(path))
        except Exception as e:  # many, not documented
            raise UserError(f"{path}: cannot load it: {first_line(e)}") from None
        own = "" if isinstance(found, dict) else str(found.split or "")
        if own.isidentifier() and split_field is None and not told:
            found = {own: found}  # one split of a set, saved alone
        if isinstance(found, dict):
            if split not in found:
                raise UserError(
                    f"{path}: no split {split!r}{nearest(split, found)}; it has {', '.join(found)}"
                )
            found, told = found[split], True
        field = _split_field(split_field, told, found.column_names, split, path)
        if field:
            found = found.select(splits.choose(found[field], split, path))
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
