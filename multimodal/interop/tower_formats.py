"""Formats of single image, audio and video towers in transformers' names: tables and configs."""

from functools import partial

from multimodal.errors import UserError
from multimodal.interop import tables
from multimodal.interop.engine import Entry
from multimodal.interop.reader import CLIP_PIXELS, IMAGENET_PIXELS, Format, single
from multimodal.interop.tables import HF_CLIP, HF_VIT, HF_VIT_OLD, blocks, dense, norm, one_tower
from multimodal.interop.transforms import Conv, Transposed

BLIP_BLOCK = {k: v for k, v in HF_CLIP.items() if k != "split"} | {
    "qkv": "self_attn.qkv.",
    "out": "self_attn.projection",
}
DINOV2_BLOCK = HF_VIT | {
    "norm_attention": "norm1",
    "norm_mlp": "norm2",
    "scale_attention": "layer_scale1.lambda1",
    "scale_mlp": "layer_scale2.lambda1",
}
DINOV2_BLOCK_OLD = DINOV2_BLOCK | {k: HF_VIT_OLD[k] for k in ("split", "out")}
WHISPER_BLOCK = {
    "split": "self_attn.{letter}_proj",
    "key_bias": False,
    "out": "self_attn.out_proj",
    "norm_attention": "self_attn_layer_norm",
    "up": "fc1",
    "down": "fc2",
    "norm_mlp": "final_layer_norm",
}
WAV2VEC2_BLOCK = {
    "split": "attention.{letter}_proj",
    "out": "attention.out_proj",
    "norm_attention": "layer_norm",
    "up": "feed_forward.intermediate_dense",
    "down": "feed_forward.output_dense",
    "norm_mlp": "final_layer_norm",
}
# AST's and Whisper's features: samples at 16 kHz, windows of 25 ms every 10 ms.
RATE, WINDOW, HOP = 16_000, 400, 160
AST_SIZES = {"num_mel_bins": 128, "max_length": 1024, "frequency_stride": 10, "time_stride": 10}
AST_POSITIONS = 1214  # of the published models with those sizes and 16 x 16 patches
PUBLISHED_KERNELS, PUBLISHED_STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


def blip(p, o, c):
    """HF's BlipVisionModel."""
    e = f"{p}embeddings."
    return [
        Entry(f"{e}class_embedding", (f"{o}/class_token",)),
        Entry(f"{e}position_embedding", (f"{o}/pos_embed",), resize=tables.grid(c)),
        *tables.patches(f"{e}patch_embedding", o, c),
        *blocks(f"{p}encoder.layers.", o, BLIP_BLOCK, c["depth"]),
        *norm(f"{p}post_layernorm", f"{o}/final_norm"),
    ]


def blip_config(r):
    """Its pooled token goes through the final norm twice."""
    e = f"{r.prefix}embeddings."
    layers = f"{r.prefix}encoder.layers."
    switches = {"class_token": True, "final_norm": "twice"}
    names = (f"{e}patch_embedding", f"{e}position_embedding", layers, "mlp.fc1")
    return r.vit(*names, 1e-5, CLIP_PIXELS, **switches)


def dinov2_config(r):
    """HF's Dinov2Model; the factors' initial value is not the weights' affair."""
    p, e = r.prefix, f"{r.prefix}embeddings."
    names = (f"{e}patch_embeddings.projection", f"{e}position_embeddings", f"{p}encoder.layer.")
    return r.vit(*names, "mlp.fc1", 1e-6, IMAGENET_PIXELS, class_token=True, layer_scale=1.0)


def ast(p, o, c, names=HF_VIT, layers="layers."):
    """HF's ASTModel."""
    e = f"{p}embeddings."
    return [
        Entry(f"{e}cls_token", (f"{o}/class_token",)),
        Entry(f"{e}distillation_token", (f"{o}/distillation_token",)),
        Entry(f"{e}position_embeddings", (f"{o}/pos_embed",)),
        *dense(f"{e}patch_embeddings.projection", f"{o}/patch_embed", kernel=Conv(c["patch"])),
        *blocks(p + layers, o, names, c["depth"]),
        *norm(f"{p}layernorm", f"{o}/final_norm"),
    ]


def ast_config(r, layers="layers.", up="mlp.fc1"):
    """Mel bands, frames and strides only their product shows: but for the published sizes they must
    be said."""
    e = f"{r.prefix}embeddings."
    width, _, *patch = r.shape(f"{e}patch_embeddings.projection.weight")
    published = r.shape(f"{e}position_embeddings")[1] == AST_POSITIONS and patch == [16, 16]
    defaults = AST_SIZES if published else {}
    said = {k: int(r.said("audio", k, defaults.get(k))) for k in AST_SIZES}
    return {
        "encoder": "spectrogram",
        "sample_rate": RATE,
        "seconds": ((said["max_length"] - 1) * HOP + WINDOW) / RATE,
        "features": "kaldi",
        "mels": said["num_mel_bins"],
        "window": WINDOW,
        "hop": HOP,
        "fft": 512,
        "fmin": 20.0,
        "fmax": 0.0,
        # AudioSet's; AST divides by twice the deviation.
        "spec_mean": -4.2677393,
        "spec_std": 2 * 4.5689974,
        "patch": tuple(patch),
        "stride": (said["frequency_stride"], said["time_stride"]),
        "width": width,
        "class_token": True,
        "distillation_token": True,
        "final_norm": "tokens",
        "pool": "class",
        "proj": False,
        "proj_bias": False,
        **r.block("audio", r.prefix + layers, up, 1e-12),
    }


