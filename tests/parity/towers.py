"""Single encoders: one .npz each with weights `w.*`, inputs `i.*`, outputs `o.*`."""

import itertools

import jax.numpy as jnp
import numpy as np

from multimodal.interop import model_config_from_weights
from tests.parity.common import divisors, load, make_batch, precision
from tests.parity.report import TOLERANCE, relative

# file -> modality, activation (HF's default for that class)
TOWERS = {
    "bert": ("text", "gelu"),
    "bert_mlm": ("text", "gelu"),
    "roberta": ("text", "gelu"),
    "vit": ("image", "gelu"),
    "clip_vision": ("image", "quick_gelu"),
    "siglip_vision": ("image", "gelu_tanh"),
    "dinov2": ("image", "gelu"),
    "blip_itm": ("image", "gelu"),
    "flava_image": ("image", "gelu"),
    "ast": ("audio", "gelu"),
    "whisper_encoder": ("audio", "gelu"),
    "wav2vec2": ("audio", "gelu"),
    "videomae": ("video", "gelu"),
}


def part(z, prefix):
    """The arrays under a prefix."""
    return {k.removeprefix(prefix): v for k, v in z.items() if k.startswith(prefix)}


def batch_of(name, inputs):
    """A batch of ours from theirs."""
    if name == "ast":  # [B, frames, mels] there
        return {"audio": jnp.asarray(inputs["input_values"].swapaxes(1, 2))}
    if name in ("whisper_encoder", "wav2vec2"):
        (x,) = inputs.values()
        return {"audio": jnp.asarray(x)}
    if name == "videomae":  # [B, frames, channels, height, width] there
        return {"video": jnp.asarray(inputs["pixel_values"].transpose(0, 1, 3, 4, 2))}
    return make_batch(
        inputs.get("pixel_values"), inputs.get("input_ids"), inputs.get("attention_mask")
    )


def outputs(loaded, m, batch):
    """Our arrays under their names."""
    tokens, pooled = loaded.encode(m, batch[m], batch.get(f"{m}_mask"))
    out = {"last_hidden_state": tokens, "pooler_output": pooled}
    if "mlm" in loaded.config["model"]["heads"]:
        out["logits"] = loaded.net.mlm(loaded.net.encode(batch)["text"].tokens)
    return out


def ast_sizes(z):
    """Configs whose strides make as many patches of the input as there are positions."""
    _, frames, mels = z["i.input_values"].shape
    *_, p, q = z["w.embeddings.patch_embeddings.projection.weight"].shape
    count = z["w.embeddings.position_embeddings"].shape[1] - 2
    for s, t in sorted(itertools.product(range(1, p + 1), range(1, q + 1)), key=lambda x: -sum(x)):
        if ((mels - p) // s + 1) * ((frames - q) // t + 1) == count:
            yield {
                "num_mel_bins": mels,
                "max_length": frames,
                "frequency_stride": s,
                "time_stride": t,
            }


def wav2vec2_sizes(z):
    """Configs whose strides give as many steps as the output has, likely ones first."""
    kernels, i = [], 0
    while f"w.feature_extractor.conv_layers.{i}.conv.weight" in z:
        kernels.append(z[f"w.feature_extractor.conv_layers.{i}.conv.weight"].shape[2])
        i += 1
    likely = [max(2, k // 2) for k in kernels]
    every = itertools.product(*(range(1, min(k, 5) + 1) for k in kernels))
    for strides in sorted(every, key=lambda s: sum(abs(a - b) for a, b in zip(s, likely))):
        length = z["i.input_values"].shape[1]
        for kernel, stride in zip(kernels, strides):
            length = (length - kernel) // stride + 1
        if length == z["o.last_hidden_state"].shape[1]:
            yield {"conv_stride": strides}


def sizes(name, z):
    """What the codebase's config would say beside weights, by candidates."""
    if name == "ast":
        return [{"model_type": "ast"} | c for c in ast_sizes(z)]
    if name == "wav2vec2":
        return [{"model_type": "wav2vec2"} | c for c in wav2vec2_sizes(z)]
    if name == "videomae":
        _, frames, _, _, size = z["i.pixel_values"].shape
        return [{"model_type": "videomae", "num_frames": frames, "image_size": size}]
    return [None]


def load_tower(z, m, act, heads, config):
    """The encoder; numbers of heads go by hints where a config is given."""
    weights, dtype = part(z, "w."), next(iter(part(z, "o.").values())).dtype
    loaded = load(weights, dtype, act=act, heads=heads, config=config)
    # What HF's feature extractor does, and not its model.
    loaded.config["modalities"][m].pop("normalize_wave", None)
    return loaded


def candidates(z, m, act, config):
    """Numbers of heads to try, the small models' usual 4 first."""
    cfg = model_config_from_weights(part(z, "w."), heads=1, act=act, config=config)
    return sorted(divisors(cfg["modalities"][m]["width"]), key=lambda n: abs(n - 4))


def check_tower(name, z, report):
    """Rows for one encoder: the best of the numbers of heads, and of sizes, that weights leave
    open."""
    m, act = TOWERS[name]
    wanted = part(z, "o.")
    dtype = next(iter(wanted.values())).dtype
    tolerance, best = TOLERANCE[np.dtype(dtype).name], None
    with precision(dtype):
        batch = batch_of(name, part(z, "i."))
        for config in sizes(name, z):
            for heads in candidates(z, m, act, config):
                got = outputs(load_tower(z, m, act, heads, config), m, batch)
                errors = {k: relative(got[k], v) for k, v in wanted.items()}
                if best is None or max(errors.values()) < best[0]:
                    best = max(errors.values()), errors, heads
                if best[0] <= tolerance:
                    break
            if best[0] <= tolerance:
                break
    _, errors, heads = best
    for k, error in errors.items():
        report.add(
            f"{name} {k}", error, dtype, f"{act}, heads {heads} (found among divisors of the width)"
        )


def check_towers(folder, report):
    """Every encoder of a folder that we have."""
    for name in TOWERS:
        path = folder / f"{name}.npz"
        if path.is_file():
            check_tower(name, report.load(path), report)
