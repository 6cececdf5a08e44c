"""The resume law with real processes: killed at random moments, the run ends bit-equal to one that
was not.
"""

import random
import signal
import subprocess
import time

import pytest

from tests import processes

STEPS = 24
# The original's mode has a queue and a teacher with dropout: all that a state can hold.
ARGS = (
    "--config", "configs/emoji.py:albef_original,smoke", f"--config.steps={STEPS}",
    "--config.save_every=2", "--config.log_every=4", "--config.eval.pictures=0",
    "--config.modalities.text.dropout=0.1", *processes.SHALLOW,
)  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nothing interrupts, with all that a state can hold."""
    workdir = processes.finished(tmp_path_factory.mktemp("reference"), *ARGS)
    parts = {k.partition("/")[0] for k in processes.fingerprints(workdir, STEPS)}
    assert parts == {"step", "params", "ema", "opt", "queue", "health", "rng"}
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
    processes.check_same_end(tmp_path, reference, STEPS)


@pytest.mark.slow
def test_ten_kills_at_random_moments_end_bit_equal(tmp_path, reference):
    kill_until_done(tmp_path, 10, random.Random(0), longest=25.0)
    processes.check_same_end(tmp_path, reference, STEPS)
