"""Configs: overrides, errors that name the nearest key, storage, what may change on resuming."""

import json

import pytest

from multimodal.config import (
    apply_overrides,
    check_same,
    flatten,
    load_config,
    read_config,
    save_config,
)
from multimodal.errors import UserError

EMOJI = "configs/emoji.py"


def test_override_takes_the_type_of_what_stands_there():
    c = load_config(
        EMOJI,
        ["steps=7", "optim.clip=2", "mesh.fsdp=2", "eval.names=retrieval", "data.source=arrays"],
    )
    assert (c.steps, c.optim.clip, c.mesh.fsdp, c.eval.names) == (7, 2.0, 2, ("retrieval",))
    assert isinstance(c.optim.clip, float)


def test_strings_tuples_and_schedules():
    c = load_config(
        EMOJI,
        [
            "model.fusion.kind=none",
            "data.eval_splits=a,b",
            "objectives.itm.weight={'schedule': 'ramp', 'end': 1.0, 'steps': 5}",
            "optim.lr={'schedule': 'constant', 'value': 1e-3}",
        ],
    )
    assert (c.model.fusion.kind, c.data.eval_splits) == ("none", ("a", "b"))
    assert c.objectives.itm.weight.end == 1.0 and c.optim.lr.to_dict().keys() == {
        "schedule",
        "value",
    }
    assert load_config(EMOJI, ["modalities.image={'size': 32}"]).modalities.image.patch == 16


@pytest.mark.parametrize(
    "text, told", [("x = (", "line 1"), ("import nothing_here", "nothing_here")]
)
def test_broken_config_file(tmp_path, text, told):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(UserError, match=told):
        load_config(str(tmp_path / "c.py"))
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(UserError, match="must end in .py"):
        load_config(str(tmp_path / "c.txt"))


def test_override_reaches_objectives_schedules_and_arguments_of_sources():
    c = load_config(
        EMOJI, ["objectives.itm.weight=0.5", "optim.lr.peak=3e-4", "data.kwargs.data_dir=x"]
    )
    assert (c.objectives.itm.weight, c.optim.lr.peak, c.data.kwargs.data_dir) == (0.5, 3e-4, "x")
    assert load_config(EMOJI, ["optim.lr=1e-4"]).optim.lr == 1e-4


@pytest.mark.parametrize(
    "override, told",
    [
        ("stpes=7", "did you mean --config.steps"),
        ("optim.weightdecay=0.1", "optim.weight_decay"),
        ("modalities.image.widht=3", "modalities.image.width"),
        ("steps.more=7", "no such key"),
        ("steps=many", "wanted an int"),
        ("steps=None", "wanted an int"),
        ("modalities.image={'sise': 3}", "modalities.image.size"),
        ("modalities=3", "no dict"),
        ("steps=1.5", "wanted an int"),
        ("steps", "give a value"),
        ("modalities.image.flip=1", "wanted a bool"),
    ],
)
def test_bad_override(override, told):
    with pytest.raises(UserError, match=told):
        load_config(EMOJI, [override])


def test_bad_file_and_variant():
    for near in ("configs/emojis.py", "emoji", "emoji.py"):
        with pytest.raises(UserError, match="did you mean configs/emoji.py"):
            load_config(near)
    with pytest.raises(UserError, match="did you mean smoke"):
        load_config(f"{EMOJI}:smoek")


def test_stored_config_is_the_same_config(tmp_path):
    c = load_config(f"{EMOJI}:smoke")
    save_config(c, tmp_path)
    check_same(c, read_config(tmp_path))
    assert flatten(read_config(tmp_path)).keys() == flatten(c).keys()
    assert read_config(tmp_path).data.eval_splits == c.data.eval_splits


def test_changed_config_names_the_keys(tmp_path):
    save_config(load_config(EMOJI), tmp_path)
    changed = load_config(EMOJI, ["seed=3", "optim.lr.peak=1.0", "log_every=1", "data.threads=9"])
    with pytest.raises(UserError, match=r"optim.lr.peak .* seed \(0 -> 3\)") as e:
        check_same(changed, read_config(tmp_path))
    assert "log_every" not in str(e.value) and "threads" not in str(e.value)
    free = ["log_every=1", "keep=9", "modalities.text.remat=full", "model.fusion.unroll=2"]
    check_same(load_config(EMOJI, free), read_config(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_unreadable_stored_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json"):
        read_config(tmp_path)


def test_missing_stored_config(tmp_path):
    with pytest.raises(UserError, match="not a workdir"):
        read_config(tmp_path)


def test_stored_config_is_data_only(tmp_path):
    c = load_config(EMOJI)
    text = json.dumps(c.to_dict())
    assert json.loads(text)["optim"]["lr"]["schedule"] == "cosine"
    assert apply_overrides(read_config_of(tmp_path, c), ["seed=4"]).seed == 4


def read_config_of(tmp_path, config):
    save_config(config, tmp_path)
    return read_config(tmp_path)


def test_a_run_that_is_older_than_a_key_goes_on():
    """Where the key is empty, as `data.augment` is by default, or says what was always done."""
    new = load_config("configs/emoji.py")
    old = load_config("configs/emoji.py")
    with old.unlocked():
        del old.data.augment, old.modalities.image.stem, old.modalities.image.unroll
    check_same(new, old)
    with new.unlocked():
        new.data.augment.mine = {}
    with pytest.raises(UserError, match="data.augment"):
        check_same(new, old)
    with new.unlocked():
        new.data.augment = {}
        new.modalities.image.stem = "conv"
    with pytest.raises(UserError, match=r"modalities.image.stem \(absent -> conv\)"):
        check_same(new, old)
