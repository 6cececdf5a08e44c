"""What an evaluation reads: all rows of a split by modality, ids, groups and labels."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from multimodal.data.sources import build_source, is_label
from multimodal.data.transforms import build_transforms
from multimodal.errors import BadRecord, UserError

log = logging.getLogger(__name__)


class Rows:
    """Rows of one modality, transformed when asked for; index with an int array or a slice.

    A row that cannot be decoded becomes zeros; its index is in `bad`, which evaluations leave out,
    and it is named in the log.

    Attributes:
      value: function of a row number to its raw value (image bytes, a caption).
      bad: set of row numbers that could not be decoded.
    """

    def __init__(self, name, value, count, transform, threads=2, max_bad_share=0.0):
        self.name, self.value, self.bad = name, value, set()
        self._count, self._transform, self._threads = count, transform, threads
        self._max_bad, self._like = max_bad_share * count, None

    def __len__(self):
        return self._count

    def __getitem__(self, index) -> np.ndarray:
        index = np.arange(self._count)[index]
        if len(index) < 8 or self._threads < 2:
            rows = [self._row(i) for i in index]
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                rows = list(pool.map(self._row, index))
        self._like = next((r for r in rows if r is not None), self._like)
        if self._like is None:
            raise UserError(f"{self.name}: none of the first rows can be decoded; see the log")
        return np.stack([np.zeros_like(self._like) if r is None else r for r in rows])

    def _row(self, i):
        if i in self.bad:
            return None
        try:
            return self._transform(self.value(int(i)), None)
        except BadRecord as e:
            self.bad.add(int(i))
            log.warning("%s: row %d left out of the evaluation: %s", self.name, i, e)
            if len(self.bad) > self._max_bad:
                raise UserError(
                    f"{self.name}: {len(self.bad)} of {self._count} rows cannot be decoded, more "
                    f"than config.data.max_bad_share allows; the last: {e}"
                ) from None
            return None


@dataclasses.dataclass
class EvalData:
    """One split, by modality; a record with five captions is one row of images and five of texts.

    Attributes:
      name: of the split; the first part of its metrics' names.
      rows: modality -> Rows (or an array [N, ...] of encoder inputs).
      ids: modality -> int64 [N]; rows with equal ids belong together.
      groups: modality -> str [N] (a caption's language), for the modalities that have groups.
      labels: modality -> int64 [N] class of the row's record, -1 for none.
      label_names: names of the classes, or None.
      transforms: modality -> function of (raw value, None) to an encoder input.
      credit: attribution of the data, for pictures.
      records: modality -> int64 [N] number of the row's record; by default rows of equal ids are
        one record, numbered in order of the ids.
      targets: label key -> int64 [R] class of each record, or [R, C] of 0 and 1 where a record has
        several labels; -1 for unknown. There is a row for every record number.
      target_names: label key -> names of its classes, or None.
      load_train: function that gives the EvalData of the training split, or None.
      memo: what evaluators computed from this split and another one may need.
    """

    name: str
    rows: dict
    ids: dict
    groups: dict = dataclasses.field(default_factory=dict)
    labels: dict = dataclasses.field(default_factory=dict)
    label_names: list | None = None
    transforms: dict = dataclasses.field(default_factory=dict)
    credit: str = ""
    records: dict = dataclasses.field(default_factory=dict)
    targets: dict = dataclasses.field(default_factory=dict)
    target_names: dict = dataclasses.field(default_factory=dict)
    load_train: Callable | None = None
    memo: dict = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self):
        if not self.records and self.ids:
            known = np.unique(np.concatenate(list(self.ids.values())))
            self.records = {m: np.searchsorted(known, ids) for m, ids in self.ids.items()}

    def usable(self, modality) -> np.ndarray:
        """[N] bool: rows that could be decoded, known once they have been embedded."""
        ok = np.ones(len(self.ids[modality]), bool)
        ok[list(getattr(self.rows[modality], "bad", ()))] = False
        return ok

    def train(self) -> "EvalData":
        """The training split, or the first records of it, for what is fitted to features.

        Raises: UserError where there is none.
        """
        if self.load_train is None:
            raise UserError(
                f"{self.name}: probes and CCA are fitted on the training split, which this data "
                "does not come with: set config.data.train_split, or EvalData.load_train"
            )
        return self.load_train()


def from_source(source, transforms, name, threads=2, max_bad_share=0.0, most=None) -> EvalData:
    """EvalData of a source; images are read again, and decoded, when they are embedded.

    Args:
      transforms: modality -> function, as data.transforms.build_transforms(train=False) gives.
      max_bad_share: share of records that may be unreadable; they are left out and logged.
      most: read so many records from the start; None: all.
    Raises: UserError for a source with more unreadable records, or without any of a modality.
    """
    count = len(source) if most is None else min(most, len(source))
    columns, targets = {m: _Column() for m in transforms}, _Targets(count)
    for i, record in _read(source, count, name, max_bad_share * count):
        targets.add(i, record)
        for m, column in columns.items():
            column.add(i, m, record)
    empty = [m for m, column in columns.items() if not column.ids]
    if empty:
        raise UserError(
            f"{name}: no example has the modality {', '.join(empty)}: set other eval_splits"
        )
    label_names = getattr(source, "label_names", None)
    return EvalData(
        name,
        {
            m: Rows(
                f"{name}/{m}",
                c.getter(source, m),
                len(c.ids),
                transforms[m],
                threads,
                max_bad_share,
            )
            for m, c in columns.items()
        },
        {m: np.array(c.ids, np.int64) for m, c in columns.items()},
        {m: np.array(c.groups) for m, c in columns.items() if any(c.groups)},
        {m: np.array(c.labels, np.int64) for m, c in columns.items()},
        label_names,
        transforms,
        getattr(source, "credit", ""),
        {m: np.array([i for i, _ in c.where], np.int64) for m, c in columns.items()},
        targets.arrays(),
        {"label": label_names} | (getattr(source, "targets", None) or {}),
    )


def _read(source, count, name, max_bad):
    """(index, record) of the first `count` records of a source that can be read."""
    bad = 0
    for i in range(count):
        try:
            record = source[i]
        except BadRecord as e:
            bad += 1
            log.warning("%s: record %d left out of the evaluation: %s", name, i, e)
            if bad > max_bad:
                raise UserError(f"{name}: {bad} records cannot be read; the last: {e}") from None
            continue
        yield i, record


class _Targets:
    """Labels by record number while a source is read; -1 where a record has none."""

    def __init__(self, count):
        self._count, self._found = count, {}

    def add(self, index, record):
        for key in filter(is_label, record):
            self._found.setdefault(key, {})[index] = np.asarray(record[key], np.int64)

    def arrays(self):
        """label key -> int64 [R] or [R, C]."""
        out = {}
        for key, values in self._found.items():
            shape = next(iter(values.values())).shape
            out[key] = np.full((self._count, *shape), -1, np.int64)
            for i, value in values.items():
                if value.shape != shape:
                    raise UserError(
                        f"record {i}: {key} has shape {value.shape}, in other records {shape}"
                    )
                out[key][i] = value
        return out


class _Column:
    """Rows of one modality while a source is read: where each lies, and short values (texts)."""

    def __init__(self):
        self.ids, self.groups, self.labels, self.where, self.texts = [], [], [], [], {}

    def add(self, index, modality, record):
        value = record.get(modality)
        if value is None:
            return
        values = value if isinstance(value, list) else [value]
        groups = record.get(f"{modality}_group") or [""] * len(values)
        for k, (v, group) in enumerate(zip(values, groups, strict=True)):
            if isinstance(v, str):
                self.texts[len(self.ids)] = v
            self.where.append((index, k if isinstance(value, list) else None))
            self.ids.append(record["id"])
            self.groups.append(group)
            self.labels.append(int(record.get("label", -1)))

    def getter(self, source, modality):
        texts, where = self.texts, self.where

        def value(row):
            if row in texts:
                return texts[row]
            index, k = where[row]
            found = source[index][modality]
            return found if k is None else found[k]

        return value


def load_eval_data(config, tokenizer, splits=None) -> list[EvalData]:
    """EvalData of each of `splits` (by default config.data.eval_splits) of the config's source.

    Their `train()` is that of config.data.train_split, read when it is first asked for.
    """
    splits = splits or config.data.eval_splits
    if not splits:
        raise UserError(
            "config.data.eval_splits is empty: name the splits to evaluate on, or evaluate nothing "
            "by config.eval.names=()"
        )
    transforms = build_transforms(config.modalities, train=False, tokenizer=tokenizer)
    kwargs = config.data.kwargs.to_dict()

    def read(split, most=None):
        source = build_source(config.data.source, split, kwargs)
        share = config.data.max_bad_share
        return from_source(source, transforms, split, config.data.threads, share, most)

    @functools.cache
    def load_train():
        return read(config.data.train_split, config.eval.get("train_examples", 4000))

    has_train = bool(config.data.get("train_split"))
    found = [read(split) for split in splits]
    return [dataclasses.replace(d, load_train=load_train if has_train else None) for d in found]
