"""Every key is accounted for: unused, missing, mis-shaped and untied weights are errors."""

import jax
import numpy as np
import pytest

from multimodal.errors import UserError
from multimodal.interop import export_weights, import_weights, initialise_from
from tests.interop.conftest import ALBEF, CASES, CLIP, exported, random_params

INIT = {
    "format": "auto",
    "act": "gelu",
    "allow_unused": (),
    "allow_missing": (),
    "resize_pos_embed": False,
}


def load(state, **kwargs):
    """import_weights with the hints that the small models need."""
    return import_weights(state, **({"act": "gelu", "heads": 2} | kwargs))


def test_unused_key(clip_state):
    clip_state["extra.weight"] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match=r"unused: extra\.weight"):
        load(clip_state)
    load(clip_state, allow_unused=(r"extra\..*",))


def test_missing_key_by_either_name(clip_state):
    del clip_state["visual_projection.weight"]
    with pytest.raises(
        UserError, match=r"missing: visual_projection\.weight \(project_image/kernel\)"
    ):
        load(clip_state)
    for allowed in (r"visual_projection\..*", r"project_image/.*"):
        assert "project_image" not in load(clip_state, allow_missing=(allowed,)).params


def test_buffers_carry_nothing(clip_state):
    clip_state["text_model.embeddings.position_ids"] = np.arange(6)[None]
    load(clip_state)


def test_half_a_teacher_is_missing_keys():
    params = random_params(ALBEF)
    state = export_weights(params, ALBEF, "albef", ema=params)
    load({k: v for k, v in state.items() if "_m." not in k})
    del state["vision_proj_m.weight"]
    with pytest.raises(UserError, match=r"missing: vision_proj_m\.weight"):
        load(state)


def test_shape_names_both(clip_state):
    clip_state["text_projection.weight"] = np.zeros((8, 17), np.float32)
    with pytest.raises(
        UserError, match=r"text_projection\.weight has shape \(8, 17\), the model needs \(8, 16\)"
    ):
        load(clip_state, cfg=CLIP)


def test_tied_weights_are_checked():
    state = exported("bert")
    load(state)
    load({k: v for k, v in state.items() if "decoder" not in k})
    state["cls.predictions.decoder.weight"] = state["cls.predictions.decoder.weight"] + 1
    with pytest.raises(
        UserError, match=r"decoder\.weight differs from bert\.embeddings\.word_embeddings"
    ):
        load(state)


def test_scalar_of_either_rank(clip_state):
    want = clip_state["logit_scale"]
    clip_state["logit_scale"] = want.reshape(1)
    assert load(clip_state).params["temperature"] == want


def test_custom_text_and_data_parallel_prefixes(tmp_path):
    state = exported("clip_open_clip")
    text = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
    renamed = {
        f"module.text.{k}" if k.startswith(text) else f"module.{k}": v for k, v in state.items()
    }
    np.savez(tmp_path / "w.npz", **renamed)
    same = jax.tree.map(np.array_equal, load(tmp_path / "w.npz").params, load(state).params)
    assert all(jax.tree.leaves(same))


def test_old_bert_names():
    state = exported("bert")
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): v
        for k, v in state.items()
    }
    same = jax.tree.map(np.array_equal, load(old).params, load(state).params)
    assert all(jax.tree.leaves(same))


def test_unknown_format(clip_state):
    with pytest.raises(
        UserError, match=r"unknown weights format 'clip_hg' \(did you mean clip_hf\?\)"
    ):
        load(clip_state, format="clip_hg")
    with pytest.raises(UserError, match="of no known format"):
        load({"a": np.zeros(1)})


def init_with(state, tmp_path, **changes):
    """config.init for a state dict."""
    np.savez(tmp_path / "weights.npz", **state)
    return INIT | {"path": tmp_path / "weights.npz"} | changes


REST = r"(encoder_text|project_\w+|fuser|\w+_head)/.*|temperature"


def test_deit_into_albefs_image_tower(tmp_path):
    params, state = random_params(ALBEF, seed=7), exported("timm")
    state["head.weight"] = np.zeros((5, 12), np.float32)
    with pytest.raises(UserError, match=r"needs are missing"):
        initialise_from(params, init_with(state, tmp_path), ALBEF)
    with pytest.raises(UserError, match=r"unused: head\.weight"):
        initialise_from(params, init_with(state, tmp_path, allow_missing=(REST,)), ALBEF)
    init = init_with(state, tmp_path, allow_missing=(REST,), allow_unused=(r"head\..*",))
    out = initialise_from(params, init, ALBEF)
    want = random_params(CASES["timm"])["encoder_image"]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, out["encoder_image"], want)))
    kept = {k: v for k, v in out.items() if k != "encoder_image"}
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, kept, {k: params[k] for k in kept})))


@pytest.mark.parametrize("scan", [False, True])
def test_bert_into_albefs_text_and_fusion(tmp_path, scan):
    four = CASES["bert"]["modalities"]["text"] | {"depth": 4}
    bert = CASES["bert"] | {"modalities": {"text": four}}
    state = export_weights(random_params(bert), bert, "bert")
    towers = {m: c | {"scan": scan} for m, c in ALBEF["modalities"].items()}
    model = ALBEF["model"] | {"fusion": ALBEF["model"]["fusion"] | {"scan": scan}}
    cfg = {"modalities": towers, "model": model}
    params = random_params(cfg, seed=7)
    missing = (r"(encoder_image|project_\w+|match_head)/.*|temperature", r"fuser/.*cross_.*")
    init = init_with(state, tmp_path, allow_missing=missing, allow_unused=(r"bert\.pooler\..*",))
    out = initialise_from(params, init, cfg)
    theirs = state["bert.encoder.layer.3.output.dense.weight"].T
    stack, first = out["fuser"]["stack"], params["fuser"]["stack"]
    if scan:
        got, kept = stack["blocks"], first["blocks"]
        got = jax.tree.map(lambda v: v[1], got)
        kept = jax.tree.map(lambda v: v[1], kept)
    else:
        got, kept = stack["block_1"], first["block_1"]
    assert np.array_equal(got["mlp"]["down"]["kernel"], theirs)
    same = jax.tree.map(np.array_equal, got["cross_attention"], kept["cross_attention"])
    assert all(jax.tree.leaves(same))
