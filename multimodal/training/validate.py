"""Configs that cannot work, told before anything is built."""

from multimodal import objectives
from multimodal.errors import UserError
from multimodal.nn.encoders import ENCODERS
from multimodal.nn.fusion import FUSIONS
from multimodal.nn.layers import ACTIVATIONS, REMAT
from multimodal.registry import nearest
from multimodal.training.optim import RULES

POOLS = {"vit": ("class", "mean", "map", "none"), "text": ("class", "eot", "last", "mean", "none")}


def validate(config):
    """Raise UserError for the first thing in a config that cannot work; says what, where, how."""
    for key in ("steps", "batch_size", "micro_batches", "log_every", "save_every", "keep"):
        if config[key] < 1:
            raise UserError(f"config.{key} is {config[key]}: give 1 or more")
    if config.seed < 0 or config.eval_every < 0 or config.eval.batch_size < 1:
        raise UserError("config: seed and eval_every must be 0 or more, eval.batch_size 1 or more")
    one_of("mode", config.mode, RULES)
    if not config.modalities:
        raise UserError("config.modalities is empty: give at least one tower")
    for name, tower in config.modalities.items():
        check_tower(f"modalities.{name}", tower, config.model)
    check_model(config)
    for goal in objectives.build(config, {}):
        check_objective(goal, config)
    check_teacher(config)


def one_of(key, value, known):
    """Raise UserError unless the value is known."""
    if value not in known:
        raise UserError(
            f"config.{key}: unknown {value!r}{nearest(value, known)}; known: {', '.join(known)}"
        )


def check_block(where, c):
    """Sizes and switches that every stack of blocks has."""
    for key in ("width", "heads", "mlp_dim", "depth"):
        if c[key] < 1:
            raise UserError(f"config.{where}.{key} is {c[key]}: give 1 or more")
    if c.width % c.heads:
        raise UserError(f"config.{where}: width {c.width} does not divide over {c.heads} heads")
    one_of(f"{where}.act", c.act, ACTIVATIONS)
    one_of(f"{where}.remat", c.remat, ("none", *REMAT))
    one_of(f"{where}.norm", c.get("norm", "pre"), ("pre", "post"))
    for key in ("dropout", "attention_dropout"):
        if not 0 <= c[key] < 1:
            raise UserError(f"config.{where}.{key} is {c[key]}: give a share in [0, 1)")


def check_tower(where, c, model):
    """One modality's tower. An encoder by import path answers for itself."""
    if c.encoder not in ENCODERS:
        if ":" not in c.encoder:
            one_of(f"{where}.encoder", c.encoder, ENCODERS)
        return
    check_block(where, c)
    one_of(f"{where}.pool", c.pool, POOLS.get(c.encoder, (c.pool,)))
    if c.encoder == "vit" and (c.size < 1 or c.patch < 1 or c.size % c.patch):
        raise UserError(f"config.{where}: size {c.size} is no multiple of patch {c.patch}")
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
    if m.fusion.kind != "none":
        check_block("model.fusion", m.fusion)
        query = config.modalities.get(m.mlm_modality)
        if query is not None and query.width != m.fusion.width:
            raise UserError(
                f"config.model.fusion.width {m.fusion.width} must be that of its query, "
                f"modalities.{m.mlm_modality}.width {query.width}"
            )
    for head in m.heads:
        one_of("model.heads", head, ("match", "mlm"))
    if "match" in m.heads and m.fusion.kind == "none":
        raise UserError("config.model.heads: 'match' needs a fusion: set model.fusion.kind")
    if "mlm" in m.heads:
        one_of("model.mlm_modality", m.mlm_modality, config.modalities)
    t = m.temperature
    one_of("model.temperature.kind", t.kind, ("log_scale", "scalar", "none"))
    if t.kind != "none" and not 0 < t.min <= t.init <= t.max:
        raise UserError(
            f"config.model.temperature: min {t.min}, init {t.init}, max {t.max}: "
            "wanted 0 < min <= init <= max"
        )


def check_objective(goal, config):
    """Modalities, heads and teacher that an objective uses."""
    where = f"config.objectives.{goal.name}"
    for key in ("a", "b", "context"):
        m = goal.kwargs.get(key)
        if m and m not in config.modalities:
            raise UserError(
                f"{where}.{key}: no modality {m!r}{nearest(m, config.modalities)}; "
                f"there are {', '.join(config.modalities)}"
            )
        if m and config.modalities[m].get("pool") == "none":
            raise UserError(f"{where} compares embeddings: modalities.{m}.pool must not be 'none'")
    for head in getattr(goal.fn, "needs", ()):
        if head not in config.model.heads:
            raise UserError(f"{where} needs the head {head!r}: add it to config.model.heads")
    if goal.kwargs.get("momentum") and not config.ema.decay:
        raise UserError(f"{where}.momentum needs a teacher: set config.ema.decay, say to 0.995")


def check_teacher(config):
    """The EMA copy and the queue of its embeddings."""
    if not 0 <= config.ema.decay < 1:
        raise UserError(f"config.ema.decay is {config.ema.decay}: give 0 (no teacher) to below 1")
    if config.eval.use_ema and not config.ema.decay:
        raise UserError("config.eval.use_ema needs a teacher: set config.ema.decay")
    if config.queue.size < 0 or (config.queue.size and not config.ema.decay):
        raise UserError("config.queue.size: a queue holds a teacher's embeddings: set ema.decay")
    if config.queue.size:
        for m in config.queue.modalities:
            one_of("queue.modalities", m, config.modalities)
