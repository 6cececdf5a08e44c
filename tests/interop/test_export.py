"""From a run's folder to HF's files and back."""

import jax
import numpy as np
import pytest

from configs.common import base, image_tower, text_tower
from multimodal.config import read_config, save_config
from multimodal.errors import UserError
from multimodal.interop import import_weights
from multimodal.interop.export import main, write
from multimodal.training.checkpoint import Checkpoints
from multimodal.training.optim import make_optimizer
from multimodal.training.step import new_state
from tests.interop.conftest import CLIP, random_params


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, parameters) of a run with a CLIP that HF's classes can hold, and no teacher."""
    workdir = tmp_path_factory.mktemp("run")
    config = base()
    config.modalities.image = image_tower(**CLIP["modalities"]["image"])
    config.modalities.text = text_tower(**CLIP["modalities"]["text"])
    config.model.embed_dim = CLIP["model"]["embed_dim"]
    save_config(config, workdir)
    params = random_params(CLIP)
    params["temperature"] = np.float32(3.0)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(new_state(config, params, make_optimizer(config, params)))
    checkpoints.close()
    return workdir, params


def test_round_trip(run, tmp_path, capsys):
    workdir, params = run
    args = ["--workdir", str(workdir), "--format", "clip_hf", "--out", str(tmp_path / "hf")]
    assert main(args) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "hf")
    back = import_weights(tmp_path / "hf").params
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back, params)))


@pytest.mark.parametrize(
    ("eot_id", "format", "holds"),
    [
        (3, "clip_hf", True),
        (19, "clip_hf", True),
        (2, "clip_hf", False),  # there it means the largest id
        (19, "clip_open_clip", True),
        (3, "clip_open_clip", False),
    ],
)
def test_the_end_of_a_text_is_told_or_refused(run, tmp_path, eot_id, format, holds):
    """20 words: 19 is the largest id."""
    config = read_config(run[0])
    config.modalities.text.eot_id = eot_id
    if not holds:
        with pytest.raises(UserError, match="eot_id"):
            write(run[1], config, format, tmp_path)
        return
    write(run[1], config, format, tmp_path)
    heads = {m: c.heads for m, c in config.modalities.items()}
    told = import_weights(tmp_path, heads=heads, act=config.modalities.text.act).config
    told = told["modalities"]["text"]["eot_id"]
    assert told == (eot_id if format == "clip_hf" else -1)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--format", "clip_hg"], "did you mean clip_hf?"),
        (["--format", "bert"], "the model has no encoder_text/type_embed"),
        (["--ema"], "the run has no teacher"),
        (["--step", "7"], "no checkpoint"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, capsys, extra, says):
    args = ["--workdir", str(run[0]), "--out", str(tmp_path / "hf"), *extra]
    assert main(args) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (tmp_path / "hf").exists()
