"""Whole records: one row of each modality, and what is missing marked as such."""

import dataclasses
import functools
import itertools
import zlib

import numpy as np

from multimodal.data.corrupt import corrupt
from multimodal.errors import UserError
from multimodal.evals.embed import map_rows
from multimodal.nn.model import JOINT

HELD_BYTES = 2**30  # of encoder inputs kept where they are read several times


class Records:
    """Batches of whole records, of each modality the record's first row (of several captions).

    Attributes:
      modalities: in the batches, whether a record has them or not.
      numbers: int64 [N] of the records, ascending.
      ids: int64 [N] of the records.
      has: modality -> [N] bool.
    """

    def __init__(self, data, modalities, numbers=None, hold=False):
        """Records of an EvalData.

        Args:
          numbers: of the records; default: all that have at least one of the modalities.
          hold: keep the inputs if they fit HELD_BYTES, where they will be read more than once.
        """
        self.data, self.modalities = data, tuple(modalities)
        if numbers is None:
            found = [data.records[m] for m in self.modalities]
            numbers = np.unique(np.concatenate(found))
        self.numbers = np.asarray(numbers, np.int64)
        self._first = {m: self._first_rows(m) for m in self.modalities}
        self.has = {m: first >= 0 for m, first in self._first.items()}
        self.ids = np.zeros(len(self.numbers), np.int64)
        for m, there in self.has.items():
            self.ids[there] = data.ids[m][self._first[m][there]]
        self._empty = {m: self._empty_row(m) for m in self.modalities}
        size = len(self) * sum(row.nbytes for row in self._empty.values())
        self._hold, self._held = hold and size <= HELD_BYTES, {}

    def _first_rows(self, m):
        """[N] first row of each record, -1 where it has none."""
        found, rows = np.unique(self.data.records[m], return_index=True)
        at = np.searchsorted(found, self.numbers).clip(max=len(found) - 1)
        return np.where(found[at] == self.numbers, rows[at], -1)

    def _empty_row(self, m):
        """The array that stands for a missing row."""
        empty = getattr(self.data.transforms.get(m), "empty", None)
        return empty() if empty else np.zeros_like(self.data.rows[m][np.zeros(1, int)][0])

    def __len__(self):
        return len(self.numbers)

    def with_any(self, modalities) -> np.ndarray:
        """Numbers of the records that have one of the modalities or more."""
        return self.numbers[np.any([self.has[m] for m in modalities], axis=0)]

    def complete(self) -> np.ndarray:
        """Numbers of the records that have all modalities."""
        return self.numbers[np.all(list(self.has.values()), axis=0)]

    def usable(self, hide=()) -> np.ndarray:
        """[N] bool: records of which every row could be decoded, known once they have been read."""
        ok = np.ones(len(self), bool)
        for m, there in self.has.items():
            if m not in hide:
                ok[there] &= self.data.usable(m)[self._first[m][there]]
        return ok

    def take(self, index, hide=(), noise=None) -> dict:
        """A batch: for each modality m its inputs [B, ...] and `m_present` [B] bool.

        Args:
          index: int [B] into `numbers`.
          hide: modalities taken away from every record.
          noise: Noise to add, or None.
        """
        batch = {}
        for m in self.modalities:
            there = self.has[m][index] & (m not in hide)
            rows = np.repeat(self._empty[m][None], len(index), 0)
            if there.any():
                rows[there] = self._read(m, np.asarray(index)[there])
            if noise is not None and m in noise.levels:
                for i in np.flatnonzero(there):
                    rows[i] = noise(m, rows[i], int(self.numbers[index[i]]))
            batch |= {m: rows, f"{m}_present": there}
        return batch

    def _read(self, m, index):
        rows = self.data.rows[m]
        if not self._hold:
            return rows[self._first[m][index]]
        if m not in self._held:
            there = np.flatnonzero(self.has[m])
            place = np.zeros(len(self), np.int64)
            place[there] = np.arange(len(there))
            self._held[m] = place, rows[self._first[m][there]]
        place, held = self._held[m]
        return held[place[index]]


