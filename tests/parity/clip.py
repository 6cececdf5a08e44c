"""CLIP under both naming schemes and SigLIP: features, logits, loss, gradients."""

import jax
import jax.numpy as jnp

from multimodal.nn.model import Net
from multimodal.objectives import OBJECTIVES
from tests.parity.common import find_heads, load, make_batch, precision, say_heads
from tests.parity.report import TOLERANCE, compare_gradients, relative

NAMINGS = {"hf": "HF", "oc": "open_clip"}


def loss_and_gradient(loaded, batch, objective):
    """Our loss, and its gradient as a tree."""

    def loss(params):
        net = Net(loaded.model, params)
        return OBJECTIVES[objective](net, net.encode(batch), batch, None)[0]

    return jax.jit(jax.value_and_grad(loss))(loaded.params)


def find(weights, dtype, act, batch, wanted, guess):
    """The model with the numbers of heads that fit; `wanted` are both towers' embeddings."""
    first = load(weights, dtype, act=act, heads=1)
    widths = {m: c["width"] for m, c in first.config["modalities"].items()}

    def error_of(m, heads):
        net = load(weights, dtype, act=act, heads=heads).net
        return relative(net.encode({m: batch[m]})[m].embed, wanted[m])

    heads = find_heads(widths, error_of, TOLERANCE[str(dtype)], guess)
    return load(weights, dtype, act=act, heads=heads), heads


def check_pair(label, weights, act, z, wanted, grads, objective, report, guess=None):
    """Rows for one model under one naming scheme; returns its numbers of heads."""
    dtype = z["image"].dtype
    with precision(dtype):
        batch = make_batch(z["image"], z["input_ids"])
        loaded, heads = find(weights, dtype, act, batch, wanted, guess)
        net = loaded.net
        out = net.encode(batch)
        for m, theirs in wanted.items():
            report.compare(
                f"{label} {m} features", out[m].embed, theirs, dtype, f"{act}, {say_heads(heads)}"
            )
        logits = net.scale() * out["image"].embed @ out["text"].embed.T + net.logit_bias()
        report.compare(f"{label} logits", logits, z["logits_per_image"], dtype)
        if "logit_scale_exp" in z:
            report.compare(f"{label} scale", jnp.asarray(net.scale()), z["logit_scale_exp"], dtype)
        loss, gradient = loss_and_gradient(loaded, batch, objective)
        report.compare(f"{label} loss", loss, z["loss"], dtype)
        if grads:
            theirs = loaded.gradients(grads)
            compare_gradients(report, f"{label} gradients", gradient, theirs, dtype)
    return heads


def check_clip(folder, report):
    """clip_ACT.npz with its weights under HF's and open_clip's names."""
    for path in sorted(folder.glob("clip_*.npz")):
        act = path.stem.removeprefix("clip_")
        files = {n: folder / f"{path.stem}_{n}_weights.safetensors" for n in NAMINGS}
        if not any(f.is_file() for f in files.values()):
            continue
        z = report.load(path)
        wanted = {"image": z["image_features"], "text": z["text_features"]}
        grads = {"oc": {k.removeprefix("grad."): v for k, v in z.items() if k.startswith("grad.")}}
        if (folder / f"{path.stem}_hf_grads.npz").is_file():
            grads["hf"] = report.load(folder / f"{path.stem}_hf_grads.npz")
        heads = None
        for naming, file in files.items():
            if file.is_file():
                label = f"CLIP {act} {NAMINGS[naming]}"
                heads = check_pair(
                    label, file, act, z, wanted, grads.get(naming), "contrastive", report, heads
                )


def check_siglip(folder, report):
    """siglip.npz with its weights under HF's names."""
    weights = folder / "siglip_hf_weights.safetensors"
    if not (folder / "siglip.npz").is_file() or not weights.is_file():
        return
    z = report.load(folder / "siglip.npz")
    wanted = {"image": z["image_embeds"], "text": z["text_embeds"]}
    grads = {k.removeprefix("grad."): v for k, v in z.items() if k.startswith("grad.")}
    check_pair("SigLIP", weights, "gelu_tanh", z, wanted, grads, "sigmoid", report)
