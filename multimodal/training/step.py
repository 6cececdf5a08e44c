"""The train state, and one pure step: objectives -> gradient -> update. Nothing here knows what is
trained.
"""

import zlib

import jax
import jax.numpy as jnp
import optax
from flax import struct

from multimodal.nn.augment import augment
from multimodal.nn.model import Net, bounded, example_keys
from multimodal.objectives.queue import empty_queue, enqueue
from multimodal.schedules import Schedule, value_at
from multimodal.training.health import choose, judge, new_health
from multimodal.training.optim import CLASSIFIER, players
from multimodal.training.sharding import replicated


class State(struct.PyTreeNode):
    """All that a run is: with the config, the data and a step, everything else follows.

    Attributes:
      step: scalar int32, steps done.
      params: the model's parameters.
      ema: the teacher's parameters, or None.
      opt: the optimizer's state.
      queue: the momentum queue, or None.
      health: scalars that tell of steps that were left out, see health.py.
      rng: uint32 key data of the seed, from which all draws of a step follow. Here, and no constant
        of the program, so that another seed runs the same compiled step.
    """

    step: jax.Array
    params: dict
    ema: dict | None
    opt: tuple
    queue: dict | None
    health: dict
    rng: jax.Array


def seed_key(config):
    """The PRNG key of the config's seed, as data (uint32)."""
    return jax.random.key_data(jax.random.key(config.seed))


def new_state(config, params, tx, rng=None) -> State:
    """The state of step 0. rng: key data instead of the config's seed."""
    rng = seed_key(config) if rng is None else rng
    q = config.queue
    queue = None
    if q.size:
        dims = {m: _embed_dim(config, m) for m in q.modalities}
        queue = empty_queue(q.size, dims, jax.random.fold_in(jax.random.wrap_key_data(rng), 1))
    params = bounded(params, config.model.temperature)
    # A copy: the step donates its state, and one buffer cannot be given away twice.
    ema = jax.tree.map(jnp.copy, params) if config.ema.decay else None
    return State(jnp.zeros((), jnp.int32), params, ema, tx.init(params), queue, new_health(), rng)


def _embed_dim(config, modality):
    m = config.modalities[modality]
    return config.model.embed_dim if m.proj else m.width


def make_loss(config, model, objectives):
    """loss(params, state, batch) -> (total, (metrics, teacher's embeddings)).

    Each objective's randomness is folded in by its name, so that adding one changes no other's
    draws.
    """
    drops = any(
        m.get("dropout", 0) or m.get("attention_dropout", 0) for m in config.modalities.values()
    )
    drops = drops or config.model.fusion.dropout or config.model.fusion.attention_dropout
    original = config.mode == "albef_original"
    gone = Schedule.parse(config.modality_dropout, config.steps, "config.modality_dropout")

    def loss(params, state, batch):
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        keys = jax.random.split(rng)
        if not isinstance(gone, int | float) or gone:
            drop = jax.random.fold_in(rng, zlib.crc32(b"modality_dropout"))
            batch = drop_modalities(batch, config.modalities, value_at(gone, state.step), drop)
        net = Net(
            model,
            params,
            state.ema,
            state.queue,
            rng=keys[0] if drops else None,
            teacher_rng=keys[1] if drops and original else None,
            chunks=config.micro_batches,
        )
        batch = augment(net, batch, config.modalities, rng)
        out = net.encode(batch)
        if state.ema is not None:
            out["teacher"] = net.teacher.encode(batch)  # compiled away where no objective uses it
        total, metrics = jnp.zeros(()), {}
        for o in objectives:
            own = jax.random.fold_in(rng, zlib.crc32(o.name.encode()))
            value, weight, extra = in_groups(
                config.local_groups, o, net, out, batch, own, state.step
            )
            total = total + weight * value
            metrics |= {f"{o.name}/{k}": v for k, v in {"loss": value, **extra}.items()}
        metrics |= {"train/loss": total, "train/temperature": 1 / net.scale()}
        return total, (metrics, out.get("teacher"))

    return loss


