"""What weights do not say: heads, activation, epsilon. It stands in the codebase's own config, or
the caller says it."""

import re

from multimodal.errors import UserError

ACTS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
}

# HF leaves out of config.json what its config classes default to.
HF_DEFAULTS = {
    "clip_hf": {
        "image": {"num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
        "text": {"num_attention_heads": 8, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    },
    "siglip_hf": {
        m: {"num_attention_heads": 12, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
        for m in ("image", "text")
    },
    "bert": {"text": {"num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-12}},
    "vit_hf": {"image": {"num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-12}},
    "dinov2_hf": {
        "image": {"num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
    },
    "blip_vision_hf": {
        "image": {"num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
    },
    "ast_hf": {
        "audio": {
            "num_attention_heads": 12,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "num_mel_bins": 128,
            "max_length": 1024,
            "frequency_stride": 10,
            "time_stride": 10,
        }
    },
    "whisper_hf": {
        "audio": {
            "encoder_attention_heads": 6,
            "activation_function": "gelu",
            "layer_norm_eps": 1e-5,
        }
    },
    "wav2vec2_hf": {
        "audio": {"num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
    },
    "videomae_hf": {
        "video": {"num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    },
}
PARTS = {
    "image": "vision_config",
    "text": "text_config",
    "audio": "audio_config",
    "video": "video_config",
}
# What else weights do not tell, under the codebase's names.
SIZES = (
    "num_mel_bins",
    "max_length",
    "frequency_stride",
    "time_stride",
    "conv_stride",
    "do_stable_layer_norm",
    "num_frames",
    "image_size",
)
FAMILY = {
    "roberta": "bert",
    "flava_image_hf": "vit_hf",
    "dinov2_hf_old": "dinov2_hf",
    "ast_hf_old": "ast_hf",
    "clip_vision_hf": "clip_hf",
    "siglip_vision_hf": "siglip_hf",
    "vit_hf_old": "vit_hf",
    "albef": "bert",
}
FIXED = {"albef": {"image": {"act": "gelu"}}}  # its vit.py:22 knows no other


def read_hints(config: dict | None, format: str) -> dict:
    """{'image': {'heads', 'act', 'eps', ...}, 'text': ...} from a codebase's own config; {} where
    it says nothing."""
    hints = {m: dict(h) for m, h in FIXED.get(format, {}).items()}
    if not config:
        return hints
    if "model_cfg" in config:
        return open_clip_hints(config["model_cfg"])
    if not ("model_type" in config or "vision_config" in config or "hidden_act" in config):
        return hints
    family = FAMILY.get(format, format)
    for m, part in PARTS.items():
        defaults = HF_DEFAULTS.get(family, {}).get(m)
        if defaults is None:
            continue
        c = defaults | config.get(part, config if part not in config else {})
        is_whisper = family == "whisper_hf"  # whose config is that of both halves
        hints[m] = {
            "heads": c["encoder_attention_heads" if is_whisper else "num_attention_heads"],
            "act": known_act(c["activation_function" if is_whisper else "hidden_act"]),
            "eps": c["layer_norm_eps"],
            **{k: c[k] for k in SIZES if k in c},
        }
        if m == "text" and family == "clip_hf" and c.get("eos_token_id", 2) != 2:
            hints[m]["eot_id"] = c["eos_token_id"]
    return hints


def open_clip_hints(c: dict) -> dict:
    """From the `model_cfg` of an open_clip_config.json."""
    act = "quick_gelu" if c.get("quick_gelu") else "gelu"
    vision, text = c.get("vision_cfg", {}), c.get("text_cfg", {})
    image = {"act": act}
    if "width" in vision:
        image["heads"] = vision["width"] // vision.get("head_width", 64)
    return {"image": image, "text": {"act": act, "heads": text.get("heads", 8)}}


def known_act(name: str) -> str:
    """Our name of an activation."""
    if name not in ACTS:
        raise UserError(f"activation {name!r} is not supported; known: {', '.join(ACTS)}")
    return ACTS[name]


def per_modality(value, m):
    """The value for a modality of something given once for all or as a dict."""
    value = dict(value) if hasattr(value, "keys") else value
    return value.get(m) if isinstance(value, dict) else value


def settle_act(m: str, given, hints: dict, where: str, is_clip: bool) -> str:
    """The activation of a tower's weights. A wrong one loads silently and costs accuracy, so
    nothing is guessed.

    Args:
      m: 'image', 'text', ...; given: what the caller states, a name or {m: name}, or None; hints:
        see read_hints.
    Raises UserError where nobody says it, and where two sources disagree.
    """
    given = per_modality(given, m) or None
    given = known_act(given) if given else None
    written = hints.get(m, {}).get("act")
    if given and written and given != written:
        raise UserError(
            f"{where}: the config beside it says {m} activation {written}, act says {given}"
        )
    act = given or written
    if act is None:
        raise UserError(
            f"{where}: weights do not tell the {m} activation and no config.json lies beside them: "
            "state it with act= (config.init.act): gelu, quick_gelu or gelu_tanh"
        )
    name = re.split(r"[\\/]", where)[-1].lower()
    if is_clip and re.search(r"openai|quick[-_]?gelu", name) and act != "quick_gelu":
        raise UserError(f"{where}: by its name these weights are for quick_gelu, not for {act}")
    return act


def settle_heads(m: str, given, hints: dict, where: str) -> int:
    """The number of attention heads of a tower. Raises UserError where nobody says it."""
    heads = per_modality(given, m) or hints.get(m, {}).get("heads")
    if not heads:
        raise UserError(
            f"{where}: weights do not tell the number of {m} attention heads "
            "and no config.json lies beside them: "
            f"give heads={{'{m}': ...}}"
        )
    return int(heads)
