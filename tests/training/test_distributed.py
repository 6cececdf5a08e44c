"""What a process learns from what Slurm, Open MPI and others leave in its environment."""

import re

import pytest

from multimodal.errors import UserError
from multimodal.training import distributed

NAMES = r"(JAX_(COORDINATOR|NUM|PROCESS|LOCAL)|SLURM_|OMPI_|PMI_|JOB_|KUBERNETES_|CUDA_VISIBLE)\w*"
# As srun and mpirun set them (Slurm 22.05, Open MPI 4.1), on the second of two nodes.
SLURM = {
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_NODEID": "1",
    "SLURM_GPUS_ON_NODE": "4",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1259929600.0;tcp://192.0.2.2:46369",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}
JAX = {
    "JAX_COORDINATOR_ADDRESS": "node1:8476",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}


@pytest.fixture
def launched(monkeypatch):
    """Sets what a launcher left in the environment; returns (how, arguments for jax)."""
    for name in [n for n in distributed.os.environ if re.match(NAMES, n)]:
        monkeypatch.delenv(name)

    def launch(env):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        how = distributed.launched_on()
        return how, distributed._known(how)

    return launch


ALL = {"local_device_ids": []}  # all that the process sees


@pytest.mark.parametrize(
    "env, how, known",
    [
        (SLURM, "slurm", ALL),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NUM_TASKS": "4"}, "slurm", {}),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2,1"}, "slurm", ALL),
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "CUDA_VISIBLE_DEVICES": "2,3"},
            "slurm",
            ALL,
        ),
        (SLURM | {"JAX_LOCAL_DEVICE_IDS": "0"}, "slurm", {}),
        (OPEN_MPI, "open-mpi", ALL),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "open-mpi", {}),
        (
            OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "CUDA_VISIBLE_DEVICES": "0"},
            "open-mpi",
            ALL,
        ),
        (SLURM | OPEN_MPI, "open-mpi", ALL),
    ],
    ids=[
        "a task a node", "tasks that see all", "the last node", "tasks with their own", "told",
        "mpirun, a process a node", "mpirun, several", "mpirun, with their own",
        "mpirun within Slurm",
    ],
)  # fmt: skip
def test_schedulers(launched, env, how, known):
    assert launched(env) == (how, known)


@pytest.mark.parametrize("env", [JAX, SLURM | JAX, OPEN_MPI | JAX])
def test_an_address_counts_before_a_scheduler(launched, env):
    how, known = launched(env)
    assert how == "jax"
    assert known.pop("cluster_detection_method") == "deactivate"
    assert known == {"num_processes": 2, "process_id": 1}


@pytest.mark.parametrize(
    "env",
    [{}, SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}],
    ids=["no launcher", "a step of one task", "mpirun -n 1"],
)
def test_a_process_of_its_own(launched, env):
    how, known = launched(env)
    assert (how, known["num_processes"]) == ("", 1)


def test_a_pod_of_an_indexed_job(launched, monkeypatch, caplog):
    env = {"JOB_COMPLETION_INDEX": "1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    assert launched(env)[0] == "" and "it runs alone" in caplog.text
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name == "kubernetes")
    assert launched(env) == ("kubernetes", {})


@pytest.mark.parametrize(
    "env",
    [
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
        {"PMI_SIZE": "2", "PMI_RANK": "1"},
    ],
    ids=["Open MPI 5", "MPICH"],
)
def test_an_mpi_that_jax_does_not_know_is_refused(launched, env):
    """Its processes would each train alone, in one workdir."""
    launched(env)
    with pytest.raises(UserError, match="one of 2 processes of an MPI .*JAX_PROCESS_ID="):
        distributed.initialise()
