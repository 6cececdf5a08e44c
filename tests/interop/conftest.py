"""Small random models and weight files in other codebases' names, made by exporting our own."""

import jax
import numpy as np
import pytest

from multimodal.interop import export_weights
from multimodal.interop.weights import abstract_params

TRUNK = {"heads": 2, "mlp_dim": 24, "act": "gelu", "eps": 1e-5}
VIT = {
    "encoder": "vit",
    "size": 16,
    "patch": 8,
    "width": 12,
    "depth": 2,
    **TRUNK,
    "class_token": True,
    "patch_bias": True,
    "pre_norm": False,
    "final_norm": "tokens",
    "pool": "class",
    "pooler": False,
    "proj": True,
    "proj_bias": True,
}
TEXT = {
    "encoder": "text",
    "vocab_size": 20,
    "max_length": 6,
    "width": 16,
    "depth": 2,
    **TRUNK,
    "norm": "pre",
    "causal": False,
    "mask_padding": True,
    "type_embed": 0,
    "embed_norm": False,
    "final_norm": True,
    "pool": "class",
    "eot_id": -1,
    "pooler": False,
    "proj": True,
    "proj_bias": True,
}
BERT = TEXT | {"norm": "post", "type_embed": 2, "embed_norm": True, "final_norm": False}
FUSION = {"kind": "cross_attention", "width": 16, "depth": 2, "norm": "post", **TRUNK}
SCALE = {"kind": "log_scale", "init": 0.07, "min": 0.01, "max": 1.0, "bias": None}
MODEL = {
    "embed_dim": 8,
    "fusion": {"kind": "none"},
    "heads": (),
    "temperature": {"kind": "none"},
    "mlm_modality": "text",
    "dtype": "float32",
}


def config(modalities, **model):
    """A config for build_model."""
    return {"modalities": modalities, "model": MODEL | model}


CLIP = config(
    {
        "image": VIT
        | {"patch_bias": False, "pre_norm": True, "final_norm": "pooled", "proj_bias": False},
        "text": TEXT | {"causal": True, "mask_padding": False, "pool": "eot", "proj_bias": False},
    },
    temperature=SCALE,
)
SIGLIP = config(
    {
        "image": VIT | {"class_token": False, "pool": "map", "proj": False, "proj_bias": False},
        "text": TEXT | {"mask_padding": False, "pool": "last"},
    },
    embed_dim=12,
    temperature=SCALE | {"init": 0.1, "bias": -10.0},
)
ALBEF = config(
    {"image": VIT, "text": BERT},
    fusion=FUSION,
    heads=("match", "mlm"),
    temperature={"kind": "scalar", "init": 0.07, "min": 0.001, "max": 0.5, "bias": None},
)
LONE_VIT = VIT | {"proj": False, "proj_bias": False}
LONE_BERT = BERT | {"proj": False, "proj_bias": False}
CLIP_VIT = CLIP["modalities"]["image"] | {"proj": False}

