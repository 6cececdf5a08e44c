"""Configs that cannot work are told apart before anything is built."""

import json

import pytest
from ml_collections import ConfigDict

from multimodal import objectives
from multimodal.config import load_config
from multimodal.errors import UserError
from multimodal.training.validate import check_objective, validate

CASES = {
    "steps=0": "steps is 0",
    "batch_size=-1": "batch_size is -1",
    "batch_size=2147483648": "below 2^31",
    "mode=original": "did you mean albef_original",
    "modalities.image.encoder=vti": "did you mean vit",
    "modalities.image.heads=5": "does not divide over 5 heads",
    "modalities.image.patch=15": "no multiple of patch 15",
    "modalities.image.size=(48,70)": "size (48, 70) is no multiple of patch 16",
    "modalities.image.stem=convs": "did you mean conv",
    "modalities.image={'stem':'conv','patch':12,'size':48}": "patch is 12: stem 'conv' halves",
    "modalities.image={'stem':'conv','patch':(8,16),'size':64}": "patch is (8, 16): stem 'conv'",
    "modalities.image.act=gellu": "did you mean gelu",
    "modalities.image.unroll=0": "unroll is 0: give 1 or more",
    "modalities.image.unroll=2": "unroll is 2, but without scan there is no loop",
    "modalities.image.remat=context+ups": "'context+ups'; known: none, products, dots,",
    "modalities.text.pool=eos": "pool",
    "modalities.text.norm=middle": "norm",
    "modalities.text.dropout=1.5": "below 1",
    "model.fusion.attention_dropout=-0.1": "model.fusion.attention_dropout is -0.1",
    "optim.lr=-1": "optim.lr is -1",
    "optim.lr.peak=-1": "optim.lr.peak is -1.0: give 0 or more",
    "optim.lr.warmup=-5": "optim.lr.warmup is -5: give 0 or more",
    "optim.weight_decay=-1": "optim.weight_decay is -1.0: give 0 or more",
    "optim.critic.weight_decay=-1": "optim.critic.weight_decay is -1.0",
    "optim.clip=-1": "optim.clip is -1.0",
    "optim.b2=1.0": "optim.b2 is 1.0: give 0 or more and below 1",
    "modality_dropout={'schedule':'ramp','end':1.5,'steps':0.5}": "modality_dropout.end is 1.5",
    "objectives.mlm.alpha.end=1.5": "mlm.alpha.end is 1.5: give a share from 0 to 1",
    "eval.noise_levels=(0.0,2.0)": "noise_levels is (0.0, 2.0)",
    "model.embed_dim=64 modalities.text.proj=False": "embed_dim",
    "model.fusion.kind=none": "'match' needs model.fusion.kind",
    "model.fusion.kind=cross_atention": "did you mean cross_attention",
    "model.fusion.heads=7": "model.fusion",
    "model.heads=()": "needs the head 'match'",
    "model.heads=('retrieve',)": "needs model.fusion.kind 'joint'",
    "optim.critic.steps=-1": "0 or more",
    "init.freeze=True": "add the objective 'classification'",
    "objectives.g={'fn':'generator'}": "needs the head 'discriminator'",
    "modalities.image.noise=2.0": "a share from 0 to 1",
    "model.dtype=float8": "dtype",
    "model.dtype=float64": "JAX_ENABLE_X64=1",
    "modalities.text.type_embed=-1": "type_embed is -1: give 0 or more",
    "modalities.image.transform=text": "'vit' reads what 'image' gives",
    "model.temperature.init=5.0": "min <= init <= max",
    "model.temperature.kind=log": "log_scale",
    "objectives.itm.a=imgae": "did you mean image",
    "objectives.mlm.context=audio": "no modality 'audio'",
    "ema.decay=0.0": "needs a teacher",
    "ema.decay=1.0": "below 1",
    "queue.modalities=('image', 'sound')": "sound",
    "batch_size=16 local_groups=8 micro_batches=4": "makes parts of 2 examples",
}


def _parts(override):
    """Several overrides stand in one string."""
    several = override.startswith(("model.embed_dim", "batch_size"))
    return override.split() if several else [override]


