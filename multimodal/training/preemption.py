"""SIGTERM: save on all processes at the same step, and exit with 75."""

import contextlib
import signal
import threading

import jax

from multimodal.errors import Preempted


class Preemption:
    """Whether the run was asked to end; use as a context around its steps.

    One process has a signal handler of its own. Of several, jax's preemption service makes all
    agree on a step, whichever of them got the signal.
    """

    def __init__(self):
        self._alone = jax.process_count() == 1
        self._asked = self._at_once = False
        self._before = None

    def __enter__(self):
        if self._alone and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number, frame):
        self._asked = True
        if self._at_once:
            raise Preempted

    def asked(self, step) -> bool:
        """Whether to save after this step and end; the same on all processes. Call once a step."""
        if self._alone:
            return self._asked
        from jax.experimental.multihost_utils import reached_preemption_sync_point

        return reached_preemption_sync_point(step)

    @contextlib.contextmanager
    def at_once(self):
        """A part of the run that may end at any moment, as all that matters is saved."""
        self._at_once = True
        try:
            if self._asked:
                raise Preempted
            yield
        finally:
            self._at_once = False
