"""Export a run's weights: python -m multimodal.interop.export --workdir DIR --format clip_hf --out
DIR"""

import argparse
import json
import pathlib
import sys

import safetensors.numpy

from multimodal.errors import UserError
from multimodal.interop.formats import FORMATS
from multimodal.interop.hints import ACTS
from multimodal.interop.weights import export_weights, modality_names, plain

HF_ACTS = {ours: theirs for theirs, ours in reversed(ACTS.items())}


def hf_tower(c: dict) -> dict:
    """What HF's CLIP configs say of either tower."""
    return {
        "hidden_size": c["width"],
        "intermediate_size": c["mlp_dim"],
        "num_hidden_layers": c["depth"],
        "num_attention_heads": c["heads"],
        "hidden_act": HF_ACTS[c["act"]],
        "layer_norm_eps": c["eps"],
        "attention_dropout": c.get("attention_dropout", 0.0),
    }


def clip_config(cfg) -> dict:
    """config.json of HF's CLIPModel."""
    cfg = plain(cfg)
    names, embed_dim = modality_names(cfg), cfg["model"]["embed_dim"]
    image, text = (cfg["modalities"][names[kind]] for kind in ("image", "text"))
    vision = {"image_size": image["size"], "patch_size": image["patch"], "num_channels": 3}
    # Their id 2 means "the largest id ends a text", which is our -1.
    eot = text["eot_id"] if text["eot_id"] >= 0 else 2
    words = {
        "vocab_size": text["vocab_size"],
        "max_position_embeddings": text["max_length"],
        "eos_token_id": eot,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": embed_dim,
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": embed_dim}
        | hf_tower(image)
        | vision,
        "text_config": {"model_type": "clip_text_model", "projection_dim": embed_dim}
        | hf_tower(text)
        | words,
    }


def export(workdir, format, out, step="latest", ema=False) -> pathlib.Path:
    """Write a checkpoint's weights to OUT/model.safetensors, and for clip_hf OUT/config.json.
    Returns the folder.

    Raises UserError for a model that the format cannot hold.
    """
    from multimodal.config import read_config
    from multimodal.training.checkpoint import restore_params

    config = read_config(workdir)
    step, params, teacher = restore_params(workdir, step)
    if ema and teacher is None:
        raise UserError(
            f"{workdir}: the run has no teacher (config.ema.decay = 0): export it without --ema"
        )
    return write(teacher if ema else params, config, format, out)


def write(params, config, format, out) -> pathlib.Path:
    """export, of parameters and a config."""
    state = export_weights(params, config, format)
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    if format == "clip_hf":
        (out / "config.json").write_text(json.dumps(clip_config(config), indent=1) + "\n")
    return out


def main(argv) -> int:
    """Exit code: 0, or 2 with one line for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m multimodal.interop.export", description=__doc__
    )
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--format", default="clip_hf", help=", ".join(FORMATS))
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--step", default="latest", help="checkpoint: a step, 'latest' or 'best'")
    parser.add_argument("--ema", action="store_true", help="the teacher's weights")
    args = parser.parse_args(argv)
    try:
        print(export(args.workdir, args.format, args.out, args.step, args.ema))
    except UserError as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
