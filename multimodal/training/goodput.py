"""Where the time of a run goes, over all its lives: goodput.json."""

import contextlib
import json
import os
import pathlib
import time

KINDS = ("start", "restore", "compile", "step", "data", "save", "evaluate", "lost")


class Goodput:
    """Seconds of each of KINDS, of all lives of a run together.

    'data' is what the devices waited for; 'lost' are steps after the last checkpoint of a life that
    was killed, which are made again. What a killed life did since its last line is not known.

    Args:
      workdir: holds goodput.json, where a line of the log leaves the sums.
      began: time.perf_counter() at the start of the program.
      active: False keeps nothing on disk (processes other than the first).
    """

    def __init__(self, workdir, began, active=True):
        self._path, self._active = pathlib.Path(workdir, "goodput.json"), active
        self.seconds, self._unsaved = dict.fromkeys(KINDS, 0.0), 0.0
        self._kind, self._since = "start", began

    def resume(self, anything: bool):
        """Take up the sums of the lives before. anything: whether there is a checkpoint of them."""
        try:
            old = json.loads(self._path.read_text(encoding="utf-8"))
            known = {k: float(old["seconds"].get(k, 0.0)) for k in KINDS}
            unsaved = float(old["unsaved"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # of no consequence for the run
        unsaved = unsaved if anything else known["step"]
        known["step"] -= unsaved
        known["lost"] += unsaved
        for kind, value in known.items():
            self.seconds[kind] += value

    def begin(self, kind):
        """What comes from now on is of this kind."""
        now = time.perf_counter()
        self._add(self._kind, now - self._since)
        self._kind, self._since = kind, now

    @contextlib.contextmanager
    def of(self, kind):
        """A part of another kind; then what was before goes on."""
        before = self._kind
        self.begin(kind)
        try:
            yield
        finally:
            self.begin(before)

    def waited(self, seconds):
        """Of the steps until now, so many were spent waiting for data."""
        self._add("data", seconds)
        self._add("step", -seconds)

    def saved(self):
        """All steps until now are safe."""
        self.begin(self._kind)
        self._unsaved = 0.0
        self.write()

    def row(self) -> dict:
        """Share of time that went into steps that count, for a line of the log; and write the
        file.
        """
        self.write()
        return {"run/goodput": self.seconds["step"] / max(sum(self.seconds.values()), 1e-9)}

    def write(self):
        """Leave the sums on disk, at no moment half of them."""
        self.begin(self._kind)
        if not self._active:
            return
        part = self._path.with_suffix(".part")
        rounded = {k: round(v, 3) for k, v in self.seconds.items()}
        part.write_text(
            json.dumps({"seconds": rounded, "unsaved": round(self._unsaved, 3)}) + "\n",
            encoding="utf-8",
        )
        os.replace(part, self._path)

    def _add(self, kind, seconds):
        self.seconds[kind] += seconds
        if kind == "step":
            self._unsaved += seconds
