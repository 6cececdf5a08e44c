"""The laws that every objective in the registry obeys; a new objective is covered without writing a
test.

A fork keeps this file: `cases()` lists (objective, keywords), `Bench` evaluates one of them on any
batch.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np

from configs import common
from multimodal import objectives
from multimodal.nn.model import build_model
from multimodal.training.optim import make_optimizer
from multimodal.training.step import make_loss, make_step, new_state

VOCAB, LENGTH = 40, 6


# Keywords that the laws take instead of the defaults, and further cases of an objective.
KEYWORDS = {
    # Float32 holds five digits of a correlation only where no covariance is all but singular.
    "cca": [{"ridge": 0.3}],
    "classification": [{}, {"subsets": True}],
    "generator": [{}, {"kind": "hinge", "reconstruction": 1.0}],
    "discriminator": [{}, {"kind": "wasserstein", "r1": 0.5, "gradient_penalty": 1.0}],
}


def cases():
    """Every objective with its defaults, and with teacher, queue and soft targets where it knows
    them.
    """
    found = []
    for name, fn in sorted(objectives.OBJECTIVES.items()):
        found += [(name, kwargs) for kwargs in KEYWORDS.get(name, [{}])]
        known = inspect.signature(fn).parameters
        if "momentum" in known:
            bound = {"max_predictions": 2} if "max_predictions" in known else {}
            found.append((name, {"momentum": True, "alpha": 0.4, **bound}))
    return found


def tiny_config(name="contrastive", kwargs=None, **changes):
    """A model of two towers, fusion and both heads, small enough to compile in a second."""
    c = common.base()
    sizes = dict(width=16, depth=1, heads=2, mlp_dim=32)
    c.modalities.image = common.image_tower(size=8, patch=4, **sizes)
    c.modalities.text = common.text_tower(vocab_size=VOCAB, max_length=LENGTH, **sizes)
    c.model.embed_dim, c.model.heads = 8, ("match", "mlm")
    c.model.temperature.bias = -1.0
    c.model.fusion.kind = "cross_attention"
    c.model.fusion.update(sizes)
    needs = objectives.OBJECTIVES[name].needs if name in objectives.OBJECTIVES else ()
    if {"joint", "classifiers", "critic"} & set(needs):
        use_joint(c)
        if (kwargs or {}).get("reconstruction"):
            c.model.heads += ("decoder",)
        c.model.heads += tuple(h for h in needs if h in ("decoder", "posterior"))
    c.ema.decay, c.queue.size = 0.9, 12
    c.steps, c.batch_size = 6, 8
    c.objectives[name] = kwargs or {}
    c.update(changes)
    return c


def use_joint(c):
    """Make the model a joint fusion of both modalities with critics and two classifiers."""
    c.model.fusion.update(kind="joint", stage="late", operator="attention", depth=1)
    c.model.heads = ("retrieve", "critic", "discriminator")
    c.model.critic.update(hidden=16, layers=1, spectral=True)
    one = dict(of="joint", classes=3, target="label", multi=False)
    c.model.classifiers = {
        "one": one,
        "several": one | {"target": "label_several", "multi": True},
        "by_image": one | {"of": "image"},
    }


def tiny_batch(size=8, seed=0, same_id=False):
    """Random images and captions; two of them share an id, as captions of one photo do."""
    rng = np.random.default_rng(seed)
    text = rng.integers(5, VOCAB, (size, LENGTH)).astype(np.int32)
    text[:, 0] = 2
    text[1 % size, 3:] = 0
    ids = np.zeros(size) if same_id else np.arange(size) + 100
    ids[-1] = ids[0]
    return {
        "image": rng.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8),
        "text": text,
        "id": ids.astype(np.int32),
        "index": (np.arange(size) * 7 + 3).astype(np.int32),
        "image_present": np.ones(size, bool),
        "text_present": np.ones(size, bool),
        "label": rng.integers(-1, 3, size).astype(np.int32),
        "label_several": rng.integers(0, 2, (size, 3)).astype(np.uint8),
    }


class Bench:
    """One objective on a tiny model: loss, metrics and gradient of any batch."""

    def __init__(self, name, kwargs=None, **changes):
        self.config = c = tiny_config(name, kwargs, **changes)
        self.model = build_model(c)
        self.goals = objectives.build(c, {"mode": c.mode, "mask_id": 4, "keep_ids": (0, 2)})
        params = initial(self.model, tiny_batch())
        # Larger than at the start, so that what the law compares is not all but zero.
        rng = np.random.default_rng(9)
        params = jax.tree.map(lambda p: _noisy(p, 0.1, rng), params)
        params |= {"temperature": np.float32(np.log(10.0))}
        self.tx = make_optimizer(c, params)
        state = jax.jit(lambda p: new_state(c, p, self.tx))(params)
        ema = jax.tree.map(lambda p: _noisy(p, 0.02, rng), params)
        queue = state.queue
        if queue is not None:  # half full, one entry of an id that the batch has too
            ids = jnp.full_like(queue["id"], -1).at[:6].set(jnp.array([101, 7, 8, 9, 10, 11]))
            queue = queue | {"id": ids}
        self.state = state.replace(ema=ema, queue=queue, step=jnp.int32(3))
        loss = make_loss(c, self.model, self.goals)
        self._loss = loss
        self._grad = jax.jit(jax.value_and_grad(lambda p, s, b: loss(p, s, b)[0]))
        self._value = jax.jit(lambda p, s, b: loss(p, s, b)[0])  # compiles faster

    def __call__(self, batch, **changes):
        """(loss, gradient) of a batch at the bench's state with `changes`."""
        state = self.state.replace(**changes)
        return self._grad(state.params, state, batch)

    def loss(self, batch, **changes):
        """The loss alone."""
        state = self.state.replace(**changes)
        return self._value(state.params, state, batch)

    def metrics(self, batch):
        """The objectives' metrics of a batch."""
        run = jax.jit(lambda p, s, b: self._loss(p, s, b)[1][0])
        return run(self.state.params, self.state, batch)

    @functools.cached_property
    def step(self):
        """The jitted train step."""
        return jax.jit(make_step(self.config, self.model, self.goals, self.tx))


