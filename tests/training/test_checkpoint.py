"""Checkpoints: which are kept, which one is chosen, what is told when one is missing or damaged."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal.config import load_config, save_config
from multimodal.errors import UserError
from multimodal.training import checkpoint
from multimodal.training.checkpoint import Checkpoints, choose_step, restore_params
from multimodal.training.health import new_health
from multimodal.training.loop import write_scores
from multimodal.training.step import State

BEST = "unseen_combination/text_to_image/r1"
SCORES = {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.4, 5: 0.5, 6: 0.6}


def state_of(step):
    params = {"w": jnp.full((4, 4), float(step)), "b": jnp.arange(3.0)}
    ema = jax.tree.map(lambda x: x + 0.5, params)
    rng = jnp.zeros(2, jnp.uint32)
    return State(jnp.int32(step), params, ema, (jnp.ones(2),), None, new_health(), rng)


@pytest.fixture
def workdir(tmp_path):
    """Six evaluated checkpoints, saved by two runs one after the other; the second is the best."""
    save_config(load_config("configs/emoji.py"), tmp_path)
    for steps in ((1, 2, 3), (4, 5, 6)):
        checkpoints = Checkpoints(tmp_path, latest=2, best=BEST)
        for step in steps:
            checkpoints.save(state_of(step))
            write_scores(tmp_path, step, {BEST: SCORES[step]})
        checkpoints.close()
    return tmp_path


def test_newest_and_best_are_kept_over_a_restart(workdir):
    assert Checkpoints(workdir).steps() == [2, 5, 6]


@pytest.mark.parametrize("step, found", [("latest", 6), ("best", 2), ("5", 5), (2, 2)])
def test_choice(workdir, step, found):
    assert choose_step(workdir, step) == found


@pytest.mark.parametrize("step", ["3", "newest", "-1", ""])
def test_missing_step_names_those_that_there_are(workdir, step):
    with pytest.raises(UserError, match="2, 5, 6"):
        choose_step(workdir, step)


def test_state_and_parameters_come_back(workdir):
    checkpoints = Checkpoints(workdir)
    found, _ = checkpoints.restore(state_of(0))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state_of(6)), strict=True):
        np.testing.assert_array_equal(a, b)
    step, params, ema = restore_params(workdir, "best")
    assert step == 2 and float(params["w"][0, 0]) == 2.0 and float(ema["w"][0, 0]) == 2.5


def test_a_quick_write_is_whole_before_the_run_goes_on(tmp_path, monkeypatch):
    """So that a kill costs no more than one interval, however short the steps are."""
    monkeypatch.setattr(checkpoint, "QUICK_WRITE", 300.0)
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(state_of(step))
        assert Checkpoints(tmp_path).restore(state_of(0))[0].step == step


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="train first"):
        restore_params(tmp_path)


def test_damaged_checkpoint(workdir):
    shutil.rmtree(workdir / "checkpoints" / "6" / "state" / "d", ignore_errors=True)
    (workdir / "checkpoints" / "6" / "state" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(UserError, match="cannot restore"):
        restore_params(workdir)


def test_reading_parameters_says_nothing_and_leaves_the_logging_alone(workdir, caplog):
    before = list(logging.getLogger("absl").filters)
    restore_params(workdir)
    assert not caplog.text
    assert logging.getLogger("absl").filters == before
