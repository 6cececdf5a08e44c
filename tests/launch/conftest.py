import pytest

from tests import processes
from tests.launch import slurm
from tests.launch.runs import CONFIG


@pytest.fixture(scope="session")
def local(tmp_path_factory):
    """The workdir of the run by launch/local.py, that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("local")
    process = processes.several(2, *CONFIG, "--workdir", workdir)
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out[-3000:]
    return workdir


@pytest.fixture(scope="session")
def cluster():
    """A Slurm cluster; skips, with the reason, where there can be none."""
    try:
        context = slurm.running()
        one = context.__enter__()
    except slurm.CannotStartError as e:
        pytest.skip(f"Slurm: {e}")
    yield one
    context.__exit__(None, None, None)
