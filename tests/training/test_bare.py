"""A step, and what times it, need JAX, Flax, Optax and ml_collections alone."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = """
import importlib.abc, json, pathlib, sys

DATA = {"PIL", "array_record", "av", "cv2", "datasets", "fsspec", "grain", "matplotlib", "pyarrow",
        "qwix", "safetensors", "sentencepiece", "simplejpeg", "soundfile", "tensorboard",
        "tensorflow", "tensorflow_datasets", "tokenizers"}

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in DATA:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Absent())
from benchmarks.pytorch import TINY
from benchmarks.pytorch_sides import Ours

overrides = [*TINY, "modalities.image.size=64", "model.dtype=float32"]
what = {"config": "configs/clip.py:b32", "overrides": overrides, "device": "cpu"}
side = Ours("ours, unrolled", what, pathlib.Path(sys.argv[1], "inputs.npz"))
ready = side.ready()
side.step()
print(json.dumps([ready, side.losses()]))
"""


@pytest.mark.slow
def test_a_step_runs_without_what_reads_data(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ready, after = json.loads(done.stdout.splitlines()[-1])
    assert after["contrastive"] < ready["losses"]["contrastive"]
    assert ready["flops"] > 0
    assert (tmp_path / "inputs.npz").exists()


def compared(*args):
    """What the comparison prints at toy sizes."""
    command = [sys.executable, "-m", "benchmarks.pytorch", "--tiny", "--models", "b32", *args]
    command += ["--rounds", "1", "--steps", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_ours_alone():
    told = compared("--device", "gpu", "--alone")
    assert "b32 ours, unrolled, xla" in told and "MFU" in told


@pytest.mark.slow
def test_chosen_sides_take_turns():
    told = compared("--device", "gpu", "--alone", "--sides", "ours", "ours, unrolled, xla")
    assert "b32 ours / ours, unrolled, xla, speed by seconds" in told


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_pytorch_takes_turns(device):
    pytest.importorskip("torch", reason="torch is not installed")
    told = compared("--device", device)
    assert "first contrastive loss" in told and "speed by seconds" in told
