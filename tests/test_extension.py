"""What a fork adds: an objective is one function and one config line, a data source one class, a
modality one encoder and one transform.
"""

import json
import os
import subprocess
import sys

import pytest

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


@pytest.mark.slow
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


TABLE = '''
import numpy as np
from flax import linen as nn
from configs import common
from multimodal.nn.encoders import register_encoder
from multimodal.nn.layers import Tokens
from multimodal.data.transforms import register
from ml_collections import ConfigDict


@register_encoder("columns")
class Columns(nn.Module):
    """One token for each column of a table's row."""

    width: int = 32
    columns: int = 3
    dtype: str = "float32"

    @nn.compact
    def __call__(self, row, present, keys=None, mask=None):
        init = nn.initializers.normal(1.0)
        scale, bias = (self.param(n, init, (self.columns, self.width)) for n in ("scale", "bias"))
        x = nn.gelu(row[..., None] * scale + bias)
        mask = np.ones(row.shape, bool) & present[:, None]
        return Tokens(x, mask, keys), x.mean(1)


@register("row")
class Row:
    def __init__(self, cfg, train, tokenizer=None):
        self.columns = cfg["columns"]

    def __call__(self, value, rng=None):
        return np.asarray(value, np.float32)

    def empty(self):
        return np.zeros(self.columns, np.float32)


class Records:
    """Class k of 4: a row of numbers and an image; some rows lack the image."""

    name, label_names, optional = "records", ["a", "b", "c", "d"], ("image",)

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return 64

    def __getitem__(self, i):
        rng = np.random.default_rng((i, len(self.split)))
        row = rng.standard_normal(3) * 0.1 + [i % 4 // 2, i % 2, 0]
        image = rng.integers(0, 50, (8, 8, 3), dtype=np.uint8) + np.uint8(60 * (i % 4 // 2))
        return {"id": i, "label": i % 4, "table": row} | ({"image": image} if i % 5 else {})


def get_config(arg=""):
    c = common.base()
    c.modalities.table = ConfigDict(
        dict(encoder="columns", transform="row", width=32, columns=3, proj=True, proj_bias=True)
    )
    c.modalities.image = common.image_tower(size=8, patch=4, **common.SMALL)
    common.joint(c, stage="late", operator="attention", width=32, heads=2, mlp_dim=64, depth=1)
    c.model.classifiers.kind = common.classifier(4)
    c.data.source, c.data.eval_splits = "table:Records", ("held_out",)
    c.eval.names = ("classification", "robustness", "probe")
    c.steps, c.batch_size = 40, 32
    c.optim.lr.peak, c.optim.lr.warmup = 0.01, 5
    return c
'''


@pytest.mark.slow
def test_own_modality(tmp_path):
    """A table of numbers, fused with an image that some rows lack: one encoder, one transform, one
    config.
    """
    (tmp_path / "table.py").write_text(TABLE)
    command = [
        sys.executable, processes.ROOT / "train.py", "--config", tmp_path / "table.py",
        "--workdir", tmp_path / "run",
    ]  # fmt: skip
    env = processes.environment() | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{processes.ROOT}"}
    done = subprocess.run(
        command, cwd=processes.ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "run" / "eval" / "40.json").read_text())
    assert scores["held_out/classify/kind/accuracy"] > 0.9
    subsets = {k: v for k, v in scores.items() if "/subset/" in k}
    assert len(subsets) == 3 and subsets["held_out/robustness/kind/subset/image"] < 0.7
    assert scores["held_out/probe/table/label/accuracy"] > 0.9
