"""A wrong activation cannot slip in."""

import json

import pytest
import safetensors.numpy

from multimodal.errors import UserError
from multimodal.interop import import_weights, model_config_from_weights
from multimodal.interop.export import write
from tests.interop.conftest import CLIP, exported, random_params


def with_act(act):
    """CLIP's config with an activation in both towers."""
    return CLIP | {"modalities": {m: c | {"act": act} for m, c in CLIP["modalities"].items()}}


def test_must_be_stated(clip_state):
    with pytest.raises(UserError, match=r"do not tell the image activation .* act="):
        import_weights(clip_state, cfg=CLIP)
    import_weights(clip_state, cfg=CLIP, act={"image": "gelu", "text": "gelu"})


def test_stated_must_be_the_models(clip_state):
    with pytest.raises(
        UserError,
        match=r"trained with activation quick_gelu, but config.modalities.image.act is gelu",
    ):
        import_weights(clip_state, cfg=CLIP, act="quick_gelu")


def test_config_beside_is_read(tmp_path):
    cfg = with_act("quick_gelu")
    write(random_params(cfg), cfg, "clip_hf", tmp_path)
    assert model_config_from_weights(tmp_path)["modalities"]["text"]["act"] == "quick_gelu"
    with pytest.raises(UserError, match=r"trained with activation quick_gelu, but .* is gelu"):
        import_weights(tmp_path, cfg=CLIP)
    with pytest.raises(
        UserError, match=r"config beside it says image activation quick_gelu, act says gelu"
    ):
        import_weights(tmp_path, cfg=cfg, act="gelu")


def test_what_hf_leaves_out_is_its_default(tmp_path):
    write(random_params(CLIP), CLIP, "clip_hf", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["vision_config"]["hidden_act"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"trained with activation quick_gelu, but config.modalities.image.act"
    ):
        import_weights(tmp_path, cfg=CLIP)


@pytest.mark.parametrize(("quick", "act"), [(True, "quick_gelu"), (False, "gelu")])
def test_open_clip_config(tmp_path, quick, act):
    safetensors.numpy.save_file(
        exported("clip_open_clip"), tmp_path / "open_clip_model.safetensors"
    )
    towers = {"vision_cfg": {"width": 12, "head_width": 6}, "text_cfg": {"heads": 2}}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"quick_gelu": quick} | towers})
    )
    cfg = model_config_from_weights(tmp_path)["modalities"]
    assert [c["act"] for c in cfg.values()] == [act, act]
    assert [c["heads"] for c in cfg.values()] == [2, 2]


@pytest.mark.parametrize("name", ["openai_vit_b32", "ViT-B-32-quickgelu"])
def test_file_name_that_contradicts(tmp_path, clip_state, name):
    path = tmp_path / f"{name}.safetensors"
    safetensors.numpy.save_file(clip_state, path)
    with pytest.raises(
        UserError, match=r"by its name these weights are for quick_gelu, not for gelu"
    ):
        import_weights(path, act="gelu", heads=2)
    import_weights(path, act="quick_gelu", heads=2)


def test_heads_must_be_stated(clip_state):
    with pytest.raises(UserError, match=r"do not tell the number of image attention heads"):
        import_weights(clip_state, act="gelu")


def test_unknown_activation(clip_state):
    with pytest.raises(UserError, match=r"'swish' is not supported"):
        import_weights(clip_state, act="swish", heads=2)
