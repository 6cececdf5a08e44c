"""What an evaluation reads: all rows of a split by modality, ids, groups and labels."""

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np

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
    """

    name: str
    rows: dict
    ids: dict
    groups: dict = dataclasses.field(default_factory=dict)
    labels: dict = dataclasses.field(default_factory=dict)
    label_names: list | None = None
    transforms: dict = dataclasses.field(default_factory=dict)
    credit: str = ""

    def usable(self, modality) -> np.ndarray:
        """[N] bool: rows that could be decoded, known once they have been embedded."""
        ok = np.ones(len(self.ids[modality]), bool)
        ok[list(getattr(self.rows[modality], "bad", ()))] = False
        return ok


def from_source(source, transforms, name, threads=2, max_bad_share=0.0) -> EvalData:
    """EvalData of a whole source; images are read again, and decoded, when they are embedded.

    Args:
      transforms: modality -> function, as data.transforms.build_transforms(train=False) gives.
      max_bad_share: share of records that may be unreadable; they are left out and logged.
    Raises: UserError for a source with more unreadable records, or without any of a modality.
    """
    columns = {m: _Column() for m in transforms}
    bad = 0
    for i in range(len(source)):
        try:
            record = source[i]
        except BadRecord as e:
            bad += 1
            log.warning("%s: record %d left out of the evaluation: %s", name, i, e)
            if bad > max_bad_share * len(source):
                raise UserError(f"{name}: {bad} records cannot be read; the last: {e}") from None
            continue
        for m, column in columns.items():
            column.add(i, m, record)
    empty = [m for m, column in columns.items() if not column.ids]
    if empty:
        raise UserError(
            f"{name}: no example has the modality {', '.join(empty)}: set other eval_splits"
        )
    columns = {m: column for m, column in columns.items() if column.ids}
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
        getattr(source, "label_names", None),
        transforms,
        getattr(source, "credit", ""),
    )


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
            self.labels.append(record.get("label", -1))

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
    """EvalData of each of `splits` (by default config.data.eval_splits) of the config's source."""
    from multimodal.data.sources import build_source
    from multimodal.data.transforms import build_transforms

    splits = splits or config.data.eval_splits
    if not splits:
        raise UserError("config.data.eval_splits is empty: name the splits to evaluate on")
    transforms = build_transforms(config.modalities, train=False, tokenizer=tokenizer)
    return [
        from_source(
            build_source(config.data.source, split, config.data.kwargs.to_dict()),
            transforms,
            split,
            config.data.threads,
            config.data.max_bad_share,
        )
        for split in splits
    ]
