"""From a source to batches: the batch of a step is a pure function of (seed, step).

Resuming needs only the step, and any number of processes sees the same sequence of global batches.
"""

import collections
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np

from multimodal.data.cache import DecodedCache
from multimodal.data.sources import is_label
from multimodal.data.workers import WorkerIterator
from multimodal.errors import BadRecord, UserError

_MAX_ATTEMPTS = 100
log = logging.getLogger(__name__)


class Pipeline:
    """Seeded, shuffled, augmented batches of a source.

    Each epoch is a new permutation of all examples; a batch may span two epochs, so none is ever
    left out. Augmentation is seeded by (seed, index, epoch). A record that cannot be read is
    replaced by another one, chosen by (index, attempt) alone, counted and named in the log.

    Args:
      source: see sources.py.
      transforms: dict modality -> transform, see transforms.py.
      batch_size: examples of all processes together.
      train: False gives the examples in order, without randomness.
      process_index, process_count: this process gets the contiguous block `process_index` of each
        global batch.
      threads: batches prepared at the same time by `iterate`.
      workers: processes that do that, with so many threads each; 0: this one. They change the
        speed, never the content.
      max_bad_share: share of the source's records that may be unreadable.
      cache_bytes: memory for decoded examples, per process.
      classes: label key -> number of its classes; a record with another label is unreadable.
      augment: (example, rng) -> example, on raw values in training, before the transforms.
    Raises: UserError for an empty source and for a batch size that does not fit it or the
      processes; later, for too many bad records.
    """

    def __init__(
        self,
        source,
        transforms,
        batch_size,
        seed,
        train=True,
        process_index=0,
        process_count=1,
        threads=2,
        workers=0,
        max_bad_share=0.01,
        cache_bytes=512 << 20,
        classes=None,
        augment=None,
    ):
        _check(source, batch_size, process_count)
        self.source, self.transforms = source, transforms
        self.batch_size, self.threads, self.workers = batch_size, max(1, threads), workers
        self.bad = {}
        self._seed, self._train, self._classes = seed, train, dict(classes or {})
        self._augment = augment if train else None
        self._process = (process_index, process_count)
        self._max_bad = max_bad_share * len(source)
        self._optional = set(getattr(source, "optional", ()))
        self._cache_bytes = cache_bytes // max(1, workers)
        self._cache, self._lock = DecodedCache(self._cache_bytes), threading.Lock()
        self._batches = self._plan(batch_size // process_count)

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k not in ("_cache", "_lock")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._cache, self._lock = DecodedCache(self._cache_bytes), threading.Lock()

    @property
    def steps_per_epoch(self):
        """Steps until every example has been seen, rounded up."""
        return -(-len(self.source) // self.batch_size)

    def batch(self, step):
        """This process's part of the batch of a step: dict of arrays [batch / processes, ...]."""
        index, count = self._process
        rows = [self._example(*place) for place in self._batches[step * count + index]]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def bad_of(self, step):
        """{record: what is wrong with it} of those that this batch met, once it is made."""
        index, count = self._process
        found = {}
        for first, _ in self._batches[step * count + index]:
            current, attempt = first, 0
            while current in self.bad and attempt < _MAX_ATTEMPTS:
                found[current], attempt = self.bad[current], attempt + 1
                current = _replacement(self._seed, first, attempt, len(self.source))
        return found

    def iterate(self, start_step=0):
        """Endless iterator over the batches from a step on, prepared in the background."""
        if self.workers:
            return WorkerIterator(self, start_step, self.workers)
        return BatchIterator(self.batch, start_step, self.threads)

    def count_bad(self, index, error):
        """Note a record that cannot be read. Raises UserError where there are too many."""
        with self._lock:
            if index in self.bad:
                return
            self.bad[index] = str(error)
            log.warning("%s: record %d replaced: %s", self.source.name, index, error)
            if len(self.bad) > self._max_bad:
                raise UserError(
                    f"{self.source.name}: {len(self.bad)} of {len(self.source)} records are "
                    "unreadable, more than config.data.max_bad_share allows; the last one: "
                    f"record {index}: {error}"
                ) from None

    def _plan(self, local_size):
        """MapDataset of lists of (record index, epoch), one a batch and process."""
        total = len(self.source)
        order = grain.MapDataset.range(total).seed(_grain_seed(self._seed))
        order = order.shuffle() if self._train else order
        order = order.repeat().map_with_index(lambda at, index: (int(index), at // total))
        return order.batch(local_size, batch_fn=list)

    def _example(self, index, epoch):
        """One transformed example, or its replacement where the record is bad."""
        current = index
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                if current not in self.bad:
                    return self._transform(current, epoch)
            except BadRecord as e:
                self.count_bad(current, e)
            current = _replacement(self._seed, index, attempt, len(self.source))
        raise UserError(
            f"{self.source.name}: {_MAX_ATTEMPTS} records in a row are unreadable; "
            f"the first: {next(iter(self.bad.items()))}"
        )

    def _transform(self, index, epoch):
        rng = np.random.default_rng((self._seed, index, epoch)) if self._train else None
        decoded = self._cache.get(index)
        if decoded is None:
            raw = self.source[index]
            if self._augment:
                raw = self._augment(raw, rng)
            if self._augment or self._cache.full:
                return self._assemble(raw, index, lambda m, t: t(raw[m], rng))
            decoded = self._decode(raw)
            self._cache.add(index, decoded)
        return self._assemble(decoded, index, lambda m, t: _finish(t, decoded[m], rng))

    def _decode(self, raw):
        """The example with its modalities decoded, where their transforms can do that apart."""
        decoded = {key: raw[key] for key in raw if key == "id" or is_label(key)}
        for m, transform in self.transforms.items():
            if m in raw:
                decode = getattr(transform, "decode", None)
                decoded[m] = decode(raw[m]) if decode else raw[m]
        return decoded

    def _assemble(self, example, index, value_of):
        """One row of a batch; `value_of(modality, transform)` gives a modality's array."""
        row = {"id": _id(example.get("id")), "index": np.int32(index)}
        row |= {k: _label(k, v, self._classes.get(k)) for k, v in example.items() if is_label(k)}
        for m, transform in self.transforms.items():
            present = m in example
            if m in self._optional:
                row[f"{m}_present"] = np.bool_(present)
            elif not present:
                raise BadRecord(f"has no {m}")
            row[m] = value_of(m, transform) if present else transform.empty()
        return row


class BatchIterator:
    """Batches in order, a few prepared ahead by threads; close it, or use it as a context.

    After the first batch none is made ahead until `prepare` or the next one is asked for: between
    them a loop traces its step, and Python runs one thread at a time.
    """

    def __init__(self, batch, start_step, threads):
        self._batch, self._step, self._ahead = batch, start_step, threads + 1
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="data")
        self._waiting, self._begun = collections.deque(), False

    def __iter__(self):
        return self

    def __next__(self):
        if self._pool is None:
            raise StopIteration
        self.prepare(self._ahead if self._begun else 1)
        self._begun = True
        return self._waiting.popleft().result()

    def prepare(self, count=None):
        """Let the threads make up to `count` batches, without waiting for them; None: all that
        are made ahead.
        """
        count = self._ahead if count is None else count
        while self._pool is not None and len(self._waiting) < count:
            self._waiting.append(self._pool.submit(self._batch, self._step))
            self._step += 1

    def close(self):
        """Stop the threads; batches under way are finished and dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
            self._waiting.clear()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def _check(source, batch_size, process_count):
    total = len(source)
    if total == 0:
        raise UserError(f"data source {source.name} is empty")
    if not 0 < batch_size <= total:
        raise UserError(
            f"config.batch_size={batch_size} does not fit the {total} examples of "
            f"{source.name}; it must be 1 to {total}"
        )
    if batch_size % process_count:
        raise UserError(
            f"config.batch_size={batch_size} does not divide over {process_count} processes"
        )


def _grain_seed(seed):
    """grain takes seeds of 32 bits only."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def _replacement(seed, index, attempt, total):
    return int(np.random.default_rng((seed, index, attempt, 1)).integers(total))


def _id(value):
    value = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**31:
        raise BadRecord(f"id is {value!r:.40}; ids must be integers from 0 to 2^31 - 1")
    return np.int32(value)


def _label(key, value, classes):
    """A class as int32, or several at once as a uint8 vector of 0 and 1."""
    value = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        if not -1 <= value < (classes or 2**31):
            many = f"the {classes} classes" if classes else "32 bits"
            raise BadRecord(f"{key} {value} is outside {many} (-1: unknown)")
        return np.int32(value)
    good = isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == np.uint8
    if good and len(value) == (classes or len(value)):
        return value
    kind = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)
    wanted = f"a uint8 vector of {classes}" if classes else "a uint8 vector"
    raise BadRecord(f"{key} must be an integer or {wanted}, not {kind:.60}")


def _finish(transform, decoded, rng):
    finish = getattr(transform, "finish", None)
    return finish(decoded, rng) if finish else transform(decoded, rng)
