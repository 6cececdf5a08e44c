"""Names of weights in other codebases, one table a format: what a block, a tower, a whole model is
called.

`p` is a prefix of theirs, `o` a path of ours, `c` a modality's config.
"""

from functools import partial

import numpy as np

from multimodal.errors import UserError
from multimodal.interop.engine import Entry, Table
from multimodal.interop.posembed import resize_grid, resize_line
from multimodal.interop.transforms import (
    Conv,
    Flat,
    Fused,
    Kernel,
    Pointer,
    QueueIds,
    Same,
    Scalar,
    Transposed,
)

# A Transformer block: q, k, v are one pattern of `{letter}` or `{word}`, or fused as `qkv`.
BERT_SELF = {
    "split": "attention.self.{word}",
    "out": "attention.output.dense",
    "norm_attention": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm_mlp": "output.LayerNorm",
}
BERT_CROSS = {
    "split": "crossattention.self.{word}",
    "out": "crossattention.output.dense",
    "norm_cross_attention": "crossattention.output.LayerNorm",
}
HF_CLIP = {
    "split": "self_attn.{letter}_proj",
    "out": "self_attn.out_proj",
    "norm_attention": "layer_norm1",
    "norm_mlp": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
OPEN_CLIP = {
    "qkv": "attn.in_proj_",
    "out": "attn.out_proj",
    "norm_attention": "ln_1",
    "norm_mlp": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
TIMM = {
    "qkv": "attn.qkv.",
    "out": "attn.proj",
    "norm_attention": "norm1",
    "norm_mlp": "norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
HF_VIT = {
    "split": "attention.{letter}_proj",
    "out": "attention.o_proj",
    "norm_attention": "layernorm_before",
    "norm_mlp": "layernorm_after",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
HF_VIT_OLD = HF_VIT | {
    "split": "attention.attention.{word}",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
MAP_HEAD = {
    "qkv": "attention.in_proj_",
    "out": "attention.out_proj",
    "norm": "layernorm",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
QKV = ("query", "key", "value")


def norm(p, o):
    """A LayerNorm."""
    return [Entry(f"{p}.weight", (f"{o}/scale",)), Entry(f"{p}.bias", (f"{o}/bias",))]


def dense(p, o, bias=True, kernel=Kernel(), vector=Same()):  # noqa: B008 (both are immutable)
    """A linear layer."""
    entries = [Entry(f"{p}.weight", (f"{o}/kernel",), kernel)]
    return entries + ([Entry(f"{p}.bias", (f"{o}/bias",), vector)] if bias else [])


def attention(p, o, names):
    """Multi-head attention, its queries, keys and values fused or apart."""
    if "qkv" in names:
        kernels, biases = ([f"{o}/{w}/{leaf}" for w in QKV] for leaf in ("kernel", "bias"))
        entries = [
            Entry(f"{p}{names['qkv']}weight", tuple(kernels), Fused(Kernel())),
            Entry(f"{p}{names['qkv']}bias", tuple(biases), Fused(Flat())),
        ]
    else:
        entries = []
        for word in QKV:
            name = names["split"].format(word=word, letter=word[0])
            bias = word != "key" or names.get("key_bias", True)
            entries += dense(p + name, f"{o}/{word}", bias, vector=Flat())
    return entries + dense(p + names["out"], f"{o}/out", kernel=Kernel(inputs=2))


def block(p, o, names, kind="attention"):
    """One block: attention of that kind, whatever norms `names` has, and the MLP if it has one."""
    entries = attention(p, f"{o}/{kind}", names)
    for key in ("norm", "norm_attention", "norm_cross_attention", "norm_mlp"):
        entries += norm(p + names[key], f"{o}/{key}") if key in names else []
    for key in ("scale_attention", "scale_mlp"):
        entries += [Entry(p + names[key], (f"{o}/{key}",))] if key in names else []
    for key in ("up", "down"):
        entries += dense(p + names[key], f"{o}/mlp/{key}") if key in names else []
    return entries


def blocks(p, o, names, depth, start=0):
    """Blocks `start` to `start + depth` of theirs, which are the first `depth` of a stack here."""
    return [
        e for i in range(depth) for e in block(f"{p}{start + i}.", f"{o}/stack/block_{i}", names)
    ]


def grid(c, antialias=False):
    """How a ViT's position embedding is resized."""
    return lambda x, shape: resize_grid(x, shape[1], c["class_token"], antialias)


def line(x, shape, keep=0):
    """How a text Transformer's position embedding is resized; the first `keep` rows stay."""
    return np.concatenate([x[:keep], resize_line(x[keep:], shape[-2] - keep)])


def patches(p, o, c):
    """The patch embedding. Raises UserError for a tower that has a convolutional stem instead."""
    if c.get("stem", "patch") != "patch":
        raise UserError(
            f"{o}: no known format has weights of stem {c['stem']!r}; the tower needs 'patch'"
        )
    return dense(p, f"{o}/patch_embed", c["patch_bias"], Conv((c["patch"], c["patch"])))


def vit_timm(p, o, c):
    """timm's and DeiT's ViT, which is ALBEF's too."""
    return [
        Entry(f"{p}cls_token", (f"{o}/class_token",)),
        Entry(f"{p}pos_embed", (f"{o}/pos_embed",), resize=grid(c)),
        *patches(f"{p}patch_embed.proj", o, c),
        *blocks(f"{p}blocks.", o, TIMM, c["depth"]),
        *norm(f"{p}norm", f"{o}/final_norm"),
    ]


def vit_hf(p, o, c, names=HF_VIT, layers="layers."):
    """HF's ViTModel."""
    return [
        Entry(f"{p}embeddings.cls_token", (f"{o}/class_token",)),
        Entry(f"{p}embeddings.position_embeddings", (f"{o}/pos_embed",), resize=grid(c)),
        *patches(f"{p}embeddings.patch_embeddings.projection", o, c),
        *blocks(p + layers, o, names, c["depth"]),
        *norm(f"{p}layernorm", f"{o}/final_norm"),
        *(dense(f"{p}pooler.dense", f"{o}/pooler") if c["pooler"] else []),
    ]


def vision_hf(p, o, c):
    """HF's CLIP and SigLIP vision towers."""
    entries = [
        Entry(
            f"{p}embeddings.position_embedding.weight", (f"{o}/pos_embed",), Same(lead=1), grid(c)
        ),
        *patches(f"{p}embeddings.patch_embedding", o, c),
        *blocks(f"{p}encoder.layers.", o, HF_CLIP, c["depth"]),
        *norm(f"{p}post_layernorm", f"{o}/final_norm"),
    ]
    if c["class_token"]:
        entries += [Entry(f"{p}embeddings.class_embedding", (f"{o}/class_token",), Same(lead=2))]
    if c["pre_norm"]:
        entries += norm(f"{p}pre_layrnorm", f"{o}/pre_norm")  # their spelling
    if c["pool"] == "map":
        entries += [Entry(f"{p}head.probe", (f"{o}/map_head/probe",))]
        entries += block(f"{p}head.", f"{o}/map_head", MAP_HEAD)
    return entries


def vision_open_clip(p, o, c):
    """open_clip's own vision tower."""
    return [
        Entry(f"{p}class_embedding", (f"{o}/class_token",), Same(lead=2)),
        Entry(
            f"{p}positional_embedding", (f"{o}/pos_embed",), Same(lead=1), grid(c, antialias=True)
        ),
        *patches(f"{p}conv1", o, c),
        *norm(f"{p}ln_pre", f"{o}/pre_norm"),
        *blocks(f"{p}transformer.resblocks.", o, OPEN_CLIP, c["depth"]),
        *norm(f"{p}ln_post", f"{o}/final_norm"),
    ]


def text_hf(p, o, c):
    """HF's CLIP and SigLIP text towers."""
    return [
        Entry(f"{p}embeddings.token_embedding.weight", (f"{o}/token_embed/embedding",)),
        Entry(f"{p}embeddings.position_embedding.weight", (f"{o}/pos_embed",), resize=line),
        *blocks(f"{p}encoder.layers.", o, HF_CLIP, c["depth"]),
        *norm(f"{p}final_layer_norm", f"{o}/norm_final"),
    ]


def text_open_clip(p, o, c):
    """open_clip's own text tower."""
    return [
        Entry(f"{p}token_embedding.weight", (f"{o}/token_embed/embedding",)),
        Entry(f"{p}positional_embedding", (f"{o}/pos_embed",), resize=line),
        *blocks(f"{p}transformer.resblocks.", o, OPEN_CLIP, c["depth"]),
        *norm(f"{p}ln_final", f"{o}/norm_final"),
    ]


def text_bert(p, o, c, fusion=None, fuser=""):
    """BERT and RoBERTa, whose upper layers are the fusion where there is one (ALBEF)."""
    keep = c.get("position_offset", 0)
    positions = Entry(
        f"{p}embeddings.position_embeddings.weight",
        (f"{o}/pos_embed",),
        resize=partial(line, keep=keep),
    )
    entries = [
        Entry(f"{p}embeddings.word_embeddings.weight", (f"{o}/token_embed/embedding",)),
        *([] if keep else [positions]),
        Entry(f"{p}embeddings.token_type_embeddings.weight", (f"{o}/type_embed",)),
        *norm(f"{p}embeddings.LayerNorm", f"{o}/norm_embed"),
        *([positions] if keep else []),  # RoBERTa's files have them here
        *blocks(f"{p}encoder.layer.", o, BERT_SELF, c["depth"]),
        *(dense(f"{p}pooler.dense", f"{o}/pooler_dense") if c.get("pooler") else []),
    ]
    if fusion:
        n = c["depth"]
        entries += blocks(f"{p}encoder.layer.", fuser, BERT_SELF, fusion["depth"], start=n)
        for i in range(fusion["depth"]):
            ours = f"{fuser}/stack/block_{i}"
            entries += block(f"{p}encoder.layer.{n + i}.", ours, BERT_CROSS, "cross_attention")
    return entries


def mlm_head(p, o, transform="transform.dense", last="transform.LayerNorm"):
    """BERT's masked-language-modelling head; its output layer is tied to the word embeddings."""
    return [
        Entry(f"{p}bias", (f"{o}/bias",)),
        *dense(f"{p}{transform}", f"{o}/transform"),
        *norm(f"{p}{last}", f"{o}/norm"),
    ]


def tied_mlm(p, trunk):
    """What the output layer of mlm_head repeats."""
    words = f"{trunk}embeddings.word_embeddings.weight"
    return ((f"{p}decoder.weight", words), (f"{p}decoder.bias", f"{p}bias"))


BUFFERS = (r"(.*\.)?position_ids", r"(.*\.)?num_batches_tracked", r"(.*\.)?attn_mask")


MASK_TOKEN = (r"(.*\.)?embeddings\.mask_token",)  # of masked image modelling


def one_tower(tower, modality, leftovers=(), **kwargs):
    """A format that is a single tower: table(config, prefix, names).

    `leftovers` are regexes of names in its files that our model has no use for.
    """

    def table(cfg, prefix, names):
        m = names[modality]
        entries = tower(prefix, f"params/encoder_{m}", cfg["modalities"][m], **kwargs)
        return Table(tuple(entries), ignored=BUFFERS + leftovers)

    return table


def clip_hf(cfg, prefix, names):
    """HF's CLIPModel and SiglipModel."""
    image, text = names["image"], names["text"]
    siglip = cfg["model"]["temperature"].get("bias") is not None
    entries = vision_hf(
        f"{prefix}vision_model.", f"params/encoder_{image}", cfg["modalities"][image]
    )
    entries += text_hf(f"{prefix}text_model.", f"params/encoder_{text}", cfg["modalities"][text])
    scalar = Scalar((1,) if siglip else ())
    entries += [Entry(f"{prefix}logit_scale", ("params/temperature",), scalar)]
    if siglip:
        entries += dense(f"{prefix}text_model.head", f"params/project_{text}")
        entries += [Entry(f"{prefix}logit_bias", ("params/logit_bias",), scalar)]
    else:
        entries += dense(f"{prefix}visual_projection", f"params/project_{image}", bias=False)
        entries += dense(f"{prefix}text_projection", f"params/project_{text}", bias=False)
    return Table(tuple(entries), ignored=BUFFERS)


def clip_open_clip(cfg, prefix, names):
    """open_clip's CLIP; `prefix` is 'text.' for its custom_text models."""
    image, text = names["image"], names["text"]
    entries = vision_open_clip("visual.", f"params/encoder_{image}", cfg["modalities"][image])
    entries += text_open_clip(prefix, f"params/encoder_{text}", cfg["modalities"][text])
    entries += [
        Entry("visual.proj", (f"params/project_{image}/kernel",)),
        Entry(f"{prefix}text_projection", (f"params/project_{text}/kernel",)),
        Entry("logit_scale", ("params/temperature",), Scalar()),
    ]
    return Table(tuple(entries), ignored=BUFFERS)


def bert(cfg, prefix, names, head="cls.predictions.", **parts):
    """BertModel and BertForMaskedLM; for a model with a fusion, layers beyond the text encoder's go
    there. `head` and `parts` are the names of the head (RoBERTa's are others)."""
    text, model = names["text"], cfg["model"]
    c = cfg["modalities"][text]
    fusion = model["fusion"] if model["fusion"]["kind"] != "none" else None
    entries, tied = text_bert(prefix, f"params/encoder_{text}", c, fusion, "params/fuser"), ()
    if "mlm" in model["heads"]:
        entries += mlm_head(head, "params/mlm_head", **parts)
        tied = tied_mlm(head, prefix)
    return Table(tuple(entries), tied, BUFFERS)


def albef(cfg, prefix, names):
    """salesforce/ALBEF: pre-training (`prefix` 'text_encoder.bert.') and retrieval
    ('text_encoder.')."""
    image, text, model = names["image"], names["text"], cfg["model"]
    ids = [Entry("idx_queue", ("queue/id",), QueueIds())] if prefix == "text_encoder." else []
    entries = [
        *dense("itm_head", "params/match_head"),
        Entry("temp", ("params/temperature",), Scalar()),
        Entry("image_queue", (f"queue/{image}",), Transposed()),
        Entry("text_queue", (f"queue/{text}",), Transposed()),
        Entry("queue_ptr", ("queue/ptr",), Pointer()),
        *ids,
    ]
    tied = ()
    for part, m in (("params", ""), ("ema", "_m")):
        trunk = prefix.replace("text_encoder.", f"text_encoder{m}.")
        bert_of = partial(text_bert, fusion=model["fusion"], fuser=f"{part}/fuser")
        entries += vit_timm(
            f"visual_encoder{m}.", f"{part}/encoder_{image}", cfg["modalities"][image]
        )
        entries += bert_of(trunk, f"{part}/encoder_{text}", cfg["modalities"][text])
        entries += dense(f"vision_proj{m}", f"{part}/project_{image}")
        entries += dense(f"text_proj{m}", f"{part}/project_{text}")
        if "mlm" in model["heads"]:
            entries += mlm_head(f"text_encoder{m}.cls.predictions.", f"{part}/mlm_head")
            tied += tied_mlm(f"text_encoder{m}.cls.predictions.", trunk)
    return Table(tuple(entries), tied, BUFFERS)
