"""launch/slurm.sbatch as it is, given to a real Slurm."""

import sys

import pytest

from tests import processes
from tests.launch.runs import CONFIG, STEPS, check_joined

pytestmark = pytest.mark.slow


def test_the_job_is_queued_again_and_ends_as_without_slurm(cluster, local, tmp_path):
    job = cluster.submit(*CONFIG, "--workdir", tmp_path)
    processes.wait_for((tmp_path / "checkpoints" / "10").exists, seconds=400)
    cluster.run("scancel", "--signal=TERM", job)  # what --signal=TERM@120 does
    cluster.wait(job, lambda told: told["Restarts"] == "1", seconds=100)
    text = cluster.log(job)
    check_joined(text, "slurm")
    assert text.count("asked to end (SIGTERM): saved at step") == 2
    assert "Exited with exit code 75" in text
    cluster.start_soon(job)
    assert cluster.end(job)["JobState"] == "COMPLETED", cluster.log(job)[-3000:]
    assert "resumed from step" in cluster.log(job)
    processes.check_same_end(tmp_path, local, STEPS)


def test_bad_input_fails_the_job(cluster, tmp_path):
    job = cluster.submit(*CONFIG, "--config.batch_size=17", "--workdir", tmp_path)
    check_failed(cluster, job, errors=2)


def test_bad_input_of_one_process_fails_the_job(cluster, tmp_path):
    """At once: jax would wait for five minutes, and abort both with another code."""
    bad = "--config.data.source=nowhere"
    job = cluster.submit(*CONFIG, "--workdir", tmp_path, ONLY_SECOND=bad)
    check_failed(cluster, job, errors=1)


def check_failed(cluster, job, errors):
    """Assert that a job ended with 2, and was not queued again."""
    told = cluster.end(job)
    text = cluster.log(job)
    assert (told["JobState"], told["ExitCode"], told["Restarts"]) == ("FAILED", "2:0", "0"), text
    assert text.count("error: config.") == errors
    assert "bad input: not queued again" in text


# The GPUs are none that jax could use: what it is told of them is what counts.
TELL = """
import jax
from multimodal.training.distributed import initialise
print(initialise(), jax.process_count(), jax.process_index(), end=" ")
print(jax.config.values["jax_cuda_visible_devices"])
"""


@pytest.mark.parametrize(
    "options, devices",
    [
        (["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8"], ["all", "all"]),
        (["--nodes=1", "--ntasks=2", "--gpus-per-node=8"], ["0", "1"]),
        (["--nodes=1", "--ntasks=2", "--gpus-per-task=2"], ["all", "all"]),
    ],
    ids=["a task a node", "tasks that see all", "tasks with their own"],
)
def test_gpus_of_a_process(cluster, options, devices):
    out = cluster.run("srun", *options, sys.executable, "-c", TELL, PYTHONPATH=str(processes.ROOT))
    found = sorted(line.split() for line in out.splitlines() if line.startswith("slurm "))
    assert found == [["slurm", "2", str(i), d] for i, d in enumerate(devices)], out
