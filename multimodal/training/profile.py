"""`--profile`: a trace of a few steps that TensorBoard's profiler (xprof) opens."""

import contextlib
import logging
import pathlib

import jax

from multimodal.errors import UserError

log = logging.getLogger(__name__)
WARM_UP, STEPS = 5, 3  # of '--profile' without a value


def steps_to_trace(text, first, last):
    """range of the steps to trace: of 'START:STOP', steps START to STOP - 1; of 'auto', three after
    a few others.

    first, last: the steps that the run will do. Raises UserError for steps that it will not.
    """
    if not text:
        return range(0)
    if text == "auto":
        start = max(first, min(first + WARM_UP, last + 1 - STEPS))
        return range(start, min(start + STEPS, last + 1))
    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise UserError(f"--profile {text}: give START:STOP, such as 10:13 for steps 10 to 12")
    wanted = range(int(start), int(stop))
    if wanted.start < first or wanted[-1] > last:
        left = f"steps {first} to {last}" if first <= last else "no steps"
        raise UserError(f"--profile {text}: this run has {left} to do")
    return wanted


class Profile:
    """Traces the steps of a range into workdir/profile; use as a context."""

    def __init__(self, steps, workdir):
        self._steps, self._folder = steps, pathlib.Path(workdir, "profile")
        self._on = False

    def step(self, number):
        """A context for dispatching a step; the trace begins with the first of the range."""
        if number not in self._steps:
            return contextlib.nullcontext()
        if not self._on:
            self._on = True
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call: most of the file, and of the time
            jax.profiler.start_trace(self._folder, profiler_options=options)
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def done(self, number, arrays):
        """After the last step of the range, with its results: write the trace. True if it did."""
        if not (self._on and number == self._steps[-1]):
            return False
        jax.block_until_ready(arrays)
        self._stop()
        log.info(
            "trace of steps %d to %d: tensorboard --logdir %s (needs: pip install xprof)",
            self._steps[0],
            number,
            self._folder,
        )
        return True

    def _stop(self):
        self._on = False
        jax.profiler.stop_trace()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._on:
            self._stop()