def in_groups(groups, objective, net, out, batch, rng, step):
    """An objective on `groups` contiguous parts of the batch, each blind to the others: the means
    of losses and metrics, as data-parallel processes of the original ALBEF have them.
    """
    if groups == 1:
        return objective(net, out, batch, rng, step)
    size = len(next(iter(batch.values()))) // groups

    def part(g):
        return jax.tree.map(lambda v: v[g * size : (g + 1) * size], (out, batch))

    found = [objective(net, *part(g), rng, step) for g in range(groups)]
    loss, _, metrics = jax.tree.map(lambda *v: sum(v) / groups, *found)
    return loss, found[0][1], metrics


def make_step(config, model, objectives, tx):
    """step(state, batch) -> (state, metrics), to be jitted with a donated state.

    The teacher moves first, towards the parameters that the last step left (ALBEF's order), then
    come loss, update, temperature bounds and queue. Of a step that must not count (health.py) all
    stays as it was, but for the step's number.
    """
    loss = make_loss(config, model, objectives)

    def step(state: State, batch):
        before = state
        if state.ema is not None:
            ema = optax.incremental_update(state.params, state.ema, 1 - config.ema.decay)
            state = state.replace(ema=ema)
        grads, (metrics, teacher) = jax.grad(loss, has_aux=True)(state.params, state, batch)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = bounded(optax.apply_updates(state.params, updates), config.model.temperature)
        queue = state.queue
        if queue is not None:
            names = config.queue.modalities
            keep = jnp.stack([teacher[m].present for m in names]).all(0)
            queue = enqueue(queue, {m: teacher[m].embed for m in names}, batch["id"], keep)
        metrics |= gradient_norms(grads, config.init.freeze)
        good, health = judge(
            state.health, metrics["train/loss"], metrics["train/grad_norm"], config.skip.spike
        )
        after = choose(
            good,
            (params, state.ema, opt, queue),
            (before.params, before.ema, before.opt, before.queue),
        )
        metrics |= {"train/skipped": health["skipped"], "train/skipped_in_row": health["in_row"]}
        return State(state.step + 1, *after, health, state.rng), metrics

    return step


def lower_step(step, state, batch):
    """The jitted step, lowered for arrays or shapes of a state and a batch: the state is donated,
    and comes out laid out as it went in, so that it can go in again; metrics are everywhere.
    """
    layout = jax.tree.map(lambda x: x.sharding, state)
    everywhere = replicated(jax.tree.leaves(layout)[0].mesh)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout, everywhere))
    return jitted.lower(state, batch)


def gradient_norms(grads, freeze=False) -> dict:
    """The gradient's norm, and where there is a critic each player's own.

    freeze: of classifiers alone, so that a linear probe has no backward pass through the towers.
    """
    if freeze:
        grads = {k: v for k, v in grads.items() if CLASSIFIER.fullmatch(k)}
    labels = jax.tree.leaves(players(grads))
    norms = {"train/grad_norm": optax.tree.norm(grads)}
    if "critic" in labels:
        for player in ("main", "critic"):
            mine = [g for g, p in zip(jax.tree.leaves(grads), labels, strict=True) if p == player]
            norms[f"train/grad_norm_{player}"] = optax.tree.norm(mine)
    return norms


def drop_modalities(batch, modalities, rate, rng):
    """The batch with each modality of each example missing with probability `rate`; of those that
    an example has, one always stays. Keyed by example.
    """
    names = [m for m in modalities if m in batch]
    size = len(batch[names[0]])
    keys = example_keys(rng, batch.get("index", jnp.arange(size)))
    draws = jax.vmap(lambda k: jax.random.uniform(k, (len(names),)))(keys)
    there = jnp.stack([batch.get(f"{m}_present", jnp.ones(size, bool)) for m in names], axis=1)
    draws = jnp.where(there, draws, -1.0)
    keep = there & ((draws >= rate) | (draws == draws.max(1, keepdims=True)))
    return batch | {f"{m}_present": keep[:, i] for i, m in enumerate(names)}
