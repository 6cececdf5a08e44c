"""Where a run's time goes, over several lives."""

import json

import pytest

from multimodal.training import goodput
from multimodal.training.goodput import Goodput


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves by hand."""
    now = [0.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def stored(folder):
    return json.loads((folder / "goodput.json").read_text())


def test_what_a_killed_life_did_not_save_is_lost(tmp_path, clock):
    first = Goodput(tmp_path, 0.0)
    clock(5)
    first.begin("step")
    clock(10)
    with first.of("save"):
        clock(1)
    first.saved()
    assert stored(tmp_path)["unsaved"] == 0 and stored(tmp_path)["seconds"]["save"] == 1
    clock(4)
    first.waited(1.0)
    assert first.row() == {"run/goodput": 13 / 20}

    second = Goodput(tmp_path, 20.0)  # the first was killed
    second.resume(anything=True)
    clock(2)
    second.begin("step")
    clock(3)
    with second.of("save"):
        pass
    second.saved()
    with second.of("evaluate"):
        clock(7)
    second.write()
    found = stored(tmp_path)
    assert found["unsaved"] == 0
    assert {k: v for k, v in found["seconds"].items() if v} == {
        "start": 7, "step": 13, "data": 1, "save": 1, "lost": 3, "evaluate": 7,
    }  # fmt: skip


def test_without_a_checkpoint_all_steps_are_lost(tmp_path, clock):
    first = Goodput(tmp_path, 0.0)
    first.begin("step")
    clock(10)
    first.row()
    second = Goodput(tmp_path, 10.0)
    second.resume(anything=False)
    assert second.seconds["step"] == 0 and second.seconds["lost"] == 10


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"seconds": 3, "unsaved": 0}'])
def test_a_damaged_file_is_of_no_consequence(tmp_path, content):
    (tmp_path / "goodput.json").write_text(content)
    Goodput(tmp_path, 0.0).resume(anything=True)
