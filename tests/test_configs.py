"""Every config builds, and its smoke variant trains; a new file in configs/ is covered as it is."""

import pathlib

import jax
import numpy as np
import pytest

from multimodal import objectives
from multimodal.config import load_config
from multimodal.nn.model import build_model
from multimodal.training import setup
from multimodal.training.optim import make_optimizer
from tests import processes

PARTS = ("common.py", "towers.py")
FILES = sorted(p.name for p in pathlib.Path("configs").glob("[a-z]*.py") if p.name not in PARTS)
VARIANTS = ["albef", "clip", "siglip", "albef_original"]


def test_there_are_configs():
    assert {"emoji.py", "flickr8k.py", "tfds.py", "clip.py", "albef.py"} <= set(FILES)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", FILES)
def test_full_size_model_has_consistent_shapes(name, variant):
    """Shapes only: nothing is computed, whatever the size."""
    c = load_config(f"configs/{name}:{variant}")
    model = build_model(c)
    params = jax.eval_shape(lambda: setup.init_params(c, model))
    make_optimizer(c, params)
    goals = objectives.build(c, {"mode": c.mode, "mask_id": 4, "keep_ids": (0, 2)})
    assert goals
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(params)) > 100_000


def test_published_sizes():
    """ViT 85.84 M, BERT with its masked-word head 123.70 M, in all 209.94 M (salesforce/ALBEF)."""
    c = load_config("configs/albef.py")
    params = jax.eval_shape(lambda: setup.init_params(c, build_model(c)))
    total = sum(np.prod(x.shape) for x in jax.tree.leaves(params))
    assert round(total / 1e6, 2) == 209.94


@pytest.mark.parametrize(
    "name", [n for n in FILES if n != "emoji.py"]
)  # test_commands.py has emoji
def test_smoke(name, tmp_path):
    code, _, err = processes.run(
        "train.py", "--config", f"configs/{name}:smoke", "--workdir", tmp_path
    )
    assert code == 0, err
    assert processes.metrics(tmp_path)[-1]["step"] == 4


@pytest.mark.parametrize("variant", ["siglip", "albef_original"])
def test_smoke_of_recipes(variant, tmp_path):
    spec = f"configs/emoji.py:{variant},smoke"
    code, _, err = processes.run("train.py", "--config", spec, "--workdir", tmp_path, devices=2)
    assert code == 0, err
