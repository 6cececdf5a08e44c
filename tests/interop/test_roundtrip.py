"""Every format: out and in again gives the same bits, and the same model."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from multimodal.errors import UserError
from multimodal.interop import FORMATS, export_weights, import_weights, model_config_from_weights
from multimodal.interop.export import write
from multimodal.interop.stacks import stack_layers, unstack_layers
from multimodal.interop.weights import abstract_params
from tests.interop.conftest import (
    ALBEF,
    CASES,
    CLIP,
    SAID,
    exported,
    extra,
    random_like,
    random_params,
)


def assert_same(a, b):
    """Equal trees, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_every_format_is_tried():
    assert set(CASES) == set(FORMATS)


@pytest.mark.parametrize("format", CASES)
def test_round_trip_is_exact(format):
    cfg = CASES[format]
    params = random_params(cfg)
    state = export_weights(params, cfg, format)
    read = state | extra(format)
    back = import_weights(read, act="gelu", heads=2, config=SAID.get(format))
    assert back.format == format
    assert_same(back.params, params)
    assert_same(export_weights(back.params, back.config, format), state)


@pytest.mark.parametrize("format", CASES)
def test_model_is_read_off_the_weights(format):
    state, said = exported(format), SAID.get(format)
    cfg = model_config_from_weights(state, heads=2, act="gelu", config=said)
    for m, c in CASES[format]["modalities"].items():
        got = cfg["modalities"][m]
        assert {k: got[k] for k in c if k != "eps"} == {k: v for k, v in c.items() if k != "eps"}
    assert cfg["model"]["embed_dim"] == CASES[format]["model"]["embed_dim"]
    assert cfg["model"]["heads"] == CASES[format]["model"]["heads"]


def test_albef_teacher_and_queue_round_trip():
    params, ema = random_params(ALBEF), random_params(ALBEF, seed=1)
    ema |= {k: params[k] for k in ("match_head", "temperature")}  # which its teacher does not have
    queue = random_like({m: jax.ShapeDtypeStruct((10, 8), "float32") for m in ("image", "text")})
    queue |= {"id": np.full(10, -1, np.int32), "ptr": np.array(3, np.int32)}
    state = export_weights(params, ALBEF, "albef", ema, queue)
    assert state["image_queue"].shape == (8, 10) and state["queue_ptr"].tolist() == [3]
    back = import_weights(state, act="gelu", heads=2)
    assert_same(back.ema, ema)
    assert_same(back.queue, queue)


def test_retrieval_flavour_keeps_ids():
    cfg = ALBEF | {"model": ALBEF["model"] | {"heads": ("match",)}}
    ids = np.array([5, -1, 0], np.int32)
    queue = {
        "image": np.ones((3, 8), "f"),
        "text": np.ones((3, 8), "f"),
        "id": ids,
        "ptr": np.array(0, "i4"),
    }
    state = export_weights(random_params(cfg), cfg, "albef", queue=queue)
    assert state["idx_queue"].tolist() == [[5, -100, 0]]
    assert "text_encoder.embeddings.word_embeddings.weight" in state
    assert import_weights(state, act="gelu", heads=2).queue["id"].tolist() == ids.tolist()


def scanned(cfg):
    """The config with every stack scanned."""
    towers = {m: c | {"scan": True} for m, c in cfg["modalities"].items()}
    fusion = cfg["model"]["fusion"]
    fusion = fusion | {"scan": True} if fusion["kind"] != "none" else fusion
    return cfg | {"modalities": towers, "model": cfg["model"] | {"fusion": fusion}}


@pytest.mark.parametrize("format", ["clip_hf", "albef"])
def test_scanned_stacks(format):
    cfg, params = CASES[format], random_params(CASES[format])
    state = export_weights(params, cfg, format)
    back = import_weights(state, cfg=scanned(cfg), act="gelu")
    shapes = abstract_params(scanned(cfg))
    assert jax.tree.map(np.shape, back.params) == jax.tree.map(np.shape, shapes)
    assert back.params["encoder_text"]["stack"]["blocks"]["mlp"]["up"]["kernel"].shape == (
        2,
        16,
        24,
    )
    assert_same(unstack_layers(back.params), params)
    assert_same(stack_layers(params, shapes), back.params)
    assert_same(export_weights(back.params, scanned(cfg), format), state)


def test_hf_folder_needs_no_hints(tmp_path):
    params = random_params(CLIP)
    write(params, CLIP, "clip_hf", tmp_path)
    back = import_weights(tmp_path)
    assert_same(back.params, params)
    assert back.config["modalities"]["image"]["heads"] == 2
    assert back.config["modalities"]["text"]["act"] == "gelu"
    assert_same(safetensors.numpy.load_file(tmp_path / "model.safetensors"), exported("clip_hf"))


def test_export_refuses_another_architecture():
    image = CLIP["modalities"]["image"] | {"pool": "mean"}
    cfg = CLIP | {"modalities": CLIP["modalities"] | {"image": image}}
    with pytest.raises(UserError, match=r"modalities.image.pool is 'mean'"):
        export_weights(random_params(cfg), cfg, "clip_hf")


def test_export_refuses_a_convolutional_stem():
    image = CLIP["modalities"]["image"] | {"stem": "conv"}
    cfg = CLIP | {"modalities": CLIP["modalities"] | {"image": image}}
    with pytest.raises(UserError, match="stem"):
        export_weights(random_params(cfg), cfg, "clip_hf")


def test_export_refuses_what_has_no_name():
    with pytest.raises(UserError, match="no name for .*encoder_text"):
        export_weights(random_params(CLIP), CLIP, "clip_vision_hf")


def test_export_refuses_an_absent_modality():
    with pytest.raises(UserError, match="the model has no text"):
        export_weights(random_params(CASES["timm"]), CASES["timm"], "bert")


@pytest.mark.parametrize("name", ["clip_gelu_hf", "clip_gelu_oc", "siglip_hf"])
def test_original_files_come_back_bit_for_bit(shared, name):
    path = shared / "golden" / "clip_f32" / f"{name}_weights.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path.name} in ../shared/golden")
    back = import_weights(path, act="gelu", heads={"image": 1, "text": 1})
    state = safetensors.numpy.load_file(path)
    assert_same(export_weights(back.params, back.config, back.format), state)
