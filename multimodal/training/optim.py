"""AdamW with a learning rate and a weight decay for each parameter by its path."""

import re

import jax
import optax

from multimodal.errors import UserError
from multimodal.schedules import Schedule, value_at
from multimodal.training.sharding import path_of

# (regex of the whole parameter path, learning-rate factor, weight-decay factor); the first match
# wins.
RULES = {
    # Matrices and token embeddings decay; biases, norms, positions, learned tokens, the temperature
    # do not.
    "corrected": (
        (
            r".*/(bias|scale|pos_embed|type_embed|class_token|probe)|temperature|logit_bias",
            1.0,
            0.0,
        ),
        (r".*", 1.0, 1.0),
    ),
    # The original spares biases and norms only: its no_weight_decay list is never found
    # (optim_factory.py:25-37).
    "albef_original": ((r".*/(bias|scale)", 1.0, 0.0), (r".*", 1.0, 1.0)),
}


def factors(params, rules):
    """Two pytrees like params, learning-rate and weight-decay factors, from the first rule that
    matches.

    Raises UserError for a parameter that no rule matches and for a rule that matches no parameter
    first.
    """
    used = set()
    for rule in rules:
        if not (isinstance(rule, tuple) and len(rule) == 3 and isinstance(rule[0], str)):
            raise UserError(
                f"config.optim.rules: {rule!r} is no (path regex, lr factor, decay factor)"
            )

    def find(key_path, _):
        path = path_of(key_path)
        for i, (pattern, rate, decay) in enumerate(rules):
            if re.fullmatch(pattern, path):
                used.add(i)
                return rate, decay
        raise UserError(
            f"config.optim.rules: no rule matches {path}; end the list with ('.*', 1.0, 1.0)"
        )

    pairs = jax.tree_util.tree_map_with_path(find, params)
    unused = [rule[0] for i, rule in enumerate(rules) if i not in used]
    if unused:
        raise UserError(
            "config.optim.rules: matches no parameter (or none that an earlier rule left): "
            + ", ".join(unused)
        )
    is_pair = lambda x: isinstance(x, tuple)  # noqa: E731
    return tuple(jax.tree.map(lambda p, i=i: p[i], pairs, is_leaf=is_pair) for i in (0, 1))


def learning_rate(config):
    """step -> learning rate, from config.optim.lr (a number or a schedule)."""
    schedule = Schedule.parse(config.optim.lr, config.steps)
    return lambda step: value_at(schedule, step)


def make_optimizer(config, params) -> optax.GradientTransformation:
    """Clip by global norm, AdamW (decoupled decay, Loshchilov & Hutter 2019), rates and decays by
    path.

    A rate factor of 0 freezes a parameter: it has no moments and no update.
    """
    o = config.optim
    rules = tuple(o.rules) or RULES[config.mode]
    rates, decays = factors(params, rules)
    rate = learning_rate(config)

    def decay_and_scale(updates, params):
        return jax.tree.map(
            lambda u, p, r, d: (
                u if isinstance(u, optax.MaskedNode) else r * (u + o.weight_decay * d * p)
            ),
            updates,
            params,
            rates,
            decays,
            is_leaf=lambda x: isinstance(x, optax.MaskedNode),
        )

    labels = jax.tree.map(lambda r: "train" if r else "freeze", rates)
    adam = optax.scale_by_adam(b1=o.b1, b2=o.b2, eps=o.eps)
    return optax.chain(
        optax.partition({"train": optax.identity(), "freeze": optax.set_to_zero()}, labels),
        optax.clip_by_global_norm(o.clip) if o.clip else optax.identity(),
        optax.partition({"train": adam, "freeze": optax.set_to_zero()}, labels),
        optax.stateless(decay_and_scale),
        optax.scale_by_schedule(lambda step: -rate(step)),
    )