@dataclasses.dataclass(frozen=True)
class Noise:
    """Corruption of encoder inputs, seeded by (record, modality) alone.

    Attributes:
      levels: modality -> level 0..1; kinds: modality -> its name in data/corrupt.py.
      contexts: modality -> what its corruption needs to know.
    """

    levels: dict
    kinds: dict
    contexts: dict

    def __call__(self, modality, x, record):
        """The corrupted input of a record; at level 0 x itself."""
        rng = np.random.default_rng((record, zlib.crc32(modality.encode())))
        context = self.contexts.get(modality, {})
        return corrupt(self.kinds[modality], x, self.levels[modality], rng, **context)


def noise_of(net, data, levels) -> Noise:
    """The Noise of these levels (modality -> level) for a model's inputs."""
    kinds = {m: net.model.modalities[m].get("transform", m) for m in levels}
    contexts = {m: getattr(data.transforms.get(m), "noise_context", dict)() for m in levels}
    return Noise(levels, kinds, contexts)


class NoisyRows:
    """Rows of one modality with noise added when they are asked for."""

    def __init__(self, data, modality, noise):
        self._data, self._modality, self._noise = data, modality, noise

    def __len__(self):
        return len(self._data.rows[self._modality])

    def __getitem__(self, index):
        m, rows = self._modality, self._data.rows[self._modality][index].copy()
        for i, record in enumerate(self._data.records[m][index]):
            rows[i] = self._noise(m, rows[i], int(record))
        return rows


def modalities_of(net, data) -> list[str]:
    """The model's modalities that the data has, in the model's order."""
    found = [m for m in net.model.modalities if m in data.rows]
    if not found:
        raise UserError(
            f"{data.name}: the data has none of the model's modalities "
            f"{', '.join(net.model.modalities)}"
        )
    return found


def subsets(modalities) -> list[tuple]:
    """Every non-empty subset, small ones first, each in the order of `modalities`."""
    sizes = range(1, len(modalities) + 1)
    return list(itertools.chain(*(itertools.combinations(modalities, n) for n in sizes)))


@dataclasses.dataclass(frozen=True)
class Features:
    """What a model makes of whole records.

    Attributes:
      numbers, ids: int64 [N] of the records that could be read.
      pooled, embed: modality (or 'joint') -> [N, D] features, [N, E] unit-length embeddings.
      present: modality (or 'joint') -> [N] bool.
    """

    numbers: np.ndarray
    ids: np.ndarray
    pooled: dict
    embed: dict
    present: dict


def joint_embed(net, batch):
    """[B, E] joint embeddings of a batch. UserError for a model that has none."""
    found = net.encode(batch).get(JOINT)
    if found is None or found.embed is None:
        raise UserError(
            "the model has no joint embedding: set config.model.fusion.kind = 'joint' and add "
            "'retrieve' to config.model.heads"
        )
    return found.embed


def embed_joint(net, data, batch_size, mesh=None, without=()):
    """Embeddings of whole records by the joint representation of their modalities.

    Args:
      without: modalities taken away, such as the one that is searched for.
    Returns: ([N, E] unit length, Records of N records that have one of the others or more, [N] bool
      which of them could be read).
    """
    modalities = modalities_of(net, data)
    left = [m for m in modalities if m not in without]
    if not left:
        raise UserError(f"{data.name}: 'joint' without {', '.join(without)} is nothing")
    records = Records(data, modalities, Records(data, modalities).with_any(left))
    take = functools.partial(records.take, hide=tuple(without))
    embeds = map_rows(joint_embed, net, take, len(records), batch_size, mesh)
    return embeds, records, records.usable(without)


def _features(net, batch):
    encoded = net.encode(batch)
    return {m: (e.pooled, e.embed, e.present) for m, e in encoded.items()}


def features(net, data, batch_size, mesh=None) -> Features:
    """Pooled features and embeddings of each record's first rows; computed once for a split."""
    held = data.memo.get("features")
    if held is None or held[0] is not net.params:
        records = Records(data, modalities_of(net, data))
        out = map_rows(_features, net, records.take, len(records), batch_size, mesh)
        ok = records.usable()
        pooled, embed, present = (
            {m: parts[i][ok] for m, parts in out.items() if parts[i] is not None} for i in range(3)
        )
        held = net.params, Features(records.numbers[ok], records.ids[ok], pooled, embed, present)
        data.memo["features"] = held
    return held[1]
