"""Formats by name: how to know one, what its table is, and what model its weights belong to."""

import dataclasses
import math
import re
from collections.abc import Callable
from functools import partial

from multimodal.errors import UserError
from multimodal.interop import tables
from multimodal.interop.hints import settle_act, settle_heads
from multimodal.registry import lookup, nearest

CLIP_PIXELS = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
IMAGENET_PIXELS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF_PIXELS = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
NO_TEMPERATURE = {"kind": "none", "init": 1.0, "min": 1.0, "max": 1.0, "bias": None}


@dataclasses.dataclass(frozen=True)
class Format:
    """A way to name weights.

    Attributes:
      table: fn(config, prefix, names) -> Table, names telling what modalities are called here.
      marker: regex of a name that only this format has; its group is the prefix.
      config: fn(Reader) -> (modalities, model), what the weights' sizes say.
      towers: of 'image', 'text', those that it has.
      prefix: fn(config) -> prefix to export with.
    """

    table: Callable
    marker: str
    config: Callable
    towers: tuple[str, ...] = ("image",)
    prefix: Callable = lambda config: ""


@dataclasses.dataclass(frozen=True)
class Reader:
    """A state dict and what lies beside it, while a model's config is read from it."""

    state: dict
    prefix: str
    where: str
    hints: dict
    act: object
    heads: object
    is_clip: bool = False

    def shape(self, name):
        """Shape of an array of theirs. Raises UserError if there is none."""
        if name not in self.state:
            raise UserError(f"{self.where}: no {name}, which this format must have")
        return self.state[name].shape

    def depth(self, start):
        """Number of layers under a prefix."""
        found = [re.match(re.escape(start) + r"(\d+)\.", k) for k in self.state]
        found = [int(m[1]) for m in found if m]
        if not found:
            raise UserError(f"{self.where}: no layers under {start}")
        return max(found) + 1

    def block(self, m, start, up, eps):
        """Sizes and switches that a tower's blocks share."""
        return {
            "depth": self.depth(start),
            "mlp_dim": self.shape(f"{start}0.{up}.weight")[0],
            "heads": settle_heads(m, self.heads, self.hints, self.where),
            "act": settle_act(m, self.act, self.hints, self.where, self.is_clip),
            "eps": float(self.hints.get(m, {}).get("eps", eps)),
        }

    def vit(self, conv, positions, start, up, eps, pixels, **switches):
        """Config of a ViT; `switches` are the fields that names alone tell."""
        width, _, patch, _ = self.shape(f"{conv}.weight")
        count = self.shape(positions)[-2] - switches["class_token"]
        if math.isqrt(count) ** 2 != count:
            raise UserError(f"{self.where}: {positions} has {count} patches, not a square")
        defaults = {
            "pre_norm": False,
            "final_norm": "tokens",
            "pool": "class",
            "pooler": False,
            "proj": False,
        }
        return {
            "encoder": "vit",
            "size": patch * math.isqrt(count),
            "patch": patch,
            "width": width,
            "patch_bias": f"{conv}.bias" in self.state,
            "proj_bias": False,
            **self.block("image", start, up, eps),
            **pixels,
            **defaults,
            **switches,
        }

    def text(self, words, positions, start, up, eps, **switches):
        """Config of a text Transformer."""
        vocab_size, width = self.shape(words)
        defaults = {
            "norm": "pre",
            "causal": False,
            "mask_padding": False,
            "type_embed": 0,
            "embed_norm": False,
            "final_norm": True,
            "pooler": False,
            "eot_id": self.hints.get("text", {}).get("eot_id", -1),
        }
        return {
            "encoder": "text",
            "vocab_size": vocab_size,
            "width": width,
            "max_length": self.shape(positions)[0],
            **self.block("text", start, up, eps),
            **defaults,
            **switches,
        }


def model_config(embed_dim, temperature=NO_TEMPERATURE, fusion=None, heads=()):
    """The `model` part of a config."""
    return {
        "embed_dim": embed_dim,
        "fusion": fusion or {"kind": "none"},
        "heads": heads,
        "temperature": dict(temperature),
        "mlm_modality": "text",
        "dtype": "float32",
    }


def timm_image(r, p=None, **switches):
    """ViT of timm, DeiT, ALBEF (vit.py:127-174)."""
    p = r.prefix if p is None else p
    switches = {"class_token": True, "pixels": IMAGENET_PIXELS} | switches
    return r.vit(
        f"{p}patch_embed.proj", f"{p}pos_embed", f"{p}blocks.", "mlp.fc1", 1e-6, **switches
    )


def single_image(make, **kwargs):
    """The config of a format that is one image tower."""

    def config(r):
        c = make(r, **kwargs)
        return {"image": c}, model_config(c["width"])

    return config


def hf_vit_image(r, start, up):
    p = r.prefix
    return r.vit(
        f"{p}embeddings.patch_embeddings.projection",
        f"{p}embeddings.position_embeddings",
        p + start,
        up,
        1e-12,
        HALF_PIXELS,
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


def bert_text(r, proj=False):
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
    )


def bert_config(r):
    """BertModel and BertForMaskedLM."""
    c = bert_text(r)
    heads = ("mlm",) if "cls.predictions.bias" in r.state else ()
    return {"text": c}, model_config(c["width"], heads=heads)


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
    "siglip_vision_hf": Format(
        image_tower(tables.vision_hf), r"(.*?)head\.probe", single_image(hf_image)
    ),
    "clip_vision_hf": Format(
        image_tower(tables.vision_hf), r"(.*?)embeddings\.class_embedding", single_image(hf_image)
    ),
    "vit_hf": Format(
        image_tower(tables.vit_hf),
        r"(.*?)layers\.0\.attention\.q_proj\.weight",
        single_image(hf_vit_image, start="layers.", up="mlp.fc1"),
    ),
    "vit_hf_old": Format(
        image_tower(tables.vit_hf, **old_vit),
        r"(.*?)encoder\.layer\.0\.attention\.attention\.query\.weight",
        single_image(hf_vit_image, start="encoder.layer.", up="intermediate.dense"),
    ),
    "timm": Format(
        image_tower(tables.vit_timm), r"(.*?)blocks\.0\.attn\.qkv\.weight", single_image(timm_image)
    ),
    "bert": Format(
        tables.bert,
        r"(.*?)embeddings\.word_embeddings\.weight",
        bert_config,
        ("text",),
        bert_prefix,
    ),
}


def detect(state: dict, where: str, format: str = "auto") -> tuple[str, str]:
    """(format, prefix of the weights' names). Raises UserError for names that no format, or not
    this one, has."""
    if format != "auto" and format not in FORMATS:
        raise UserError(
            f"unknown weights format {format!r}{nearest(format, FORMATS)}; "
            f"known: {', '.join(FORMATS)}"
        )
    for name in FORMATS if format == "auto" else (format,):
        found = (re.fullmatch(FORMATS[name].marker, key) for key in state)
        match = next((m for m in found if m), None)
        if match:
            return name, match[1]
    sample = ", ".join(sorted(state)[:4])
    what = "of no known format" if format == "auto" else f"not of format {format}"
    raise UserError(
        f"{where}: weights {what} (they have {sample}, ...); known: {', '.join(FORMATS)}"
    )


def find(format: str) -> Format:
    """The format of that name. Raises UserError for an unknown one."""
    return lookup(FORMATS, format, "format")
