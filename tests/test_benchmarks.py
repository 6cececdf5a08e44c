"""Benchmarks of the host run, at toy sizes, as their page says."""

import re
import subprocess
import sys

import pytest

from benchmarks import decode
from tests.processes import ROOT

SMOKE = "configs/emoji.py:clip,smoke"


def test_decode(capsys):
    decode.main(["--rounds", "1", "--images", "2", "--size", "16", "--pixels", "64x48"])
    rows = dict(re.findall(r"^(.+?) +([\d,]+) +[\d,]+ +[\d.]+$", capsys.readouterr().out, re.M))
    assert {"Pillow, bicubic", "this repository, decode='pillow'"} <= set(rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, args, told",
    [
        ("compile_time", ["--large", SMOKE, "--small", SMOKE, "--rounds", "1"], "median ratio"),
        ("first_step", ["--config", SMOKE, "--rounds", "1"], "median [\\d.]+ s beside import jax"),
        ("micro_batches", ["--config", SMOKE, "--parts", "2", "--rounds", "1"], "memory [\\d.]+"),
    ],
)
def test_command(name, args, told):
    command = [sys.executable, "-m", f"benchmarks.{name}", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(told, done.stdout), done.stdout
