"""Where numbers of a run go: metrics.jsonl, TensorBoard events, and a progress bar on stderr."""

import collections
import json
import logging
import math
import os
import pathlib
import shutil
import sys
import time

from multimodal.training.tensorboard import EventWriter

log = logging.getLogger(__name__)


class MetricLogger:
    """Writes metrics of a run to `workdir/metrics.jsonl` and `workdir/tb/`, and shows its progress.

    metrics.jsonl has one JSON object a line: "step" and the metrics, keys "group/name". It is the
    record that survives anything: each line goes out whole and at once, and on resuming from step s
    the lines of later steps, which will be made again, are dropped. So write the line of step s
    before saving the checkpoint of step s. JSON has no NaN or infinities: they stand as the strings
    "NaN", "Infinity" and "-Infinity", from which Python's float() and JavaScript's Number() make
    them again.

    Args:
      workdir: made if absent.
      total_steps: end of the progress bar; None shows none.
      resume_step: the last step that counts in what is there; None keeps it all (evaluation).
      active: False makes every method do nothing (processes other than the first).
      loss_key, rate_key: the metrics shown in the progress bar; rate is in samples/s.
    """

    def __init__(
        self,
        workdir,
        total_steps=None,
        resume_step=0,
        *,
        active=True,
        loss_key="train/loss",
        rate_key="train/samples_per_s",
    ):
        self._active = active
        self._keys = (loss_key, rate_key)
        self._progress = None
        if not active:
            return
        path = pathlib.Path(workdir, "metrics.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        again = path.exists() and path.stat().st_size > 0
        if resume_step is None:
            _end_last_line(path)  # and no more: a running training may have the file open
        else:
            _drop_lines_after(path, resume_step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  closed by close()
        purge_step = resume_step + 1 if again and resume_step is not None else None
        self._events = EventWriter(path.parent / "tb", purge_step)
        if total_steps:
            self._progress = Progress(total_steps, resume_step or 0)

    def write(self, step, metrics):
        """Log scalars (Python, NumPy or JAX numbers) of a step and show them in the bar."""
        if not self._active:
            return
        metrics = {key: _number(value) for key, value in metrics.items()}
        line = {"step": int(step)} | {key: _as_json(value) for key, value in metrics.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        for key, value in metrics.items():
            self._events.scalar(int(step), key, value)
        self._events.flush()
        if self._progress and self._keys[0] in metrics:
            self._progress.show(int(step), *(metrics.get(key) for key in self._keys))

    def tick(self, step):
        """Move the progress bar between two calls of write; costs nothing off a terminal."""
        if self._progress:
            self._progress.tick(int(step))

    def image(self, step, name, png_bytes):
        if self._active:
            self._events.image(int(step), name, png_bytes)
            self._events.flush()

    def text(self, step, name, text):
        if self._active:
            self._events.text(int(step), name, text)
            self._events.flush()

    def close(self):
        if self._active:
            self._active = False
            self._file.close()
            self._events.close()
        if self._progress:
            self._progress.close()
            self._progress = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def read_metrics(workdir):
    """Lines of workdir/metrics.jsonl as dicts, non-finite numbers restored; [] without a file."""
    path = pathlib.Path(workdir, "metrics.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [row for row in map(_parse, lines) if row is not None]
    return [{key: _from_json(value) for key, value in row.items()} for row in rows]


def _end_last_line(path):
    """Keep the next line apart from what a kill left of one; readers pass over such a piece."""
    text = path.read_bytes() if path.exists() else b""
    if text and not text.endswith(b"\n"):
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n")


def _drop_lines_after(path, step):
    """Rewrite path without lines of later steps and without what a kill left of a line."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = []
    for number, line in enumerate(text.splitlines(), 1):
        row = _parse(line)
        if row is None:
            log.warning("%s:%d: not a metrics line, dropped: %.80r", path, number, line)
        elif row["step"] <= step:
            kept.append(line + "\n")
    if "".join(kept) == text:
        return
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)  # at no moment is there no file, or half a one


def _parse(line):
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _number(value):
    value = value.item() if hasattr(value, "item") else value  # arrays of one element
    return value if isinstance(value, int) else float(value)


def _as_json(value):
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _from_json(value):
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


class Progress:
    """A progress bar on a terminal; elsewhere a plain line each time that new numbers come.

    Args:
      total: steps at the end; start: steps done before.
      stream: a text stream.
      clock: seconds, for tests.
    """

    def __init__(self, total, start=0, stream=None, clock=time.monotonic):
        self._total, self._stream, self._clock = total, stream or sys.stderr, clock
        self._live = self._stream.isatty()
        self._note = ""
        # (time, step) of late: the time left follows the recent speed.
        self._marks = collections.deque([(clock(), start)], maxlen=20)
        self._drawn = -math.inf

    def show(self, step, loss, samples_per_s=None):
        """Draw step, loss, samples/s and the time left."""
        self._note = f"loss {loss:.4g}"
        if samples_per_s is not None:
            self._note += f"  {samples_per_s:,.0f} samples/s"
        self._mark(step)
        self._draw(step)

    def tick(self, step):
        """Draw the step on a terminal, at most four times a second."""
        if len(self._marks) == 1:
            self._mark(step)  # the first step compiles: speed is measured from its end
        if self._live and self._clock() - self._drawn > 0.25:
            self._draw(step)

    def close(self):
        if self._live and self._drawn > 0:
            self._print("\n")

    def _mark(self, step):
        if step > self._marks[-1][1]:
            self._marks.append((self._clock(), step))

    def _left(self, step):
        """Seconds to go, None while unknown; without the first step once others are done."""
        marks = list(self._marks)[1 if len(self._marks) > 2 else 0 :]
        (t0, s0), (t1, s1) = marks[0], marks[-1]
        return (t1 - t0) / (s1 - s0) * (self._total - step) if s1 > s0 else None

    def _draw(self, step):
        self._drawn = self._clock()
        left = self._left(step)
        parts = [f"step {step:,}/{self._total:,}", self._note]
        parts.append("time left ?" if left is None else f"time left {_duration(left)}")
        text = "  ".join(part for part in parts if part)
        if self._live:
            columns = shutil.get_terminal_size().columns - 1
            width = min(30, columns - len(text) - 3)
            if width >= 5:
                done = min(width, width * step // self._total)
                text = f"[{'#' * done}{'.' * (width - done)}] {text}"
            self._print("\r" + text[:columns].ljust(columns))
        else:
            self._print(text + "\n")

    def _print(self, text):
        self._stream.write(text)
        self._stream.flush()


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
