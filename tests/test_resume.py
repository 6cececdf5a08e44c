"""The resume law with real processes: killed at random moments, the run ends bit-equal to one that
was not.
"""

import random
import signal
import subprocess
import time

import numpy as np
import pytest

from tests import processes

STEPS = 24
# The original's mode has a queue and a teacher with dropout: all that a state can hold.
ARGS = (
    "--config", "configs/emoji.py:albef_original,smoke", f"--config.steps={STEPS}",
    "--config.save_every=2", "--config.log_every=4", "--config.eval.pictures=0",
    "--config.modalities.text.dropout=0.1",
)  # fmt: skip


def equal(workdir, reference):
    """Assert that two runs ended in the same state, bit for bit, with the same log."""
    a, b = (processes.final_arrays(w, STEPS) for w in (workdir, reference))
    assert a.keys() == b.keys()
    assert {"['params']", "['ema']", "['opt']", "['queue']"} <= {"[" + k.split("[")[1] for k in a}
    different = [k for k in a if not np.array_equal(np.asarray(a[k]), np.asarray(b[k]))]
    assert not different
    assert losses(workdir) == losses(reference)


def losses(workdir):
    return [(m["step"], m["train/loss"]) for m in processes.metrics(workdir) if "train/loss" in m]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("reference")
    code, _, err = processes.run("train.py", *ARGS, "--workdir", workdir)
    assert code == 0, err
    return workdir


def kill_until_done(workdir, kills, rng, longest):
    """Kill a run `kills` times after a random time each, then let it end."""
    for _ in range(kills):
        process = processes.start("train.py", *ARGS, "--workdir", workdir)
        try:
            process.communicate(timeout=rng.uniform(1.0, longest))
            assert process.returncode == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    code, _, err = processes.run("train.py", *ARGS, "--workdir", workdir)
    assert code == 0, err


@pytest.mark.slow
def test_killed_while_saving_ends_bit_equal(tmp_path, reference):
    """Kill as soon as checkpoints begin to appear, twice, then let it end."""
    for wanted in (2, 8):
        process = processes.start("train.py", *ARGS, "--workdir", tmp_path)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            if any(tmp_path.glob(f"checkpoints/{wanted}*")):
                break
            time.sleep(0.01)
        process.kill()
        process.communicate()
    code, _, err = processes.run("train.py", *ARGS, "--workdir", tmp_path)
    assert code == 0, err
    assert "resumed from step" in err
    equal(tmp_path, reference)


@pytest.mark.slow
def test_ten_kills_at_random_moments_end_bit_equal(tmp_path, reference):
    kill_until_done(tmp_path, 10, random.Random(0), longest=25.0)
    equal(tmp_path, reference)
