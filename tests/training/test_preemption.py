"""SIGTERM to one process: noted while it steps, an end at once while all is saved."""

import os
import signal

import pytest

from multimodal import cli
from multimodal.errors import Preempted
from multimodal.training.preemption import Preemption


def test_noted_between_steps_and_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.asked(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.asked(2)
        with pytest.raises(Preempted), preemption.at_once():
            pytest.fail("it was asked to end before")
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_end_at_once_where_all_is_saved():
    with Preemption() as preemption, pytest.raises(Preempted), preemption.at_once():
        os.kill(os.getpid(), signal.SIGTERM)


def test_exit_code_and_line(monkeypatch, capsys):
    def main(args):
        raise Preempted

    monkeypatch.setattr("sys.argv", ["eval.py", "--workdir", "x"])
    with pytest.raises(SystemExit) as end:
        cli.run_command(main, "Evaluate: eval.py --workdir DIR", required=("workdir",))
    assert end.value.code == 75
    line = "asked to end (SIGTERM): all is saved; the same command goes on"
    assert line in capsys.readouterr().err
