"""What can be known of the templates without a cluster: their commands, run with what each
scheduler would set.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from launch.local import free_port
from multimodal.cli import parse_args
from multimodal.config import load_config
from tests import processes
from tests.launch.slurm import write_python

LAUNCH = processes.ROOT / "launch"
SCRIPTS = ("slurm.sbatch", "tpu_vm.sh")
# In train.py's place: what a process was given, and whom it found.
STAND_IN = """
import sys
from multimodal.training.distributed import initialise
how = initialise()
import jax
print("joined", how, jax.process_count(), jax.process_index(), *sys.argv[1:])
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder like a checkout with its environment, whose train.py is STAND_IN."""
    write_python(tmp_path)
    (tmp_path / "train.py").write_text(STAND_IN)
    return tmp_path


@pytest.fixture(scope="module")
def yaml():
    return pytest.importorskip("yaml")


def check_arguments(args):
    """Assert that train.py takes these, with a config that there is."""
    parsed = parse_args("Train: train.py --config FILE", ("config", "workdir"), args)
    load_config(parsed.config, parsed.overrides)


def bash(text, folder, **env):
    return subprocess.Popen(
        ["bash", "-c", text],
        cwd=folder,
        env=processes.environment() | env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def check_both_join(started):
    """Assert that two processes find each other and are given arguments that train.py takes."""
    try:
        for number, process in enumerate(started):
            out, _ = process.communicate(timeout=100)
            assert process.returncode == 0, out
            [line] = [x for x in out.splitlines() if x.startswith("joined")]
            assert line.split()[1:4] == ["jax", "2", str(number)]
            check_arguments(line.split()[4:])
    finally:  # one that does not find the other waits for five minutes
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_parse(name):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_scripts_are_clean(name):
    subprocess.run(["shellcheck", LAUNCH / name], check=True)


def test_examples_in_the_scripts_are_commands():
    for name in SCRIPTS:
        text = (LAUNCH / name).read_text(encoding="utf-8")
        [line] = [x for x in text.splitlines() if x.startswith("#") and "--config" in x]
        words = shlex.split(line.lstrip("#"))
        check_arguments(words[words.index("--config") :])


def test_skypilot(yaml, checkout):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text(encoding="utf-8"))
    assert task["workdir"] == "."  # without it no checkout comes to the machines
    env = {"SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2\n", "SKYPILOT_NUM_NODES": "2"}
    assert ":8476" in task["run"]
    text = task["run"].replace(":8476", f":{free_port()}")  # it may be in use here
    started = [bash(text, checkout, **env, SKYPILOT_NODE_RANK=str(i)) for i in range(2)]
    check_both_join(started)


def test_jobset(yaml, checkout):
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text(encoding="utf-8"))
    name = jobset["metadata"]["name"]
    [job] = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    [train] = spec["template"]["spec"]["containers"]
    first = f"{name}-{job['name']}-0-0.{name}"  # as JobSet names the first pod
    given = {e["name"]: e["value"] for e in train["env"] if "value" in e}
    assert given["JAX_COORDINATOR_ADDRESS"] == f"{first}:8476"
    given["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free_port()}"
    [index] = [e for e in train["env"] if "valueFrom" in e]
    assert "job-completion-index" in index["valueFrom"]["fieldRef"]["fieldPath"]
    assert int(given["JAX_NUM_PROCESSES"]) == spec["parallelism"] == spec["completions"] == 2
    text = shlex.join([".venv/bin/python", *train["command"][1:], *train["args"]])
    check_both_join([bash(text, checkout, **given, **{index["name"]: str(i)}) for i in range(2)])


@pytest.mark.parametrize(
    "codes, code, starts",
    [((75, 255, 0), 0, 3), ((2,), 2, 1)],
    ids=["asked to end, then lost", "bad input"],
)
def test_tpu_vm(tmp_path, codes, code, starts):
    """With a gcloud that notes what it is given, and ends with one code after the other."""
    tools = tmp_path / "bin"
    tools.mkdir()
    lines = [f"{i + 1}) exit {c} ;;" for i, c in enumerate(codes)]
    gcloud = f'echo "${{@: -1}}" >> {tmp_path}/given\ncase $(wc -l < {tmp_path}/given) in\n'
    for name, text in (("gcloud", gcloud + "\n".join(lines) + "\nesac"), ("sleep", "")):
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    args = ["--config", "configs/clip.py:l14,tiled", "--workdir", "a folder", "--config.steps=3"]
    command = ["bash", LAUNCH / "tpu_vm.sh", "NAME", "ZONE", *args]
    env = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    given = (tmp_path / "given").read_text(encoding="utf-8").splitlines()
    assert given == given[:1] * starts
    inner = shlex.split(given[0].removeprefix("--command="))
    assert inner[inner.index("train.py") + 1 :] == args  # quoted for the shell of the worker
    check_arguments(args)


@pytest.mark.parametrize(
    "script, code",
    [
        ("sys.exit(3 * number)", 3),
        ("time.sleep(0.3 * (1 - number)); sys.exit(5 - number)", 4),  # the second one ends first
        ("number or time.sleep(60); sys.exit(6)", 6),  # the first one is killed after --grace
        ("number and os.kill(os.getpid(), 9)", 137),
    ],
)
def test_local_gives_the_code_of_the_first_that_failed(script, code):
    script = f"import os, sys, time; number = int(os.environ['JAX_PROCESS_ID']); {script}"
    command = [LAUNCH / "local.py", "-n", "2", "--grace", "2", "--", sys.executable, "-c", script]
    done = subprocess.run([sys.executable, *command], timeout=50)
    assert done.returncode == code
