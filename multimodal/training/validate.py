"""Configs that cannot work, told before anything is built."""

import inspect
import math

import jax

from multimodal import objectives
from multimodal.config import flatten, pair
from multimodal.errors import UserError
from multimodal.nn.attention import KERNELS
from multimodal.nn.encoders import ENCODERS
from multimodal.nn.fusion import FUSIONS
from multimodal.nn.joint import STAGES
from multimodal.nn.layers import ACTIVATIONS, KEPT, POLICIES, REMAT, is_remat
from multimodal.nn.model import JOINT
from multimodal.nn.operators import OPERATORS
from multimodal.nn.quantize import TYPES
from multimodal.registry import nearest
from multimodal.training.bounds import check_bounds
from multimodal.training.optim import RULES
from multimodal.training.sharding import check_rules

POOLS = {"vit": ("class", "mean", "map", "none"), "text": ("class", "eot", "last", "mean", "none")}
IMITATE = {"discriminator", "decoder", "posterior"}  # of (h_m, z), as long as all features
READS = {  # the transform of ours whose results an encoder takes
    "vit": "image", "text": "text", "spectrogram": "audio", "whisper": "audio",
    "wav2vec2": "audio", "video": "video", "frames": "video",
}  # fmt: skip
NEEDS = {
    "vit": ("size", "patch"),
    "text": ("positions", "max_length", "vocab_size"),
    "wav2vec2": ("conv_dims", "conv_kernels", "conv_strides", "position_groups"),
}
HEADS = ("match", "mlm", "retrieve", "critic", *sorted(IMITATE))


