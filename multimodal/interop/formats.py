"""Formats by name: how to know one, what its table is, and what model its weights belong to."""

import re
from functools import partial

from multimodal.errors import UserError
from multimodal.interop import tables, tower_formats
from multimodal.interop.reader import (
    CLIP_PIXELS,
    HALF_PIXELS,
    IMAGENET_PIXELS,
    Format,
    model_config,
    single,
)
from multimodal.registry import lookup, nearest


def timm_image(r, p=None, **switches):
    """ViT of timm, DeiT, ALBEF (vit.py:127-174)."""
    p = r.prefix if p is None else p
    switches = {"class_token": True, "pixels": IMAGENET_PIXELS} | switches
    return r.vit(
        f"{p}patch_embed.proj", f"{p}pos_embed", f"{p}blocks.", "mlp.fc1", 1e-6, **switches
    )


def hf_vit_image(r, start, up, pixels=HALF_PIXELS):
    p = r.prefix
    return r.vit(
        f"{p}embeddings.patch_embeddings.projection",
        f"{p}embeddings.position_embeddings",
        p + start,
        up,
        1e-12,
        pixels,
        class_token=True,
        pooler=f"{p}pooler.dense.weight" in r.state,
    )


def hf_image(r, p=None, proj=False):
    """HF's CLIP and SigLIP vision towers."""
    p = r.prefix if p is None else p
    siglip = f"{p}head.probe" in r.state
    return r.vit(
        f"{p}embeddings.patch_embedding",
        f"{p}embeddings.position_embedding.weight",
        f"{p}encoder.layers.",
        "mlp.fc1",
        1e-6 if siglip else 1e-5,
        HALF_PIXELS if siglip else CLIP_PIXELS,
        class_token=not siglip,
        pre_norm=not siglip,
        final_norm="tokens" if siglip else "pooled",
        pool="map" if siglip else "class",
        proj=proj,
    )


def hf_pair(r):
    """HF's CLIPModel and SiglipModel."""
    p, siglip = r.prefix, "logit_bias" in r.state
    image = hf_image(r, f"{p}vision_model.", proj=not siglip)
    t = f"{p}text_model."
    text = r.text(
        f"{t}embeddings.token_embedding.weight",
        f"{t}embeddings.position_embedding.weight",
        f"{t}encoder.layers.",
        "mlp.fc1",
        1e-6 if siglip else 1e-5,
        causal=not siglip,
        pool="last" if siglip else "eot",
        proj=True,
        proj_bias=siglip,
    )
    project = f"{t}head.weight" if siglip else f"{p}text_projection.weight"
    temperature = {"kind": "log_scale", "init": 0.07, "min": 0.01, "max": 1.0, "bias": None}
    temperature |= {"init": 0.1, "bias": -10.0} if siglip else {}
    return {"image": image, "text": text}, model_config(r.shape(project)[0], temperature)


def open_clip_pair(r):
    """open_clip's CLIP with its own towers."""
    image = r.vit(
        "visual.conv1",
        "visual.positional_embedding",
        "visual.transformer.resblocks.",
        "mlp.c_fc",
        1e-5,
        CLIP_PIXELS,
        class_token=True,
        pre_norm=True,
        final_norm="pooled",
        proj=True,
    )
    p = r.prefix
    text = r.text(
        f"{p}token_embedding.weight",
        f"{p}positional_embedding",
        f"{p}transformer.resblocks.",
        "mlp.c_fc",
        1e-5,
        causal=True,
        pool="eot",
        proj=True,
        proj_bias=False,
    )
    temperature = {"kind": "log_scale", "init": 0.07, "min": 0.01, "max": 1.0, "bias": None}
    return {"image": image, "text": text}, model_config(r.shape("visual.proj")[1], temperature)


