"""Real processes of mpirun, which find each other without an address."""

import shutil
import signal
import subprocess
import sys

import pytest

from tests import processes
from tests.launch.runs import CONFIG, STEPS, check_joined

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("mpirun"), reason="Open MPI: mpirun is not installed"),
]


@pytest.fixture(scope="module", autouse=True)
def open_mpi():
    """Skips for another MPI: jax knows Open MPI 4."""
    version = subprocess.run(["mpirun", "--version"], capture_output=True, text=True).stdout
    if "(Open MPI) 4." not in version:
        pytest.skip(f"Open MPI 4 is needed; here is {version.splitlines()[:1]}")


def start(*args):
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "2"]
    return subprocess.Popen(
        [*command, sys.executable, "train.py", *map(str, args)],
        cwd=processes.ROOT,
        env=processes.environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_a_run_is_interrupted_and_ends_as_without_mpirun(local, tmp_path):
    """The signal goes to a process: mpirun would kill them all a second after it got one."""
    process = start(*CONFIG, "--workdir", tmp_path)
    processes.wait_for((tmp_path / "checkpoints" / "10").exists, seconds=400)
    subprocess.run(["kill", "-TERM", str(processes.pids(tmp_path)[-1])], check=True)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 75, out[-3000:]
    check_joined(out, "open-mpi")
    assert out.count("asked to end (SIGTERM): saved at step") == 2
    process = start(*CONFIG, "--workdir", tmp_path)
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out[-3000:]
    assert "resumed from step" in out
    processes.check_same_end(tmp_path, local, STEPS)


def test_bad_input_is_the_exit_code_of_mpirun(tmp_path):
    process = start(*CONFIG, "--config.batch_size=17", "--workdir", tmp_path)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 2, out[-3000:]
    check_joined(out, "open-mpi")


def test_sigterm_to_mpirun_itself_leaves_a_run_that_goes_on(tmp_path):
    """Nothing is saved then, as mpirun's manual says; no process is left, and the exit code is
    not that of a saved run.
    """
    process = start(*CONFIG, "--config.steps=5000", "--workdir", tmp_path)
    processes.wait_for((tmp_path / "checkpoints" / "10").exists, seconds=400)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode not in (0, 75)
    processes.wait_for(lambda: not processes.pids(tmp_path), seconds=30)