def ast_sizes(c):
    """The inverse of what ast_config is told."""
    stride = c["stride"] or c["patch"]
    frames = (round(c["sample_rate"] * c["seconds"]) - c["window"]) // c["hop"] + 1
    return dict(zip(AST_SIZES, (c["mels"], frames, *stride), strict=True))


def whisper(p, o, c):
    """HF's WhisperEncoder."""
    entries = [
        *dense(f"{p}conv1", f"{o}/conv1", kernel=Transposed()),
        *dense(f"{p}conv2", f"{o}/conv2", kernel=Transposed()),
        *blocks(f"{p}layers.", o, WHISPER_BLOCK, c["depth"]),
        *norm(f"{p}layer_norm", f"{o}/final_norm"),
    ]
    # Fixed sinusoids are computed; a file's copy of them is then not read.
    if c["position_embedding"] == "learned":
        entries += [Entry(f"{p}embed_positions.weight", (f"{o}/pos_embed",))]
    return entries


def whisper_config(r):
    """Its positions are taken as the file has them."""
    p = r.prefix
    width, mels, _ = r.shape(f"{p}conv1.weight")
    return {
        "encoder": "whisper",
        "sample_rate": RATE,
        "seconds": 2 * r.shape(f"{p}embed_positions.weight")[0] * HOP / RATE,
        "features": "whisper",
        "mels": mels,
        "window": WINDOW,
        "hop": HOP,
        "fmin": 0.0,
        "fmax": 0.0,
        "position_embedding": "learned",
        "key_bias": False,
        "width": width,
        "pool": "mean",
        "proj": False,
        "proj_bias": False,
        **r.block("audio", f"{p}layers.", "fc1", 1e-5),
    }


def wav2vec2(p, o, c):
    """HF's Wav2Vec2Model with the base model's norms."""
    features, positions = f"{p}feature_extractor.conv_layers.", f"{p}encoder.pos_conv_embed.conv."
    entries = [
        Entry(f"{features}{i}.conv.weight", (f"{o}/features/conv_{i}/kernel",), Transposed())
        for i in range(len(c["conv_dims"]))
    ]
    kernel = f"{positions}parametrizations.weight.original"
    return [
        *entries,
        *norm(f"{features}0.layer_norm", f"{o}/features/norm"),
        *norm(f"{p}feature_projection.layer_norm", f"{o}/feature_norm"),
        *dense(f"{p}feature_projection.projection", f"{o}/feature_projection"),
        Entry(f"{kernel}0", (f"{o}/positions/scale",), Transposed()),
        Entry(f"{kernel}1", (f"{o}/positions/direction",), Transposed()),
        Entry(f"{positions}bias", (f"{o}/positions/bias",)),
        *norm(f"{p}encoder.layer_norm", f"{o}/norm_embed"),
        *blocks(f"{p}encoder.layers.", o, WAV2VEC2_BLOCK, c["depth"]),
    ]


def wav2vec2_config(r):
    """Strides are known of the published kernels, else they must be said."""
    p = r.prefix
    if r.said("audio", "do_stable_layer_norm", False):
        raise UserError(f"{r.where}: wav2vec2 with do_stable_layer_norm is not supported")
    features = f"{p}feature_extractor.conv_layers."
    shapes = [r.shape(f"{features}{i}.conv.weight") for i in range(r.depth(features))]
    kernels = tuple(s[2] for s in shapes)
    published = PUBLISHED_STRIDES if kernels == PUBLISHED_KERNELS else None
    positions = f"{p}encoder.pos_conv_embed.conv.parametrizations.weight.original1"
    width, inputs, position_kernel = r.shape(positions)
    return {
        "encoder": "wav2vec2",
        "sample_rate": RATE,
        "seconds": 1.0,
        "conv_dims": tuple(s[0] for s in shapes),
        "conv_kernels": kernels,
        "conv_strides": tuple(r.said("audio", "conv_stride", published)),
        "position_kernel": position_kernel,
        "position_groups": width // inputs,
        # The published models' feature extractor does so; bare arrays are the network alone.
        "normalize_wave": "audio" in r.hints,
        "width": width,
        "pool": "mean",
        "proj": False,
        "proj_bias": False,
        **r.block("audio", f"{p}encoder.layers.", "feed_forward.intermediate_dense", 1e-5),
    }


