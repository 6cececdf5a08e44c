"""AdamW with a learning rate and a weight decay for each parameter by its path, and turns for the
players of an adversarial game.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
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
            r".*/(bias|b_\d+|scale\w*|pos_embed|type_embed|\w+_token|\w+_tokens|standin_\w+"
            r"|probe)|temperature|logit_bias",
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
    schedule = Schedule.parse(config.optim.lr, config.steps, "config.optim.lr")
    if not isinstance(schedule, Schedule | int | float):
        raise UserError(f"config.optim.lr is {schedule!r:.80}: give a number or a schedule")
    return lambda step: value_at(schedule, step)


CRITIC = re.compile(r"(critic|discriminator)/.*")  # the parameters of the critics' player
CLASSIFIER = re.compile(r"classifier_.*")  # what a linear probe trains


def players(params, rates=None):
    """A pytree like params of 'main', 'critic' or, where the rate factor is 0, 'freeze'."""

    def label(key_path, _, rate=1.0):
        if not rate:
            return "freeze"
        return "critic" if CRITIC.fullmatch(path_of(key_path)) else "main"

    trees = (params,) if rates is None else (params, rates)
    return jax.tree_util.tree_map_with_path(label, *trees)


def make_optimizer(config, params) -> optax.GradientTransformation:
    """Clip by global norm, AdamW (decoupled decay, Loshchilov & Hutter 2019), rates and decays by
    path.

    A rate factor of 0 freezes a parameter: it has no moments and no update. The critics of an
    adversarial game have a norm, moments and a rate of their own (config.optim.critic) and, with
    `steps` k, turns: k steps of the critics, then one of everything else.
    """
    o, critic = config.optim, config.optim.critic
    rules = tuple(o.rules) or RULES[config.mode]
    rates, decays = factors(params, rules)
    if config.init.freeze:
        rates = _only(CLASSIFIER, rates)
    rate = learning_rate(config)

    def player(b1, factor, weight_decay):
        return optax.chain(
            optax.clip_by_global_norm(o.clip) if o.clip else optax.identity(),
            optax.scale_by_adam(b1=b1, b2=o.b2, eps=o.eps),
            optax.stateless(_decay_and_scale(rates, decays, factor, weight_decay)),
        )

    turns = {
        "main": player(o.b1, 1.0, o.weight_decay),
        "critic": player(critic.b1, critic.lr, critic.weight_decay),
    }
    labels = players(params, rates)
    if critic.steps and {"main", "critic"} <= set(jax.tree.leaves(labels)):
        cycle = critic.steps + 1
        turns["main"] = on_turn(turns["main"], lambda n: n % cycle == critic.steps)
        turns["critic"] = on_turn(turns["critic"], lambda n: n % cycle < critic.steps)
    return optax.chain(
        optax.partition(turns | {"freeze": optax.set_to_zero()}, labels),
        optax.scale_by_schedule(lambda step: -rate(step)),
    )


def _only(pattern, rates):
    """Rates, 0 but for the paths that match."""

    def keep(key_path, rate):
        return rate if pattern.fullmatch(path_of(key_path)) else 0.0

    kept = jax.tree_util.tree_map_with_path(keep, rates)
    if not any(jax.tree.leaves(kept)):
        raise UserError(
            "config.init.freeze: nothing is left to train: give config.model.classifiers one"
        )
    return kept


def _decay_and_scale(rates, decays, factor, weight_decay):
    def apply(updates, params):
        return jax.tree.map(
            lambda u, p, r, d: (
                u if isinstance(u, optax.MaskedNode) else factor * r * (u + weight_decay * d * p)
            ),
            updates,
            params,
            rates,
            decays,
            is_leaf=lambda x: isinstance(x, optax.MaskedNode),
        )

    return apply


class TurnState(NamedTuple):
    """Steps so far, of all players, and the state of this one."""

    count: jax.Array
    inner: tuple


def on_turn(tx, turn) -> optax.GradientTransformation:
    """tx in the steps n where turn(n) holds; in the others no update, and its state stays."""

    def init(params):
        return TurnState(jnp.zeros((), jnp.int32), tx.init(params))

    def update(updates, state, params=None):
        mine = turn(state.count)
        new, inner = tx.update(updates, state.inner, params)
        new = jax.tree.map(lambda u: jnp.where(mine, u, 0), new)
        inner = jax.tree.map(lambda a, b: jnp.where(mine, a, b), inner, state.inner)
        return new, TurnState(state.count + 1, inner)

    return optax.GradientTransformation(init, update)
