"""What a run's time and memory go to: waiting for data, compiling, the first step, the peak."""

import logging
import os
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax

from multimodal.data import fast_image
from multimodal.training import flops
from multimodal.training.sharding import to_global

log = logging.getLogger(__name__)
MUCH_WAITING = 0.05  # share of time above which a run says what to do


class Clock:
    """Feeds a loop, and measures it: samples a second, share of time in which the devices waited
    for data, and model FLOPs utilisation, each since the last reading.

    Use as `batch = clock.fetch()`, `clock.dispatched(arrays of the step)`, and so on in turns.
    Steps run behind the loop's back: a batch is fetched and put on the devices while the step
    before it runs, and at most two steps are under way.
    """

    def __init__(self, batches, mesh, batch_size):
        self._batches, self._mesh, self._batch_size = batches, mesh, batch_size
        self.flops = 0.0  # of a step
        # Waits for each step's end, to know when it was.
        self._watch = ThreadPoolExecutor(1, thread_name_prefix="clock")
        self._running = self._fetched = None
        self._untold = 0.0
        self.restart()

    def fetch(self):
        """The next batch, on its way to the devices."""
        began = time.perf_counter()
        batch = next(self._batches)
        self._fetched = began, time.perf_counter()
        return to_global(batch, self._mesh)

    def prepare(self):
        """Have the next batches made while something else than Python works."""
        self._batches.prepare()

    def dispatched(self, arrays):
        """Count a step, whose results these will be; returns when the one before it has ended."""
        before, self._running = self._running, self._watch.submit(_end_of, arrays)
        if before is not None:
            self._count_wait(before)
        self._steps += 1

    def restart(self):
        """Forget what was measured: what comes next is not a training step."""
        self._began, self._steps, self._waited = time.perf_counter(), 0, 0.0
        self._running = self._fetched = None

    def read(self):
        """Metrics since the last reading; waits for the step under way."""
        if self._running is not None:
            self._count_wait(self._running)
        seconds = time.perf_counter() - self._began
        if not self._steps or seconds <= 0:
            return {}
        row = {
            "train/samples_per_s": self._batch_size * self._steps / seconds,
            "train/data_wait": min(1.0, self._waited / seconds),
        }
        peak = flops.peak_flops()
        if peak and self.flops:
            row["train/mfu"] = self.flops * self._steps / seconds / peak
        self.restart()
        return row

    def taken(self):
        """Seconds that devices waited for data since this was last asked."""
        seconds, self._untold = self._untold, 0.0
        return seconds

    def close(self):
        self._watch.shutdown()

    def _count_wait(self, step):
        """Add the time between a step's end and the arrival of the batch fetched meanwhile."""
        ended = step.result()
        if self._fetched is not None:
            wait = idle(*self._fetched, ended)
            self._waited, self._untold = self._waited + wait, self._untold + wait
            self._fetched = None


def idle(began, came, ended):
    """How long devices stood still for a batch that was asked for at `began` and came at `came`,
    where the step before ended at `ended`: while that ran, nothing was lost.
    """
    return max(0.0, came - max(began, ended))


def _end_of(arrays):
    jax.block_until_ready(arrays)
    return time.perf_counter()


class Advice:
    """Says once what to do where a run waits for data; not of the first interval, which is full of
    beginnings, nor of a short one.
    """

    def __init__(self, config, least_seconds=1.0):
        self._config, self._least = config, least_seconds
        self._first, self._told = True, False
        self._read = time.perf_counter()

    def look(self, row):
        """Look at the metrics of an interval."""
        seconds, self._read = time.perf_counter() - self._read, time.perf_counter()
        first, self._first = self._first, False
        wait = row.get("train/data_wait", 0.0)
        if first or self._told or seconds < self._least or wait <= MUCH_WAITING:
            return
        self._told = True
        log.warning(
            "the devices wait for data %.0f %% of the time (train/data_wait): %s",
            100 * wait,
            "; or ".join(ways(self._config)),
        )


def ways(config):
    """What would feed the devices faster: list of str."""
    data, cores = config.data, os.cpu_count() or 1
    at_work = data.threads * max(1, data.workers)
    found = []
    if at_work < cores:
        found.append(f"raise config.data.threads ({data.threads}; there are {cores} cores)")
    if not data.workers and cores > 2:
        found.append("set config.data.workers to 2 or more processes")
    images = {m: c for m, c in config.modalities.items() if c.transform == "image"}
    if any(c.get("decode") == "pillow" for c in images.values()):
        install = "" if fast_image.choose("auto") == "fast" else " (pip install -e '.[fast]')"
        found.append(f"in a new run, decode three times as fast: decode='fast'{install}")
    for m, c in images.items():
        if c.get("augment_on") == "host" and c.augment == "random_resized_crop":
            found.append(f"in a new run, crop on the devices: modalities.{m}.augment_on='device'")
    return found or ["use a machine with more cores to a device, or smaller inputs"]


def peak_memory():
    """(bytes, what of): the devices' high-water mark, the fullest one's; else this process's."""
    stats = [d.memory_stats() or {} for d in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    if peaks:
        return max(peaks), "a device"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "the process"


class Startup:
    """The first step's numbers, for one row of the log and one line on the console.

    began: time.perf_counter() at the start of the program.
    """

    def __init__(self, began):
        self._began, self._row = began, {}

    def compiled(self, seconds):
        """Note the time that tracing and compiling the step took."""
        self._row["run/compile_s"] = seconds

    def first_step(self, arrays):
        """Note the end of the first step, whose results these are."""
        jax.block_until_ready(arrays)
        self._row["run/first_step_s"] = time.perf_counter() - self._began

    def row(self, last=False):
        """run/... metrics: all of them once, and the memory again in the last row."""
        peak, of = peak_memory()
        memory = {"run/peak_memory_gib": peak / 2**30}
        row, self._row = self._row, {}
        if row:
            log.info(
                "first step after %.1f s, of which compiling %.1f s; at most %.2f GiB of %s's "
                "memory in use",
                row["run/first_step_s"],
                row["run/compile_s"],
                memory["run/peak_memory_gib"],
                of,
            )
            return row | memory
        return memory if last else {}
