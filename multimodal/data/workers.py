"""Batches made by processes beside the main one: for decoding that Python's lock holds back."""

import ctypes
import functools
import logging
import os
import signal
import sys

import grain

_ENDLESS = 2**40  # steps


class WorkerIterator:
    """A pipeline's batches in order, made by `workers` processes; close it, or use it as a context.

    Each process makes every workers-th batch, so content and order are those of one process.
    Arrays come through shared memory. The processes are started with the first batch, which takes
    seconds, and end with this one however it ends.
    """

    def __init__(self, pipeline, start_step, workers):
        self._pipeline = pipeline
        steps = grain.MapDataset.range(start_step, start_step + _ENDLESS).map(_Maker(pipeline))
        reading = grain.ReadOptions(
            num_threads=pipeline.threads, prefetch_buffer_size=pipeline.threads
        )
        dataset = steps.to_iter_dataset(reading).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1),
            functools.partial(_begin, os.getpid()),
        )
        self._batches = iter(dataset)

    def __iter__(self):
        return self

    def __next__(self):
        if self._batches is None:
            raise StopIteration
        batch, bad = next(self._batches)
        for index, message in bad.items():
            self._pipeline.count_bad(index, message)
        return batch

    def prepare(self):
        """Nothing: the processes make batches ahead by themselves."""

    def close(self):
        """Stop the processes; batches under way are dropped."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class _Maker:
    """A step's batch, and the bad records that it met."""

    def __init__(self, pipeline):
        self._pipeline = pipeline

    def __call__(self, step):
        return self._pipeline.batch(step), self._pipeline.bad_of(step)


def _begin(parent, worker, workers):
    """Prepare a new process: it ends with its parent, logs nothing and leaves devices alone."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # should a transform of a fork import jax
    logging.getLogger("multimodal").setLevel(logging.ERROR)  # the parent logs bad records
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # meant for the parent, which saves and ends this
    if not sys.platform.startswith("linux"):
        return  # there the parent's end is noticed when the next batch is handed over
    # The kernel signals the end of the thread that started this process, which may end before its
    # process does: the handler looks which it was.
    signal.signal(signal.SIGHUP, lambda number, frame: _end_without(parent))
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGHUP)
    _end_without(parent)


def _end_without(parent):
    if os.getppid() != parent:
        os._exit(1)