def validate(config):
    """Raise UserError for the first thing in a config that cannot work; says what, where, how."""
    for key, value in flatten(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config.{key} is {value}: give a finite number")
    check_bounds(config)
    one_of("mode", config.mode, RULES)
    check_groups(config)
    check_rules(config.mesh.rules)
    if not config.modalities:
        raise UserError("config.modalities is empty: give at least one tower")
    if JOINT in config.modalities:
        raise UserError(f"config.modalities: {JOINT!r} is what h_m is called: take another name")
    for name, tower in config.modalities.items():
        check_tower(f"modalities.{name}", tower, config.model)
    check_model(config)
    for goal in objectives.build(config, {}):
        check_objective(goal, config)
    check_adversaries(config)
    check_teacher(config)


def check_groups(config):
    """Parts of the batch that see only themselves: in the original's mode alone."""
    groups = config.local_groups
    if groups < 1 or config.batch_size % groups:
        raise UserError(
            f"config.local_groups is {groups}: give 1, or what divides batch_size "
            f"{config.batch_size}"
        )
    size, k = config.batch_size // groups, config.micro_batches
    if groups > 1 and k > 1 and size % k:
        raise UserError(
            f"config.local_groups {groups} makes parts of {size} examples, which micro_batches {k} "
            "does not divide: change either"
        )
    if groups > 1 and config.mode != "albef_original":
        raise UserError(
            "config.local_groups hides most negatives from each other, as the original does: it "
            "needs config.mode 'albef_original'"
        )


def one_of(key, value, known):
    """Raise UserError unless the value is known."""
    if value not in known:
        raise UserError(
            f"config.{key}: unknown {value!r}{nearest(value, known)}; known: {', '.join(known)}"
        )


def check_block(where, c):
    """Sizes and switches of a stack of blocks, as far as the config has them: a fork's encoder may
    have others.
    """
    for key in ("width", "heads", "mlp_dim", "depth", "unroll"):
        if c.get(key, 1) < 1:
            raise UserError(f"config.{where}.{key} is {c[key]}: give 1 or more")
    if "heads" in c and c.width % c.heads:
        raise UserError(f"config.{where}: width {c.width} does not divide over {c.heads} heads")
    one_of(f"{where}.act", c.get("act", "gelu"), ACTIVATIONS)
    if c.get("unroll", 1) > 1 and not c.get("scan"):
        raise UserError(
            f"config.{where}.unroll is {c.unroll}, but without scan there is no loop: set "
            f"config.{where}.scan=True or leave unroll at 1"
        )
    if not is_remat(c.get("remat", "none")):
        raise UserError(
            f"config.{where}.remat: unknown {c.remat!r}; known: none, "
            f"{', '.join([*POLICIES, *REMAT])}, or names of {', '.join(KEPT)} joined by +"
        )
    one_of(f"{where}.norm", c.get("norm", "pre"), ("pre", "post"))


def check_wav2vec2(where, c):
    """The convolutions of a wav2vec2."""
    dims, kernels, strides = c.conv_dims, c.conv_kernels, c.conv_strides
    if not len(dims) == len(kernels) == len(strides) > 0 or min(*dims, *kernels, *strides) < 1:
        raise UserError(
            f"config.{where}: conv_dims, conv_kernels and conv_strides give one number, 1 or more, "
            f"for each layer; they are {dims}, {kernels} and {strides}"
        )
    if c.position_groups < 1 or c.width % c.position_groups:
        raise UserError(
            f"config.{where}.position_groups {c.position_groups} does not divide width {c.width}"
        )


def check_tower(where, c, model):
    """One modality's tower. An encoder by import path answers for itself."""
    if c.encoder not in ENCODERS:
        if ":" not in c.encoder:
            one_of(f"{where}.encoder", c.encoder, ENCODERS)
        return
    check_block(where, c)
    for key in NEEDS.get(c.encoder, ()):
        if key not in c:
            raise UserError(f"config.{where}: the encoder {c.encoder!r} needs {key!r}: set it")
    given = c.get("transform")
    wanted = READS.get(c.encoder, given)
    if given in READS.values() and given != wanted:
        raise UserError(
            f"config.{where}.transform is {given!r}, but the encoder {c.encoder!r} reads "
            f"what {wanted!r} gives: change either"
        )
    if c.encoder == "wav2vec2":
        check_wav2vec2(where, c)
    for key in ("patch", "stride"):
        if c.get(key, ()) != () and min(pair(c[key])) < 1:
            raise UserError(f"config.{where}.{key} is {c[key]}: give 1 or more")
    one_of(f"{where}.pool", c.get("pool"), POOLS.get(c.encoder, (c.get("pool"),)))
    if c.encoder == "vit" and not all(
        n > 0 and p > 0 and n % p == 0 for n, p in zip(pair(c.size), pair(c.patch))
    ):
        raise UserError(f"config.{where}: size {c.size} is no multiple of patch {c.patch}")
    one_of(f"{where}.stem", c.get("stem", "patch"), ("patch", "conv"))
    down, across = pair(c.get("patch", 2))
    if c.get("stem") == "conv" and (down != across or down < 2 or down & (down - 1)):
        raise UserError(
            f"config.{where}.patch is {c.patch}: stem 'conv' halves the picture, give 2, 4, 8, ..."
        )
    if c.encoder != "vit" and not isinstance(c.get("size", 0), int):
        raise UserError(f"config.{where}.size is {c.size}: only images have a height and a width")
    if c.encoder == "text" and c.positions and c.positions < c.max_length:
        raise UserError(
            f"config.{where}: positions {c.positions} are fewer than max_length {c.max_length}"
        )
    if not c.proj and c.width != model.embed_dim:
        raise UserError(
            f"config.{where}: without proj its width {c.width} must be model.embed_dim "
            f"{model.embed_dim}"
        )


def check_model(config):
    """Fusion, heads and temperature."""
    m = config.model
    one_of("model.fusion.kind", m.fusion.kind, ("none", *FUSIONS))
    one_of("model.dtype", m.dtype, ("float32", "bfloat16", "float64"))
    if m.dtype == "float64" and not jax.config.jax_enable_x64:
        raise UserError("config.model.dtype 'float64' needs the environment's JAX_ENABLE_X64=1")
    one_of("model.attention_kernel", m.attention_kernel, KERNELS)
    one_of("model.quantize", m.quantize, ("", *TYPES))
    if m.fusion.kind == JOINT:
        check_joint(config)
    elif m.fusion.kind != "none":
        check_block("model.fusion", m.fusion)
        one_of("model.mlm_modality", m.mlm_modality, config.modalities)
        if len(config.modalities) < 2:
            raise UserError("config.model.fusion.kind 'cross_attention' needs two modalities")
        query = config.modalities[m.mlm_modality]
        if query.width != m.fusion.width:
            raise UserError(
                f"config.model.fusion.width {m.fusion.width} must be that of its query, "
                f"modalities.{m.mlm_modality}.width {query.width}"
            )
    for head in m.heads:
        one_of("model.heads", head, HEADS)
    if "match" in m.heads and m.fusion.kind in ("none", JOINT):
        raise UserError("config.model.heads: 'match' needs model.fusion.kind 'cross_attention'")
    for head in ("retrieve", *sorted(IMITATE)):
        if head in m.heads and m.fusion.kind != JOINT:
            raise UserError(f"config.model.heads: {head!r} needs model.fusion.kind 'joint'")
    check_classifiers(config)
    if "mlm" in m.heads:
        one_of("model.mlm_modality", m.mlm_modality, config.modalities)
    t = m.temperature
    one_of("model.temperature.kind", t.kind, ("log_scale", "scalar", "none"))
    if t.kind != "none" and not 0 < t.min <= t.init <= t.max:
        raise UserError(
            f"config.model.temperature: min {t.min}, init {t.init}, max {t.max}: "
            "wanted 0 < min <= init <= max"
        )


def check_joint(config):
    """Stage and operator of the joint fusion, and what they need of the towers."""
    f, where = config.model.fusion, "config.model.fusion"
    check_block("model.fusion", f)
    one_of("model.fusion.stage", f.stage, STAGES)
    one_of("model.fusion.operator", f.operator, OPERATORS.keys() | {"attention"})
    one_of("model.fusion.form", f.form, ("matrix", "vector", "scalar"))
    if f.query:
        one_of("model.fusion.query", f.query, config.modalities)
        if f.operator != "attention":
            raise UserError(f"{where}.query needs operator 'attention', not {f.operator!r}")
    if f.norm != "pre":
        raise UserError(f"{where}.norm is {f.norm!r}: the joint fusion has 'pre' only")
    for key in ("inner", "rank"):
        if f[key] < 1:
            raise UserError(f"{where}.{key} is {f[key]}: give 1 or more")
    if f.bottleneck and (f.operator != "concat" or f.stage == "late"):
        raise UserError(f"{where}.bottleneck needs operator 'concat', stage 'early' or 'hybrid'")
    for m, tower in config.modalities.items():
        if f.stage == "hybrid" and tower.get("depth", f.depth) < f.depth:
            raise UserError(
                f"{where}.depth {f.depth}: at the stage 'hybrid' each tower gives so many of its "
                f"blocks, and modalities.{m} has {tower.depth}"
            )
        pooled = f.stage == "late" or IMITATE & set(config.model.heads)
        if pooled and tower.get("pool") == "none":
            raise UserError(
                f"{where}: the stage 'late' and the heads {', '.join(sorted(IMITATE))} need "
                f"modalities.{m}.pool other than 'none'"
            )
    room = sum(tower.get("width", 0) for tower in config.modalities.values())
    if IMITATE & set(config.model.heads) and room < f.width + ("posterior" in config.model.heads):
        raise UserError(
            f"{where}.width {f.width} leaves no room for noise in the {room} features of all "
            "modalities, which (h_m, z) imitates"
        )


def check_classifiers(config):
    """What each classifier reads."""
    known = {"of": str, "classes": int, "target": str, "multi": bool}
    for name, c in config.model.classifiers.items():
        where = f"config.model.classifiers.{name}"
        if set(c) != set(known) or any(type(c[k]) is not t for k, t in known.items()):
            raise UserError(f"{where} is {dict(c)}: give of, classes, target and multi")
        if c.of == JOINT and config.model.fusion.kind != JOINT:
            raise UserError(f"{where}.of is 'joint': set config.model.fusion.kind to 'joint'")
        if c.of != JOINT:
            one_of(f"model.classifiers.{name}.of", c.of, config.modalities)
            if config.modalities[c.of].get("pool") == "none":
                raise UserError(f"{where}.of: modalities.{c.of}.pool must not be 'none'")
        if c.classes < 1 or not c.target.startswith("label"):
            raise UserError(f"{where}: classes must be 1 or more, target 'label' or 'label_...'")


def check_adversaries(config):
    """Both players of a game are there and play the same one."""
    goals = objectives.build(config, {})
    by = {goal.fn.__name__: goal for goal in goals}
    for a, b in (("generator", "discriminator"), ("modality_confusion", "modality_critic")):
        if a in by and b not in by:
            raise UserError(f"config.objectives has {a!r} but no {b!r} to play against: add it")
    if "generator" in by and "discriminator" in by:
        kinds = {n: by[n].kwargs.get("kind", "bce") for n in ("generator", "discriminator")}
        if len(set(kinds.values())) > 1:
            raise UserError(
                f"config.objectives: generator and discriminator differ in kind: {kinds}"
            )
        if by["generator"].kwargs.get("reconstruction") and "decoder" not in config.model.heads:
            raise UserError(
                "config.objectives: reconstruction needs the head 'decoder' in config.model.heads"
            )
    if config.init.freeze and "classification" not in by:
        raise UserError("config.init.freeze trains classifiers: add the objective 'classification'")


def check_objective(goal, config):
    """Modalities, heads and teacher that an objective uses."""
    where = f"config.objectives.{goal.name}"
    defaults = inspect.signature(goal.fn).parameters
    for key in [k for k in ("a", "b", "context") if k in defaults]:
        m = goal.kwargs.get(key, defaults[key].default)
        if m == JOINT and "retrieve" in config.model.heads:
            continue
        if m and m not in config.modalities:
            raise UserError(
                f"{where}.{key}: no modality {m!r}{nearest(m, config.modalities)}; "
                f"there are {', '.join(config.modalities)}: set {where}.{key} to one of them"
            )
        if m and config.modalities[m].get("pool") == "none":
            raise UserError(f"{where} compares embeddings: modalities.{m}.pool must not be 'none'")
    for head in getattr(goal.fn, "needs", ()):
        if head == "classifiers" and not config.model.classifiers:
            raise UserError(f"{where} needs config.model.classifiers: give it one")
        if head == JOINT and config.model.fusion.kind != JOINT:
            raise UserError(f"{where} needs config.model.fusion.kind 'joint'")
        if head not in (*config.model.heads, "classifiers", JOINT):
            raise UserError(f"{where} needs the head {head!r}: add it to config.model.heads")
    if goal.kwargs.get("momentum") and not config.ema.decay:
        raise UserError(f"{where}.momentum needs a teacher: set config.ema.decay, say to 0.995")


def check_teacher(config):
    """The EMA copy and the queue of its embeddings."""
    if config.eval.use_ema and not config.ema.decay:
        raise UserError("config.eval.use_ema needs a teacher: set config.ema.decay")
    if config.queue.size and not config.ema.decay:
        raise UserError("config.queue.size: a queue holds a teacher's embeddings: set ema.decay")
    if config.queue.size:
        for m in config.queue.modalities:
            one_of("queue.modalities", m, config.modalities)