LONE = {"proj": False, "proj_bias": False}
DINOV2 = LONE_VIT | {"layer_scale": 1.0}
ROBERTA = LONE_BERT | {"position_offset": 2, "pad_id": 1}
WAVES = {"sample_rate": 16_000, "window": 400, "hop": 160, "fmin": 0.0, "fmax": 0.0}
AST = {
    "encoder": "spectrogram",
    "seconds": (31 * 160 + 400) / 16_000,  # 32 frames
    "mels": 16,
    **WAVES,
    "features": "kaldi",
    "fft": 512,
    "fmin": 20.0,
    "patch": (8, 8),
    "stride": (4, 6),
    "width": 12,
    "depth": 2,
    **TRUNK,
    "class_token": True,
    "distillation_token": True,
    "pool": "class",
    **LONE,
}
WHISPER = {
    "encoder": "whisper",
    "seconds": 0.1,
    "mels": 16,
    **WAVES,
    "features": "whisper",
    "position_embedding": "learned",
    "key_bias": False,
    "width": 12,
    "depth": 2,
    **TRUNK,
    "pool": "mean",
    **LONE,
}
WAV2VEC2 = {
    "encoder": "wav2vec2",
    "sample_rate": 16_000,
    "seconds": 1.0,
    "conv_dims": (6, 6),
    "conv_kernels": (8, 4),
    "conv_strides": (4, 2),
    "position_kernel": 4,
    "position_groups": 3,
    "width": 12,
    "depth": 2,
    **TRUNK,
    "pool": "mean",
    **LONE,
}
VIDEOMAE = {
    "encoder": "video",
    "frames": 4,
    "size": 16,
    "channels": 3,
    "patch": 8,
    "tubelet": 2,
    "attention": "joint",
    "position_embedding": "sinusoid",
    "class_token": False,
    "final_norm": "none",
    "key_bias": False,
    "width": 12,
    "depth": 2,
    **TRUNK,
    "pool": "mean",
    **LONE,
}
# What the weights of a format do not tell, as the codebase's config has it.
SAID = {
    "ast_hf": {
        "model_type": "audio-spectrogram-transformer",
        "num_mel_bins": 16,
        "max_length": 32,
        "frequency_stride": 4,
        "time_stride": 6,
    },
    "wav2vec2_hf": {"model_type": "wav2vec2", "conv_stride": [4, 2]},
    "videomae_hf": {"model_type": "videomae", "num_frames": 4, "image_size": 16},
}
SAID["ast_hf_old"] = SAID["ast_hf"]

# format -> config of a model that it can hold
CASES = {
    "albef": ALBEF,
    "siglip_hf": SIGLIP,
    "clip_hf": CLIP,
    "clip_open_clip": CLIP,
    "siglip_vision_hf": config({"image": SIGLIP["modalities"]["image"]}, embed_dim=12),
    "clip_vision_hf": config({"image": CLIP_VIT}, embed_dim=12),
    "vit_hf": config({"image": LONE_VIT | {"pooler": True}}, embed_dim=12),
    "vit_hf_old": config({"image": LONE_VIT | {"pooler": True}}, embed_dim=12),
    "flava_image_hf": config({"image": LONE_VIT | {"pooler": True}}, embed_dim=12),
    "blip_vision_hf": config({"image": LONE_VIT | {"final_norm": "twice"}}, embed_dim=12),
    "dinov2_hf": config({"image": DINOV2}, embed_dim=12),
    "dinov2_hf_old": config({"image": DINOV2}, embed_dim=12),
    "ast_hf": config({"audio": AST}, embed_dim=12),
    "ast_hf_old": config({"audio": AST}, embed_dim=12),
    "whisper_hf": config({"audio": WHISPER}, embed_dim=12),
    "wav2vec2_hf": config({"audio": WAV2VEC2}, embed_dim=12),
    "videomae_hf": config({"video": VIDEOMAE}, embed_dim=12),
    "timm": config({"image": LONE_VIT}, embed_dim=12),
    "roberta": config({"text": ROBERTA | {"pooler": True}}, embed_dim=16, heads=("mlm",)),
    "bert": config({"text": LONE_BERT | {"pooler": True}}, embed_dim=16, heads=("mlm",)),
}


def random_like(shapes, seed=0):
    """A tree of random arrays."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


def random_params(cfg, seed=0):
    """Random parameters of a config's model."""
    return random_like(abstract_params(cfg), seed)


def exported(format, seed=0):
    """A state dict in that format."""
    return export_weights(random_params(CASES[format], seed), CASES[format], format) | extra(format)


def extra(format):
    """What files of a format have beside our weights: here, what tells FLAVA from ViT."""
    if format != "flava_image_hf":
        return {}
    return {"embeddings.mask_token": np.zeros((1, 1, 12), np.float32)}


@pytest.fixture
def clip_state():
    """CLIP weights in HF's names."""
    return exported("clip_hf")