def bert_text(r, proj=False, **switches):
    """BERT's embeddings and layers."""
    p = f"{r.prefix}embeddings."
    return r.text(
        f"{p}word_embeddings.weight",
        f"{p}position_embeddings.weight",
        f"{r.prefix}encoder.layer.",
        "intermediate.dense",
        1e-12,
        norm="post",
        mask_padding=True,
        embed_norm=True,
        final_norm=False,
        type_embed=r.shape(f"{p}token_type_embeddings.weight")[0],
        pool="class",
        proj=proj,
        proj_bias=proj,
        pooler=f"{r.prefix}pooler.dense.weight" in r.state,
        **switches,
    )


def bert_config(r):
    """BertModel and BertForMaskedLM."""
    c = bert_text(r)
    heads = ("mlm",) if "cls.predictions.bias" in r.state else ()
    return {"text": c}, model_config(c["width"], heads=heads)


def roberta_config(r):
    """RobertaModel and RobertaForMaskedLM: positions count from the padding id 1 on."""
    c = bert_text(r, position_offset=2, pad_id=1)
    heads = ("mlm",) if "lm_head.bias" in r.state else ()
    return {"text": c | {"max_length": c["max_length"] - 2}}, model_config(c["width"], heads=heads)


def is_roberta(state, prefix, config):
    """RoBERTa's layers have BERT's names. What tells it: its config, the model's name before the
    weights', its head, one token type instead of two, positions without one for padding (row 1,
    which is never trained), or the order in which its class defines its embeddings."""
    if config and "model_type" in config:
        return config["model_type"] in ("roberta", "xlm-roberta", "camembert")
    if prefix.endswith("roberta.") or "lm_head.dense.weight" in state:
        return True
    parts = ("word_embeddings", "token_type_embeddings", "LayerNorm", "position_embeddings")
    names = [f"{prefix}embeddings.{part}.weight" for part in parts]
    if any(name not in state for name in names):
        return False
    positions, places = state[names[-1]], {name: i for i, name in enumerate(state)}
    if len(state[names[1]]) == 1:  # the released models'; BERT's always have two
        return True
    return not positions[1:2].any() or [places[n] for n in names] == sorted(map(places.get, names))


def albef_config(r):
    """ALBEF: layers with cross-attention are the fusion, those below the text encoder."""
    image = timm_image(r, "visual_encoder.", pixels=CLIP_PIXELS, proj=True, proj_bias=True)
    text = bert_text(r, proj=True)
    layers = f"{r.prefix}encoder.layer."
    crossed = [
        k
        for k in r.state
        if re.fullmatch(re.escape(layers) + r"\d+\.crossattention\.self\.key\.bias", k)
    ]
    depth = text["depth"] - len(crossed)
    shared = {k: text[k] for k in ("width", "heads", "mlp_dim", "act", "norm", "eps")}
    fusion = {"kind": "cross_attention", "depth": len(crossed), **shared}
    heads = ("match", "mlm") if "text_encoder.cls.predictions.bias" in r.state else ("match",)
    temperature = {"kind": "scalar", "init": 0.07, "min": 0.001, "max": 0.5, "bias": None}
    model = model_config(r.shape("vision_proj.weight")[0], temperature, fusion, heads)
    return {"image": image, "text": text | {"depth": depth}}, model


def albef_prefix(config):
    return "text_encoder.bert." if "mlm" in config["model"]["heads"] else "text_encoder."


def bert_prefix(config):
    return "bert." if "mlm" in config["model"]["heads"] else ""


def roberta_prefix(config):
    return "roberta." if "mlm" in config["model"]["heads"] else ""


PAIR = ("image", "text")
image_tower = partial(tables.one_tower, modality="image")
old_vit = {"names": tables.HF_VIT_OLD, "layers": "encoder.layer."}

