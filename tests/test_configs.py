"""Every config builds, and its smoke variant trains; a new file in configs/ is covered as it is."""

import pathlib
from functools import partial

import jax
import numpy as np
import pytest

from configs import av_digits, clip
from multimodal import objectives
from multimodal.config import load_config
from multimodal.nn.model import build_model
from multimodal.training import setup
from multimodal.training.optim import make_optimizer
from multimodal.training.sharding import make_mesh
from multimodal.training.validate import validate
from tests import processes

PARTS = ("common.py", "towers.py")
FILES = sorted(p.name for p in pathlib.Path("configs").glob("[a-z]*.py") if p.name not in PARTS)
RECIPES = ["albef", "clip", "siglip", "albef_original"]
OWN = {  # variants of the configs that are not recipes over an image and a text tower
    "av_digits.py": [*av_digits.CHANGES, "degraded,missing"],
    "esc10.py": ["3", "zeroshot"],
    "grid.py": ["fusion", "binding"],
    "nlvr.py": ["image", "text", "blind"],
}
CASES = [(f, v) for f in FILES for v in ["", *OWN.get(f, RECIPES)]]


def test_there_are_configs():
    wanted = {"emoji.py", "emoji_styles.py", "flickr8k.py", "tfds.py", "clip.py", "albef.py", *OWN}
    assert wanted <= set(FILES)


@pytest.mark.parametrize("name, variant", CASES)
def test_full_size_model_has_consistent_shapes(name, variant):
    """Shapes only: nothing is computed, whatever the size."""
    c = load_config(f"configs/{name}:{variant}")
    validate(c)
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


TILED = [(f"configs/clip.py:{size},tiled,unrolled", 64) for size in clip.SIZES]


@pytest.mark.parametrize(("spec", "text"), [*TILED, ("configs/albef.py:tiled", 32)])
def test_tiled_fills_tiles(spec, text):
    """Tokens are multiples of 128, or so few that whole examples make a row of 128."""
    c = load_config(spec)
    validate(c)
    model = build_model(c)
    batch = setup.batch_shapes(c, make_mesh(devices=jax.local_devices()[:1]))
    params = jax.eval_shape(lambda: setup.init_params(c, model))
    encode = partial(model.apply, method="encode")
    encoded = jax.eval_shape(encode, {"params": params}, batch)
    lengths = {m: e.tokens.x.shape[1] for m, e in encoded.items()}
    assert lengths == {"image": 64 if "b32" in spec else 256, "text": text}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in FILES if n != "emoji.py"])  # test_commands.py has it
def test_smoke(name, tmp_path):
    code, _, err = processes.run(
        "train.py", "--config", f"configs/{name}:smoke", "--workdir", tmp_path
    )
    assert code == 0, err
    assert processes.metrics(tmp_path)[-1]["step"] == 4


@pytest.mark.slow
def test_smoke_of_alignment_and_adversaries(tmp_path):
    spec = "configs/av_digits.py:critic,cca,adversarial,degraded,missing,smoke"
    code, _, err = processes.run("train.py", "--config", spec, "--workdir", tmp_path)
    assert code == 0, err
    row = processes.metrics(tmp_path)
    keys = set().union(*row)
    assert {"cca/correlation", "generator/rank", "modality_critic/accuracy"} <= keys
    assert "eval/val/robustness/digit/subset/image" in keys


@pytest.mark.slow
def test_smoke_of_siglip(tmp_path):  # albef_original: test_resume.py
    spec = "configs/emoji.py:siglip,smoke"
    code, _, err = processes.run("train.py", "--config", spec, "--workdir", tmp_path, devices=2)
    assert code == 0, err
