"""Weights in and out of other codebases' formats."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from multimodal.config import pair
from multimodal.errors import UserError
from multimodal.interop import engine, files, formats
from multimodal.interop.hints import read_hints, settle_act
from multimodal.interop.reader import Reader
from multimodal.interop.stacks import group_layers, stack_flat, unstack_flat
from multimodal.nn.model import build_model
from multimodal.objectives.queue import EMPTY
from multimodal.training.sharding import placed

log = logging.getLogger(__name__)

KINDS = {
    "vit": "image",
    "text": "text",
    "spectrogram": "audio",
    "whisper": "audio",
    "wav2vec2": "audio",
    "video": "video",
    "frames": "video",
}


@dataclasses.dataclass(frozen=True)
class Imported:
    """What a weights file gave.

    Attributes:
      params: parameter tree of numpy arrays; leaves that allow_missing let pass are not in it.
      ema: the teacher's parameters, or None. Heads that the teacher lacks (ALBEF's matching head)
        are the student's.
      queue: the momentum queue (objectives.queue), or None.
      config: {'modalities': ..., 'model': ...}, enough for build_model.
      format: the name of the format.
    """

    params: dict
    ema: dict | None
    queue: dict | None
    config: dict
    format: str


def open_state(weights, config=None):
    """(state dict, codebase's config or None, name for messages) of a path or of a state dict."""
    if isinstance(weights, dict):
        return modern(weights), config, "weights"
    return (
        modern(files.load_file(weights)),
        config or files.read_config(weights),
        str(files.find(weights)),
    )


RENAMES = (
    # The first BERT files.
    (".LayerNorm.gamma", ".LayerNorm.weight"),
    (".LayerNorm.beta", ".LayerNorm.bias"),
    # VideoMAE's biases apart from their layers; torch's first weight normalisation (wav2vec 2.0).
    (".attention.attention.q_bias", ".attention.attention.query.bias"),
    (".attention.attention.v_bias", ".attention.attention.value.bias"),
    ("pos_conv_embed.conv.weight_g", "pos_conv_embed.conv.parametrizations.weight.original0"),
    ("pos_conv_embed.conv.weight_v", "pos_conv_embed.conv.parametrizations.weight.original1"),
)


def modern(state):
    """Names as today's classes have them: see RENAMES."""
    for old, new in RENAMES:
        state = {k.removesuffix(old) + new if k.endswith(old) else k: v for k, v in state.items()}
    return state


def model_config_from_weights(weights, heads=None, act=None, format="auto", config=None) -> dict:
    """{'modalities', 'model'} of the model that weights belong to, for build_model.

    Args:
      weights: path of a file or folder, or a state dict.
      heads: attention heads, a number or {'image': n, 'text': n}; needed where no config.json lies
        beside the weights.
      act: activation, a name or {'image': ..., 'text': ...}; needed likewise.
      config: the codebase's own config as a dict; by default what lies beside the file.
    Raises UserError for what neither weights nor config nor caller says, and where they disagree.
    """
    state, config, where = open_state(weights, config)
    name, prefix = formats.detect(state, where, format, config)
    return config_of(state, name, prefix, where, read_hints(config, name), heads, act)


def config_of(state, name, prefix, where, hints, heads, act):
    """model_config_from_weights after detection."""
    reader = Reader(state, prefix, where, hints, act, heads, is_clip=name.startswith("clip"))
    modalities, model = formats.find(name).config(reader)
    return {"modalities": modalities, "model": model}


def modality_names(cfg) -> dict:
    """{'image': name, 'text': name, 'audio': ..., 'video': ...}: the first modality with an encoder
    of that kind."""
    names = {}
    for m, c in cfg["modalities"].items():
        names.setdefault(KINDS.get(c["encoder"]), m)
    return names


def plain(cfg) -> dict:
    """A config as nested dicts."""
    return cfg.to_dict() if hasattr(cfg, "to_dict") else cfg


def import_weights(
    weights,
    format="auto",
    cfg=None,
    *,
    act=None,
    heads=None,
    config=None,
    allow_unused=(),
    allow_missing=(),
    resize_pos_embed=False,
) -> Imported:
    """Read weights of another codebase; every key is accounted for.

    Args:
      weights: path of a file or folder, or a state dict.
      format: a name in FORMATS, or 'auto'.
      cfg: config of the model that shall take them; by default the one that the weights belong to.
      act, heads, config: see model_config_from_weights; heads come from cfg where it is given.
      allow_unused: regexes of names in the file that may stay unused.
      allow_missing: regexes of their names or of our parameter paths that the file need not have.
      resize_pos_embed: resize position embeddings to cfg's number of positions.
    Raises UserError for keys unused or missing, wrong shapes, and an activation that is unknown or
    not cfg's.
    """
    state, config, where = open_state(weights, config)
    name, prefix = formats.detect(state, where, format, config)
    hints = read_hints(config, name)
    if cfg is None:
        cfg = config_of(state, name, prefix, where, hints, heads, act)
    cfg = plain(cfg)
    shapes = {k: v.shape for k, v in flatten_dict(abstract_params(cfg), sep="/").items()}
    check_act(cfg, name, where, hints, act)
    flat = read(
        state, name, prefix, where, cfg, shapes, allow_unused, allow_missing, resize_pos_embed
    )
    return assemble(flat, shapes, cfg, name)


def read(state, name, prefix, where, cfg, shapes, allow_unused, allow_missing, resize):
    """{'params/...': array, 'ema/...', 'queue/...'} with separate blocks."""
    dummies = unstack_flat(shapes_only(shapes))
    wanted = {f"{part}/{k}": v.shape for part in ("params", "ema") for k, v in dummies.items()}
    table = make_table(name, cfg, prefix)
    return engine.load(
        state, table, wanted, where, tuple(allow_unused), tuple(allow_missing), resize
    )


def make_table(name, cfg, prefix):
    """The format's table for this model. Raises UserError where the model lacks what the format is
    about."""
    names = modality_names(cfg)
    try:
        return formats.find(name).table(cfg, prefix, names)
    except KeyError as e:
        raise UserError(
            f"format {name}: the model has no {e.args[0]}, which these weights are for"
        ) from None


def assemble(flat, shapes, cfg, name) -> Imported:
    """Trees from flat paths."""
    parts = {"params": {}, "ema": {}, "queue": {}}
    for path, x in flat.items():
        part, _, rest = path.partition("/")
        parts[part][rest] = x
    if parts["ema"]:
        parts["ema"] = parts["params"] | parts["ema"]
    if parts["queue"] and "id" not in parts["queue"]:
        size = next(len(v) for v in parts["queue"].values() if v.ndim)
        parts["queue"]["id"] = np.full(size, EMPTY, np.int32)
    trees = {
        k: unflatten_dict(stack_flat(v, shapes), sep="/") if v else None for k, v in parts.items()
    }
    return Imported(trees["params"], trees["ema"], trees["queue"], cfg, name)


def check_act(cfg, name, where, hints, act):
    """The model's activations must be the weights'."""
    names = modality_names(cfg)
    for kind in formats.find(name).towers:
        m = names.get(kind)
        if m is None:
            continue
        theirs = settle_act(kind, act, hints, where, name.startswith("clip"))
        ours = {f"modalities.{m}.act": cfg["modalities"][m]["act"]}
        fusion = cfg["model"]["fusion"]
        if kind == "text" and name in ("albef", "bert", "roberta") and fusion["kind"] != "none":
            ours["model.fusion.act"] = fusion["act"]
        for key, value in ours.items():
            if value != theirs:
                raise UserError(
                    f"{where}: trained with activation {theirs}, but config.{key} is {value}"
                )


def abstract_params(cfg) -> dict:
    """Shapes of a model's parameters, without making them."""
    model = build_model(cfg)
    batch = {}
    for m, c in cfg["modalities"].items():
        kind = KINDS.get(c["encoder"])
        if kind == "image":
            batch[m] = jnp.zeros((1, *pair(c["size"]), 3), jnp.float32)
        elif kind == "text":
            batch[m] = jnp.zeros((1, c["max_length"]), jnp.int32)
        elif kind == "audio":
            batch[m] = jnp.zeros((1, round(c["sample_rate"] * c["seconds"])), jnp.float32)
        elif kind == "video":
            shape = (1, c["frames"], c["size"], c["size"], c["channels"])
            batch[m] = jnp.zeros(shape, jnp.float32)
        else:
            raise UserError(f"modality {m}: no weights format has an encoder {c['encoder']!r}")
    return jax.eval_shape(model.init, jax.random.key(0), batch)["params"]


def initialise_from(params, init_cfg, model_cfg):
    """Parameters with those of a weights file put in; what allow_missing lets pass keeps its value.

    Args:
      params: the model's initial parameters, scanned stacks or not; what takes their places lies
        on the devices as they do.
      init_cfg: config.init: path, format, act, allow_unused, allow_missing, resize_pos_embed.
      model_cfg: the whole config; `modalities` and `model` are read.

    A file of one tower needs the rest of the model in allow_missing; for DeiT in ALBEF's tower
    r'(encoder_text|project_.*|fuser|.*_head)/.*|temperature', and r'head[.].*' in allow_unused.
    """
    cfg = plain(model_cfg)
    flat = flatten_dict(params, sep="/")
    shapes = {k: v.shape for k, v in flat.items()}
    state, config, where = open_state(init_cfg["path"])
    name, prefix = formats.detect(state, where, init_cfg["format"] or "auto", config)
    check_act(cfg, name, where, read_hints(config, name), init_cfg.get("act") or None)
    found = read(
        state,
        name,
        prefix,
        where,
        cfg,
        shapes,
        init_cfg["allow_unused"],
        init_cfg["allow_missing"],
        init_cfg["resize_pos_embed"],
    )
    found = {k.removeprefix("params/"): v for k, v in found.items() if k.startswith("params/")}
    check_finite(found, where)
    kept = len(unstack_flat(shapes_only(shapes))) - len(found)
    log.info("%s: %d weights read, %d keep their initial values", where, len(found), kept)
    alone, stacks = group_layers(found, flat)
    flat |= {k: placed(v, flat[k]) for k, v in alone.items()}
    for k, layers in stacks.items():
        if len(layers) == len(flat[k]):
            flat[k] = placed(np.stack([layers[i] for i in range(len(layers))]), flat[k])
        else:  # the other layers keep their initial values
            rows = np.stack([layers[i] for i in sorted(layers)]).astype(flat[k].dtype)
            flat[k] = jnp.asarray(flat[k]).at[np.array(sorted(layers))].set(rows)
    return unflatten_dict(flat, sep="/")


def shapes_only(shapes) -> dict:
    """{path: array without memory} for {path: shape}."""
    return {k: np.broadcast_to(np.int8(0), s) for k, s in shapes.items()}


def check_finite(arrays, where):
    """Raise UserError for weights that would make every loss NaN from the first step on."""
    wrong = [k for k, v in arrays.items() if not np.isfinite(np.asarray(v, np.float32)).all()]
    if wrong:
        raise UserError(
            f"{where}: {len(wrong)} of {len(arrays)} weights are not finite, such as {min(wrong)}: "
            "the file is damaged, or of a run that diverged; take another"
        )


def export_weights(params, cfg, format, ema=None, queue=None) -> dict[str, np.ndarray]:
    """A state dict in another codebase's names; importing it again gives the same bits.

    Raises UserError where the format has no name for a parameter, or its model differs from this
    one.
    """
    cfg = plain(cfg)
    flat = {}
    for part, tree in (("params", params), ("ema", ema), ("queue", queue)):
        tree = unstack_flat(flatten_dict(tree, sep="/")) if tree else {}
        flat |= {f"{part}/{k}": np.asarray(v) for k, v in tree.items()}
    prefix = formats.find(format).prefix(cfg)
    state = engine.dump(flat, make_table(format, cfg, prefix), f"export to {format}")
    check_export(state, cfg, format, prefix)
    return state


# What does not change the model: how inputs are normalised, and how a factor starts.
FREE = {"mean", "std", "eps", "spec_mean", "spec_std", "seconds", "normalize_wave", "layer_scale"}


def check_export(state, cfg, format, prefix):
    """Would its readers build this model from the file? Weights alone do not show pooling,
    causality, epsilon."""
    names = modality_names(cfg)
    ours = {kind: cfg["modalities"][m] for kind, m in names.items() if kind}
    heads, acts = ({k: c[key] for k, c in ours.items()} for key in ("heads", "act"))
    sizes = {k: formats.find(format).sizes(ours[k]) for k in formats.find(format).towers}
    where = f"export to {format}"
    theirs = config_of(state, format, prefix, where, sizes, heads, acts)["modalities"]
    for kind, c in theirs.items():
        for key, value in c.items():
            mine = ours[kind].get(key, value)
            if key == "eot_id":
                mine = end_told(mine, ours[kind]["vocab_size"], format)
            if key not in FREE and mine != value:
                raise UserError(
                    f"export to {format}: modalities.{names[kind]}.{key} is {mine!r}, "
                    f"that format's model has {value!r}"
                )


def end_told(eot_id, vocab_size, format):
    """-1 where readers of a format find the end of a text that we find by `eot_id`, else eot_id.

    By weights alone they take the largest id (-1). CLIP's config.json beside them names another
    one, except for 2, by which older files mean the largest id.
    """
    named = format == "clip_hf" and eot_id != 2
    return -1 if named or eot_id == vocab_size - 1 else eot_id