def initial(model, batch, seed=0):
    """The parameters of model.init, without compiling a program that makes them all."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    return model.lazy_init(jax.random.key(seed), shapes)["params"]


def _noisy(p, std, rng):
    return np.asarray(p) + std * rng.standard_normal(p.shape, np.float32)


def worst(a, b):
    """Largest difference between two pytrees, relative to the largest entry of each array.

    Arrays a hundredth of the pytree's largest entry and below (a key bias's gradient is zero in
    exact arithmetic) are compared on that scale.
    """
    a, b = ([np.asarray(x, np.float64) for x in jax.tree.leaves(t)] for t in (a, b))
    floor = np.max([np.abs(y).max() for y in b]) / 100 or 1.0
    found = [np.abs(x - y).max() / max(np.abs(y).max(), floor) for x, y in zip(a, b, strict=True)]
    return np.max(found)  # not Python's max, which passes over what is not a number


def finite(tree):
    """Whether every number of a pytree is."""
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))


def rows(batch, which):
    """The batch's examples at `which`, in that order."""
    return {k: v[np.asarray(which)] for k, v in batch.items()}


def without(batch, which, modality):
    """The batch with a modality missing from the examples at `which`; what lies there is noise."""
    present = batch[f"{modality}_present"].copy()
    present[list(which)] = False
    noise = tiny_batch(len(present), seed=77)[modality]
    raw = np.where(present.reshape(-1, *[1] * (noise.ndim - 1)), batch[modality], noise)
    return batch | {f"{modality}_present": present, modality: raw}
