"""What a fork adds: an objective is one function and one config line, a data source one class."""

import os
import subprocess
import sys

from tests import processes

MODULE = '''
import io
import numpy as np
from PIL import Image
from multimodal.objectives.sampling import masked_mean


def gap(net, out, batch, rng, a="image", b="text", margin=0.0):
    """Squared distance of the pair's embeddings."""
    distance = ((out[a].embed - out[b].embed) ** 2).sum(-1)
    return masked_mean(distance, out[a].present & out[b].present), {"margin": margin}


class Colours:
    """Plain squares named after their colours."""

    name = "colours"
    names = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}

    def __init__(self, split, copies=8):
        self.copies = copies

    def __len__(self):
        return len(self.names) * self.copies

    def __getitem__(self, i):
        name = sorted(self.names)[i % len(self.names)]
        file = io.BytesIO()
        Image.new("RGB", (8, 8), self.names[name]).save(file, "PNG")
        texts = [name, f"a {name} square"]
        return {"id": i % len(self.names), "image": file.getvalue(), "text": texts}
'''


def test_own_objective_and_own_source(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    command = [
        sys.executable, processes.ROOT / "train.py", "--config", "configs/emoji.py:smoke",
        "--workdir", tmp_path / "run", "--config.data.source=mine:Colours",
        "--config.data.kwargs={'copies': 16}", "--config.data.eval_splits=all",
        "--config.objectives.gap={'fn': 'mine:gap', 'weight': 0.5, 'margin': 0.25}",
        "--config.eval.best=''", "--config.steps=6",
    ]  # fmt: skip
    env = processes.environment() | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, cwd=processes.ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    last = [m for m in processes.metrics(tmp_path / "run") if "gap/loss" in m][-1]
    assert 0 < last["gap/loss"] < 4 and last["gap/margin"] == 0.25
    assert os.path.exists(tmp_path / "run" / "eval" / "6.json")
