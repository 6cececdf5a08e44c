"""Run train.py and eval.py as users do, as processes of their own."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def environment(devices=1):
    """The tests' environment (compile cache, CPU), with so many virtual devices."""
    return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


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


def run(script, *args, devices=1):
    """Run a script to its end; returns (exit code, stdout, stderr)."""
    process = start(script, *args, devices=devices)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def metrics(workdir):
    """Lines of metrics.jsonl by step."""
    lines = pathlib.Path(workdir, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def final_arrays(workdir, step):
    """Every array of a checkpoint's state, by path."""
    import jax
    import orbax.checkpoint as ocp

    path = pathlib.Path(workdir, "checkpoints", str(step), "state").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.restore(path)
    return {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}