# In the order in which 'auto' tries them: a format stands before those whose names it contains.
FORMATS: dict[str, Format] = {
    "albef": Format(
        tables.albef,
        r"(text_encoder\.(?:bert\.)?)embeddings\.word_embeddings\.weight",
        albef_config,
        PAIR,
        albef_prefix,
    ),
    "siglip_hf": Format(tables.clip_hf, r"(.*?)text_model\.head\.weight", hf_pair, PAIR),
    "clip_hf": Format(
        tables.clip_hf, r"(.*?)text_model\.embeddings\.token_embedding\.weight", hf_pair, PAIR
    ),
    "clip_open_clip": Format(
        tables.clip_open_clip, r"(|text\.)token_embedding\.weight", open_clip_pair, PAIR
    ),
    "blip_vision_hf": tower_formats.BLIP,
    "siglip_vision_hf": Format(
        image_tower(tables.vision_hf), r"(.*?)head\.probe", single("image", hf_image)
    ),
    "clip_vision_hf": Format(
        image_tower(tables.vision_hf),
        r"(.*?)embeddings\.class_embedding",
        single("image", hf_image),
    ),
    "ast_hf": tower_formats.AST,
    "ast_hf_old": tower_formats.AST_OLD,
    "dinov2_hf": tower_formats.DINOV2,
    "dinov2_hf_old": tower_formats.DINOV2_OLD,
    "videomae_hf": tower_formats.VIDEOMAE,
    "whisper_hf": tower_formats.WHISPER,
    "wav2vec2_hf": tower_formats.WAV2VEC2,
    "vit_hf": Format(
        image_tower(tables.vit_hf),
        r"(.*?)layers\.0\.attention\.q_proj\.weight",
        single("image", hf_vit_image, start="layers.", up="mlp.fc1"),
    ),
    "flava_image_hf": Format(
        image_tower(tables.vit_hf, **old_vit, leftovers=tables.MASK_TOKEN),
        r"(.*?)embeddings\.mask_token",
        single(
            "image",
            hf_vit_image,
            start="encoder.layer.",
            up="intermediate.dense",
            pixels=CLIP_PIXELS,
        ),
        fits=lambda state, prefix, config: (
            f"{prefix}encoder.layer.0.attention.attention.query.weight" in state
        ),
    ),
    "vit_hf_old": Format(
        image_tower(tables.vit_hf, **old_vit),
        r"(.*?)encoder\.layer\.0\.attention\.attention\.query\.weight",
        single("image", hf_vit_image, start="encoder.layer.", up="intermediate.dense"),
    ),
    "timm": Format(
        image_tower(tables.vit_timm),
        r"(.*?)blocks\.0\.attn\.qkv\.weight",
        single("image", timm_image),
    ),
    "roberta": Format(
        partial(tables.bert, head="lm_head.", transform="dense", last="layer_norm"),
        r"(.*?)embeddings\.word_embeddings\.weight",
        roberta_config,
        ("text",),
        roberta_prefix,
        fits=is_roberta,
    ),
    "bert": Format(
        tables.bert,
        r"(.*?)embeddings\.word_embeddings\.weight",
        bert_config,
        ("text",),
        bert_prefix,
    ),
}


def detect(state: dict, where: str, format: str = "auto", config=None) -> tuple[str, str]:
    """(format, prefix of the weights' names); the codebase's own config helps if there is one.

    Raises UserError for names that no format, or not this one, has.
    """
    if format != "auto" and format not in FORMATS:
        raise UserError(
            f"unknown weights format {format!r}{nearest(format, FORMATS)}; "
            f"known: {', '.join(FORMATS)}"
        )
    for name in FORMATS if format == "auto" else (format,):
        found = (re.fullmatch(FORMATS[name].marker, key) for key in state)
        match = next((m for m in found if m), None)
        if match and (format != "auto" or FORMATS[name].fits(state, match[1], config)):
            return name, match[1]
    sample = ", ".join(sorted(state)[:4])
    what = "of no known format" if format == "auto" else f"not of format {format}"
    raise UserError(
        f"{where}: weights {what} (they have {sample}, ...); known: {', '.join(FORMATS)}"
    )


def find(format: str) -> Format:
    """The format of that name. Raises UserError for an unknown one."""
    return lookup(FORMATS, format, "format")
