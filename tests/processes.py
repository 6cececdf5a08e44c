"""Run train.py and eval.py as users do, as processes of their own."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


# Towers of one layer: what these runs cost is compiling their step.
SHALLOW = tuple(f"--config.modalities.{m}.depth=1" for m in ("image", "text"))


def environment(devices=1):
    """The tests' environment (compile cache, CPU, quick to compile), with so many virtual
    devices.
    """
    count = "--xla_force_host_platform_device_count"
    flags = re.sub(rf"{count}=\d+", f"{count}={devices}", os.environ["XLA_FLAGS"])
    return os.environ | {"XLA_FLAGS": flags}


def start(script, *args, devices=1, **kwargs):
    """Start a script of the checkout; returns the Popen."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(devices),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **kwargs,
    )


def several(count, *args, devices=1, grace=20):
    """Start train.py as `count` processes by launch/local.py; returns the Popen."""
    command = ["-n", count, "--grace", grace, "--", sys.executable, "train.py", *args]
    return start("launch/local.py", *command, devices=devices)


def pids(workdir):
    """Numbers of the train.py processes (without launcher and data workers) of a workdir."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:  # it has just ended
            continue
        if len(words) > 2 and words[1].endswith("train.py") and str(workdir) in words:
            found.append(int(path.parent.name))
    return sorted(found)


def wait_for(condition, seconds=300):
    """Wait until a condition holds. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


def alive(pid):
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def run(script, *args, devices=1):
    """Run a script to its end; returns (exit code, stdout, stderr)."""
    process = start(script, *args, devices=devices)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def fingerprints(workdir, step):
    """The fingerprint of every array of a checkpoint: equal where the arrays are, bit for bit."""
    path = pathlib.Path(workdir, "checkpoints", str(step), "meta", "metadata")
    return json.loads(path.read_text(encoding="utf-8"))["fingerprints"]


def losses(workdir):
    """(step, loss) of each line of the log that has one."""
    return [(m["step"], m["train/loss"]) for m in metrics(workdir) if "train/loss" in m]


def metrics(workdir):
    """Lines of metrics.jsonl; [] before there are any."""
    path = pathlib.Path(workdir, "metrics.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def finished(workdir, *args, devices=1):
    """The workdir of a run that nothing interrupts, once it has ended."""
    code, _, err = run("train.py", *args, "--workdir", workdir, devices=devices)
    assert code == 0, err
    return workdir


def check_same_end(workdir, reference, step):
    """Assert that two runs ended in the same state, bit for bit, with the same log."""
    ours, theirs = (fingerprints(w, step) for w in (workdir, reference))
    assert ours.keys() == theirs.keys()
    assert not [k for k in ours if ours[k] != theirs[k]]
    assert losses(workdir) == losses(reference)