@pytest.mark.parametrize("override", CASES)
def test_bad_config(override):
    config = load_config("configs/emoji.py:albef_original", _parts(override))
    with pytest.raises(UserError, match="config") as e:
        validate(config)
    assert CASES[override] in str(e.value)


def test_sizes_of_pictures_may_be_pairs():
    pairs = ["modalities.image.size=(48,96)", "modalities.image.patch=(16,24)"]
    config = load_config("configs/emoji.py", pairs)
    validate(config)
    assert (config.modalities.image.size, config.modalities.image.patch) == ((48, 96), (16, 24))
    for bad in ("(48,64,80)", "(48,'a')", "wide"):
        with pytest.raises(UserError, match="wanted an int like 64"):
            load_config("configs/emoji.py", [f"modalities.image.size={bad}"])
    config = load_config("configs/grid.py", ["modalities.video.size=(16,32)"])
    with pytest.raises(UserError, match="only images have a height and a width"):
        validate(config)


def test_good_config(caplog):
    validate(load_config("configs/emoji.py"))
    assert not caplog.text


def test_a_warmup_without_end_is_told(caplog):
    validate(load_config("configs/emoji.py", ["steps=50", "optim.lr.peak=2e-3"]))
    assert "optim.lr.warmup is 100 and config.steps 50" in caplog.text
    assert "to 0.001 at the last step" in caplog.text
    caplog.clear()
    validate(load_config("configs/emoji.py:smoke"))
    assert not caplog.text


def test_what_has_an_import_path_bounds_its_own_arguments():
    fn = "tests.training.test_validate:foreign"
    spec = {"fn": fn, "weight": 1.0, "alpha": 3.0}
    validate(load_config("configs/emoji.py:clip", [f"objectives.mine={spec}"]))


def foreign(net, out, batch, rng, alpha=1.0):
    """An objective whose alpha is no share."""


@pytest.mark.parametrize("names", [("audio", "text"), ("text", "sound"), ("video", "image")])
@pytest.mark.parametrize("goal", ["contrastive", "sigmoid", "cca"])
def test_the_only_two_modalities_are_those_compared(names, goal):
    config = load_config("configs/emoji.py:clip,smoke")
    towers = dict(config.modalities.to_dict(), audio=config.modalities.image.to_dict())
    other = towers["image"]
    config.modalities = {m: towers["text"] if m == "text" else other for m in names}
    config.objectives = {goal: {}}
    saved = ConfigDict(json.loads(json.dumps(config.to_dict(), sort_keys=True)))
    found = [objectives.build(c)[0].kwargs for c in (config, saved)]
    assert found[0] == found[1] and {found[0][k] for k in "ab"} == set(names)
    assert found[0]["a"] != "text"
    config.objectives[goal] = dict(a=names[0], b=names[0])
    assert objectives.build(config)[0].kwargs["b"] == names[0]
    config.objectives[goal] = {}
    config.modalities.third = other
    assert "a" not in objectives.build(config)[0].kwargs
    with pytest.raises(UserError, match=f"set config.objectives.{goal}.[ab] to one of them"):
        check_objective(objectives.build(config)[0], config)


@pytest.mark.parametrize(
    "overrides, told",
    [
        (["modalities.audio.patch=(0,8)"], "modalities.audio.patch is (0, 8): give 1 or more"),
        (["modalities.audio.stride=(0,1)"], "modalities.audio.stride is (0, 1)"),
        (["modalities.image.encoder=text"], "the encoder 'text' needs 'positions'"),
        (["modalities.audio.encoder=vit"], "the encoder 'vit' needs 'size'"),
        (
            ["modalities.audio.encoder=wav2vec2", "modalities.audio.position_groups=5"],
            "position_groups 5 does not divide width",
        ),
        (
            ["modalities.audio.encoder=wav2vec2", "modalities.audio.conv_dims=(8,8)"],
            "one number, 1 or more, for each layer",
        ),
    ],
)
def test_bad_towers(overrides, told):
    validate(load_config("configs/av_digits.py:smoke"))
    with pytest.raises(UserError) as e:
        validate(load_config("configs/av_digits.py:smoke", overrides))
    assert told in str(e.value)
