"""What a run says of its time, memory and start; which steps are traced."""

import logging
import os

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from multimodal import cli
from multimodal.config import load_config
from multimodal.errors import UserError
from multimodal.training.clock import Advice, Clock, Startup, idle, peak_memory, ways
from multimodal.training.profile import steps_to_trace
from multimodal.training.sharding import make_mesh


@pytest.mark.parametrize(
    "began, came, ended, lost",
    [(1, 5, 3, 2), (1, 5, 6, 0), (1, 5, 0, 4), (1, 5, 5, 0), (1, 1, 0, 0)],
)
def test_only_what_is_waited_after_the_steps_end_counts(began, came, ended, lost):
    assert idle(began, came, ended) == lost


def test_clock_feeds_batches_in_order_and_measures_intervals():
    batches = ({"x": np.full((8, 2), i)} for i in range(5))
    clock = Clock(batches, make_mesh(), 8)
    batch = clock.fetch()
    for step in range(4):
        assert (np.asarray(batch["x"]) == step).all()
        clock.dispatched(jnp.sum(batch["x"]))
        batch = clock.fetch()
    row = clock.read()
    assert row["train/samples_per_s"] > 0 and 0 <= row["train/data_wait"] <= 1
    assert clock.read() == {}
    clock.close()


def test_an_error_of_the_data_reaches_the_loop():
    def broken():
        raise UserError("unreadable")
        yield

    clock = Clock(broken(), make_mesh(), 8)
    with pytest.raises(UserError):
        clock.fetch()
    clock.close()


@pytest.fixture
def config():
    return load_config("configs/emoji.py")


def test_advice_comes_once_and_not_for_the_first_interval(config, caplog):
    advice = Advice(config, least_seconds=0)
    for wait, told in [(0.9, 0), (0.05, 0), (0.06, 1), (0.9, 1)]:
        advice.look({"train/data_wait": wait})
        assert caplog.text.count("wait for data") == told
    short = Advice(config, least_seconds=1e9)
    for _ in range(3):
        short.look({"train/data_wait": 0.9})
    assert caplog.text.count("wait for data") == 1


def test_advice_fits_the_config(config, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    config.modalities.image.decode = "pillow"
    config.modalities.image.augment = "random_resized_crop"
    text = "; ".join(ways(config))
    for word in ("config.data.threads", "config.data.workers", "decode='fast'", "augment_on"):
        assert word in text
    config.modalities.image.update(decode="fast", augment_on="device")
    config.data.update(threads=4, workers=2)
    assert ways(config) == ["use a machine with more cores to a device, or smaller inputs"]
    config.modalities = {"sound": common.audio_tower()}
    assert ways(config)


def test_startup_is_told_once(caplog):
    caplog.set_level(logging.INFO)
    startup = Startup(began=0.0)
    startup.compiled(1.5)
    startup.first_step(jnp.zeros(()))
    row = startup.row()
    assert row.keys() == {"run/compile_s", "run/first_step_s", "run/peak_memory_gib"}
    assert startup.row() == {} and startup.row(last=True).keys() == {"run/peak_memory_gib"}
    assert caplog.text.count("first step after") == 1
    assert peak_memory()[0] > 2**20


@pytest.mark.parametrize(
    "text, first, last, steps",
    [
        ("", 1, 9, []),
        ("2:4", 1, 9, [2, 3]),
        ("9:10", 1, 9, [9]),
        ("auto", 1, 100, [6, 7, 8]),
        ("auto", 41, 100, [46, 47, 48]),
        ("auto", 1, 4, [2, 3, 4]),
        ("auto", 4, 4, [4]),
        ("auto", 5, 4, []),
    ],
)
def test_steps_to_trace(text, first, last, steps):
    assert list(steps_to_trace(text, first, last)) == steps


@pytest.mark.parametrize("text", ["3", "3:3", "5:3", "a:b", "-1:2", "0:2", "8:12", ":"])
def test_steps_that_cannot_be_traced(text):
    with pytest.raises(UserError, match="--profile"):
        steps_to_trace(text, 1, 9)


def test_profile_takes_a_value_or_none():
    def parse(*args):
        required = ("config", "workdir")
        return cli.parse_args("", required, ["--config", "c", "--workdir", "w", *args])

    assert parse().profile == "" and parse("--profile").profile == "auto"
    assert parse("--profile", "10:13").profile == parse("--profile=10:13").profile == "10:13"
    assert parse("--profile", "--config.seed=1").overrides == ["seed=1"]
