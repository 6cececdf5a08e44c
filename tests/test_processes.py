"""Several real processes give the run of one: losses, gradients' norms and the final state."""

import subprocess
import sys

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from multimodal.training.checkpoint import restore_params
from tests import processes

# ALBEF with its teacher, sharded over two devices a process.
CONFIG = ("--config", "configs/emoji.py:smoke", "--config.mesh.fsdp=2", "--config.eval.pictures=0")


def several(count, workdir, devices, *args):
    """train.py as `count` processes by launch/local.py: the finished process."""
    command = [sys.executable, "launch/local.py", "-n", str(count), "--grace", "20", "--"]
    command += [sys.executable, "train.py", *CONFIG, "--workdir", str(workdir), *args]
    return subprocess.run(
        command,
        cwd=processes.ROOT,
        env=processes.environment(devices),
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process with 8 devices."""
    workdir = tmp_path_factory.mktemp("alone")
    code, _, err = processes.run("train.py", *CONFIG, "--workdir", workdir, devices=8)
    assert code == 0, err
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_give_the_run_of_one(alone, count, tmp_path):
    done = several(count, tmp_path, 8 // count)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"process {count - 1} of {count} (jax)" in done.stdout
    for one, many in zip(processes.metrics(alone), processes.metrics(tmp_path), strict=True):
        for key in ("train/loss", "train/grad_norm"):
            if key in one:
                assert many[key] == pytest.approx(one[key], rel=1e-5), (one["step"], key)
    ours, theirs = (flatten_dict(restore_params(w, "4")[1], sep="/") for w in (tmp_path, alone))
    assert ours.keys() == theirs.keys()
    # Adam divides gradients that are all but zero by themselves (of key biases, for one), so single
    # entries may differ by a step of it: see tests/parity/report.py.
    apart = [np.abs(ours[k] - theirs[k]).ravel() for k in theirs if "key/bias" not in k]
    assert np.concatenate(apart).mean() < 1e-6


def test_bad_input_ends_every_process(tmp_path):
    """One clear line from each, exit code 2, no hang."""
    done = several(2, tmp_path, 1, "--config.batch_size=17")
    assert done.returncode == 2
    assert done.stdout.count("error: config.batch_size 17 does not divide") == 2


def test_a_launcher_that_is_half_there(tmp_path):
    command = [sys.executable, "train.py", *CONFIG, "--workdir", str(tmp_path)]
    env = processes.environment() | {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run(command, cwd=processes.ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "JAX_NUM_PROCESSES is ''" in done.stderr
