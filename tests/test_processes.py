"""Several real processes give the run of one, bit for bit, also where their number changes."""

import signal
import subprocess
import sys

import pytest

from tests import processes

STEPS = 16
# ALBEF with its teacher, sharded over two devices a process.
CONFIG = (
    "--config", "configs/emoji.py:smoke", "--config.mesh.fsdp=2", "--config.eval.pictures=0",
    f"--config.steps={STEPS}", "--config.save_every=4",
    *processes.SHALLOW,
)  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process with 8 devices."""
    return processes.finished(tmp_path_factory.mktemp("alone"), *CONFIG, devices=8)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_give_the_run_of_one(alone, count, tmp_path):
    process = processes.several(count, *CONFIG, "--workdir", tmp_path, devices=8 // count)
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out[-3000:]
    assert f"process {count - 1} of {count} (jax)" in out
    processes.check_same_end(tmp_path, alone, STEPS)


@pytest.mark.slow
def test_another_number_of_processes_half_way(alone, tmp_path):
    """Two processes, one of which is asked to end; then four; then one."""
    for count, step in ((2, 4), (4, 8)):
        process = processes.several(count, *CONFIG, "--workdir", tmp_path, devices=8 // count)
        processes.wait_for((tmp_path / "checkpoints" / str(step)).exists)
        subprocess.run(["kill", "-TERM", str(processes.pids(tmp_path)[-1])], check=True)
        out, _ = process.communicate(timeout=500)
        assert process.returncode == 75, out[-3000:]
        assert out.count("asked to end (SIGTERM): saved at step") == count
    code, _, err = processes.run("train.py", *CONFIG, "--workdir", tmp_path, devices=8)
    assert code == 0 and "resumed from step" in err, err
    processes.check_same_end(tmp_path, alone, STEPS)


@pytest.mark.slow
def test_a_killed_peer_ends_the_others(tmp_path):
    """By themselves, within the heartbeat and ten seconds: the launcher would wait for longer."""
    args = (*CONFIG, "--config.steps=5000", "--config.save_every=5000", "--workdir", tmp_path)
    process = processes.several(2, *args, "--config.mesh.heartbeat=10", grace=300)
    processes.wait_for(lambda: processes.losses(tmp_path))
    subprocess.run(["kill", "-KILL", str(processes.pids(tmp_path)[-1])], check=True)
    processes.wait_for(lambda: not processes.pids(tmp_path), seconds=20)
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGKILL


def test_bad_input_ends_every_process(tmp_path):
    """One clear line from each, exit code 2, no hang."""
    process = processes.several(2, *CONFIG, "--config.batch_size=17", "--workdir", tmp_path)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert out.count("error: config.batch_size 17 does not divide") == 2


@pytest.mark.slow
def test_bad_input_of_one_process_ends_it_at_once(tmp_path):
    """jax would wait for the others first: five minutes, to abort with another code."""
    only_second = '$([ "$JAX_PROCESS_ID" = 0 ] || echo --config.data.source=nowhere)'
    args = " ".join(["train.py", *CONFIG, "--workdir", str(tmp_path), only_second])
    command = ["-n", "2", "--grace", "20", "--", "sh", "-c", f"exec {sys.executable} {args}"]
    process = processes.start("launch/local.py", *command)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 2, out[-3000:]
    assert out.count("error: config.data.source: unknown name 'nowhere'") == 1
    assert "ending without them" in out


def test_a_launcher_that_is_half_there(tmp_path):
    command = [sys.executable, "train.py", *CONFIG, "--workdir", str(tmp_path)]
    env = processes.environment() | {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run(command, cwd=processes.ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "JAX_NUM_PROCESSES is ''" in done.stderr