def videomae(p, o, c):
    """HF's VideoMAEModel; its positions are computed."""
    names = HF_VIT_OLD | {"key_bias": c["key_bias"]}
    conv = Conv((c["tubelet"], c["patch"], c["patch"]))
    return [
        *dense(f"{p}embeddings.patch_embeddings.projection", f"{o}/patch_embed", kernel=conv),
        *blocks(f"{p}encoder.layer.", o, names, c["depth"]),
        *(norm(f"{p}layernorm", f"{o}/final_norm") if c["final_norm"] == "tokens" else []),
    ]


def videomae_config(r):
    """Weights do not depend on frames and size: unless said, they are the published ones."""
    p = r.prefix
    width, channels, tubelet, patch, _ = r.shape(
        f"{p}embeddings.patch_embeddings.projection.weight"
    )
    layers = f"{p}encoder.layer."
    return {
        "encoder": "video",
        "frames": int(r.said("video", "num_frames", 16)),
        "size": int(r.said("video", "image_size", 224)),
        "channels": channels,
        "patch": patch,
        "tubelet": tubelet,
        "attention": "joint",
        "motion": False,
        "position_embedding": "sinusoid",
        "class_token": False,
        "final_norm": "tokens" if f"{p}layernorm.weight" in r.state else "none",
        "key_bias": f"{layers}0.attention.attention.key.bias" in r.state,
        "width": width,
        "pool": "mean",
        "proj": False,
        "proj_bias": False,
        **IMAGENET_PIXELS,
        **r.block("video", layers, "intermediate.dense", 1e-12),
    }


def axes(state, name):
    """Number of axes of an array; 0 where there is none."""
    return state[name].ndim if name in state else 0


def is_ast(state, prefix, layers):
    """Patches of one channel, and these layers: DeiT has a distillation token as well."""
    conv = state.get(f"{prefix}embeddings.patch_embeddings.projection.weight")
    return (
        conv is not None
        and conv.shape[1] == 1
        and any(k.startswith(f"{prefix}{layers}0.attention") for k in state)
    )


def ast_format(layers, up, names):
    """AST with the names of its layers."""
    return Format(
        one_tower(ast, "audio", names=names, layers=layers),
        r"(.*?)embeddings\.distillation_token",
        single("audio", ast_config, layers=layers, up=up),
        ("audio",),
        fits=lambda state, prefix, config: is_ast(state, prefix, layers),
        sizes=ast_sizes,
    )


def dinov2_format(query, names):
    """DINOv2 with the names of its attention."""
    vit = partial(tables.vit_hf, names=names, layers="encoder.layer.")
    return Format(
        one_tower(vit, "image", leftovers=tables.MASK_TOKEN),
        r"(.*?)encoder\.layer\.0\.layer_scale1\.lambda1",
        single("image", dinov2_config),
        fits=lambda state, prefix, config: f"{prefix}encoder.layer.0.{query}.weight" in state,
    )


BLIP = Format(
    one_tower(blip, "image"),
    r"(.*?)encoder\.layers\.0\.self_attn\.qkv\.weight",
    single("image", blip_config),
)
AST = ast_format("layers.", "mlp.fc1", HF_VIT)
AST_OLD = ast_format("encoder.layer.", "intermediate.dense", HF_VIT_OLD)
DINOV2 = dinov2_format("attention.q_proj", DINOV2_BLOCK)
DINOV2_OLD = dinov2_format("attention.attention.query", DINOV2_BLOCK_OLD)
VIDEOMAE = Format(
    one_tower(videomae, "video", leftovers=tables.MASK_TOKEN),
    r"(.*?)encoder\.layer\.0\.attention\.attention\.query\.weight",
    single("video", videomae_config),
    ("video",),
    fits=lambda state, prefix, config: (
        axes(state, f"{prefix}embeddings.patch_embeddings.projection.weight") == 5
        and f"{prefix}embeddings.position_embeddings" not in state  # ViViT's are learned
    ),
    sizes=lambda c: {"num_frames": c["frames"], "image_size": c["size"]},
)
WHISPER = Format(
    one_tower(whisper, "audio", leftovers=(r"(.*\.)?embed_positions\.weight",)),
    r"(.*?)conv1\.weight",
    single("audio", whisper_config),
    ("audio",),
    fits=lambda state, prefix, config: (
        axes(state, f"{prefix}conv1.weight") == 3 and f"{prefix}embed_positions.weight" in state
    ),
)
WAV2VEC2 = Format(
    one_tower(wav2vec2, "audio", leftovers=(r"(.*\.)?masked_spec_embed",)),
    r"(.*?)feature_extractor\.conv_layers\.0\.conv\.weight",
    single("audio", wav2vec2_config),
    ("audio",),
    sizes=lambda c: {"conv_stride": c["conv_strides"]},
)
