"""Formats of image, audio and video towers: how they are told apart, and what must be said."""

import numpy as np
import pytest
import safetensors.numpy

from multimodal.errors import UserError
from multimodal.interop import import_weights, model_config_from_weights
from multimodal.interop.formats import detect
from tests.interop.conftest import CASES, SAID, exported
from tests.parity.towers import TOWERS

HINTS = {"act": "gelu", "heads": 2}


@pytest.mark.parametrize("format", CASES)
def test_names_tell_the_format(format):
    assert detect(exported(format), "file")[0] == format


def test_golden_folder_has_nothing_uncovered(shared):
    folder = shared / "golden" / "towers"
    if not folder.is_dir():
        pytest.skip("no ../shared/golden/towers")
    assert {p.stem for p in folder.glob("*.npz")} == set(TOWERS)


def test_alphabetical_files_keep_bert_and_roberta_apart(tmp_path):
    """.safetensors sorts its names, so that order tells nothing; RoBERTa's row for padding does."""
    bert, roberta = exported("bert"), exported("roberta")
    bare = {k.removeprefix("roberta."): v for k, v in roberta.items() if "lm_head" not in k}
    bare["embeddings.position_embeddings.weight"][1] = 0
    for state, name in ((bert, "bert"), (bare, "roberta")):
        safetensors.numpy.save_file(state, tmp_path / f"{name}.safetensors")
        ordered = dict(sorted(state.items()))
        assert detect(ordered, "file")[0] == name
        imported = import_weights(tmp_path / f"{name}.safetensors", **HINTS)
        assert imported.format == name
    assert detect(bert, "file", config={"model_type": "roberta"})[0] == "roberta"
    assert detect(roberta, "file", config={"model_type": "bert"})[0] == "bert"


def test_old_names_are_read():
    """VideoMAE's biases apart from their layers, torch's first weight normalisation."""
    renames = {
        "videomae_hf": [("query.bias", "q_bias"), ("value.bias", "v_bias")],
        "wav2vec2_hf": [
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
        ],
    }
    for format, pairs in renames.items():
        state = exported(format)
        old = dict(state)
        for new, was in pairs:
            old = {k.removesuffix(new) + was if k.endswith(new) else k: v for k, v in old.items()}
        assert set(old) != set(state)
        a, b = (import_weights(s, **HINTS, config=SAID[format]).params for s in (old, state))
        assert all(np.array_equal(x, y) for x, y in zip(*map(leaves, (a, b)), strict=True))


def leaves(tree):
    """Arrays of a nested dict in the order of their names."""
    return [
        x
        for k in sorted(tree)
        for x in (leaves(tree[k]) if isinstance(tree[k], dict) else [tree[k]])
    ]


@pytest.mark.parametrize(
    ("format", "what"), [("ast_hf", "num_mel_bins"), ("wav2vec2_hf", "conv_str")]
)
def test_sizes_that_weights_hide_must_be_said(format, what):
    with pytest.raises(UserError, match=rf"do not tell {what}.*config="):
        model_config_from_weights(exported(format), **HINTS)


def test_a_named_leftover_is_allowed_and_others_are_not():
    state = exported("wav2vec2_hf") | {"masked_spec_embed": np.zeros(12, np.float32)}
    import_weights(state, **HINTS, config=SAID["wav2vec2_hf"])
    with pytest.raises(UserError, match=r"unused: quantizer\.codevectors"):
        state["quantizer.codevectors"] = np.zeros(1, np.float32)
        import_weights(state, **HINTS, config=SAID["wav2vec2_hf"])


def test_fixed_positions_need_no_file():
    """A model with computed sinusoids reads Whisper's file without its copy of them."""
    state = exported("whisper_hf")
    audio = CASES["whisper_hf"]["modalities"]["audio"] | {"position_embedding": "sinusoid"}
    cfg = CASES["whisper_hf"] | {"modalities": {"audio": audio}}
    assert "pos_embed" not in import_weights(state, cfg=cfg, act="gelu").params["encoder_audio"]


def test_key_biases_stay_absent():
    for format in ("whisper_hf", "videomae_hf"):
        assert not [k for k in exported(format) if "key.bias" in k or "k_proj.bias" in k]
