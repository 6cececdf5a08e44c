"""A step that hangs: where every thread stands, then the end."""

import faulthandler
import sys


class Watchdog:
    """Dumps all stacks to stderr and exits with 1 where `feed` is not called for so many seconds;
    use as a context. It fires also where Python's lock is held.

    seconds: 0 switches it off. Not fed yet, or stopped, it does nothing.
    """

    def __init__(self, seconds):
        self._seconds = seconds

    def feed(self):
        """The run is alive."""
        if self._seconds:
            # The process's own stderr: what stands in its place (a notebook's) may be no file.
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__)

    def stop(self):
        """What comes next may take any time."""
        faulthandler.cancel_dump_traceback_later()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop()
