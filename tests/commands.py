"""train.py and eval.py as functions of their arguments, in this process: what does not depend on
how a process starts and ends is known seconds sooner than from one (see processes.py).
"""

import logging
import sys

import eval as eval_script
import train as train_script
from multimodal.cli import run_command


class Commands:
    """Each returns (exit code, stderr, log). The code is 0, or 2 with one line of what is wrong."""

    def __init__(self, monkeypatch, capsys, caplog):
        self._monkeypatch, self._capsys, self._caplog = monkeypatch, capsys, caplog
        # This process has devices already, and is alone.
        monkeypatch.setattr("multimodal.training.distributed.initialise", lambda *args: None)

    def train(self, *args):
        return self._script(train_script, ("config", "workdir"), args)

    def eval(self, *args):
        return self._script(eval_script, ("workdir",), args)

    def _script(self, script, required, args):
        self._monkeypatch.setattr(sys, "argv", ["command", *map(str, args)])
        return self.call(lambda: run_command(script.main, script.__doc__, required))

    def call(self, fn):
        """The same of any function that ends as a program does."""
        self._caplog.clear()
        self._capsys.readouterr()
        try:
            with self._caplog.at_level(logging.WARNING):
                code = fn() or 0
        except SystemExit as e:
            code = e.code
        err = self._capsys.readouterr().err
        assert code in (0, 2) and "Traceback" not in err, err
        if code:
            line = [x for x in err.splitlines() if x.startswith("error: ")]
            assert len(line) == 1 and len(line[0]) > 30, err
        return code, err, self._caplog.text
