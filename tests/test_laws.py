"""Every objective obeys the laws of laws.py."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal import objectives
from multimodal.training.optim import players
from multimodal.training.sharding import make_mesh, state_shardings, to_global
from multimodal.training.step import make_step
from tests import laws

VARIANTS = {"kind", "subsets", "momentum"}  # cost as much again: with --slow
CASES = [
    pytest.param(n, k, id="-".join([n, *k]), marks=pytest.mark.slow if VARIANTS & set(k) else ())
    for n, k in laws.cases()
]
TOLERANCE = 1e-5  # float32, sums in another order

_benches = {}


def bench(name, kwargs, **changes):
    """Benches are kept: compiling is what these tests cost."""
    key = (name, tuple(kwargs), tuple(sorted(changes.items())))
    if key not in _benches:
        _benches[key] = laws.Bench(name, kwargs, **changes)
    return _benches[key]


def test_registry_is_covered():
    assert {"contrastive", "sigmoid", "itm", "mlm"} <= {name for name, _ in laws.cases()}


@pytest.mark.parametrize("name, kwargs", CASES)
@pytest.mark.parametrize("modality", ["image", "text"])
def test_mask_law(name, kwargs, modality):
    """Masking an example is dropping it: same loss, same gradient."""
    b, batch = bench(name, kwargs), laws.tiny_batch()
    masked = laws.without(batch, [2, 5], modality)
    if objectives.OBJECTIVES[name].partial:  # counts by its other modality otherwise
        masked = laws.without(masked, [2, 5], {"image": "text", "text": "image"}[modality])
    masked = b(masked)
    dropped = b(laws.rows(batch, [0, 1, 3, 4, 6, 7]))
    assert laws.worst(masked, dropped) < TOLERANCE
    assert laws.worst(masked, b(batch)) > 1e-4, (
        "the masked examples made no difference to begin with"
    )


@pytest.mark.parametrize("name, kwargs", CASES)
def test_permutation_law(name, kwargs):
    b, batch = bench(name, kwargs), laws.tiny_batch()
    order = np.random.default_rng(1).permutation(8)
    assert laws.worst(b(laws.rows(batch, order)), b(batch)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name, kwargs", CASES)
def test_micro_batch_law(name, kwargs):
    """k micro-batches give loss and gradient of one batch."""
    batch = laws.without(laws.tiny_batch(), [3], "image")
    micro = laws.Bench(name, kwargs, micro_batches=4)
    assert laws.worst(micro(batch), bench(name, kwargs)(batch)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name, kwargs", [p for p in CASES if p.id in ("sigmoid", "itm")])
def test_micro_batch_law_with_dropout(name, kwargs):
    """Dropout's draws are the same in any number of micro-batches."""
    batch = laws.tiny_batch()
    one, four = (_with_dropout(name, kwargs, k)(batch) for k in (1, 4))
    assert laws.worst(four, one) < TOLERANCE
    assert abs(one[0] - bench(name, kwargs)(batch)[0]) > 1e-4, "dropout made no difference"


def _with_dropout(name, kwargs, k):
    changes = {m: {"dropout": 0.2, "attention_dropout": 0.1} for m in ("image", "text")}
    return laws.Bench(name, kwargs, micro_batches=k, modalities=changes)


@pytest.mark.parametrize("name, kwargs", CASES)
def test_device_law(name, kwargs):
    """8 devices (2 data x 4 fsdp) give loss and gradient of one, with sharded parameters."""
    b, batch = bench(name, kwargs), laws.tiny_batch()
    one = b(batch)
    mesh = make_mesh(2, 4)
    with jax.set_mesh(mesh):
        import multimodal.training.sharding as sharding

        small, sharding.SMALL = sharding.SMALL, 1
        try:
            placed = state_shardings(b.state, mesh)
        finally:
            sharding.SMALL = small
        state = jax.device_put(b.state, placed)
        assert any(not x.is_fully_replicated for x in jax.tree.leaves(state.params))
        many = b._grad(state.params, state, to_global(batch, mesh))
    assert laws.worst(many, one) < TOLERANCE


KERNELS = [
    p for p in CASES if "kernel" in inspect.signature(objectives.OBJECTIVES[p.values[0]]).parameters
]


@pytest.mark.slow
@pytest.mark.parametrize("name, kwargs", KERNELS)
def test_kernel_law(name, kwargs):
    """By blocks of columns, on one device and on 8: loss and gradient of the plain kernel."""
    batch = laws.without(laws.tiny_batch(), [3], "image")
    plain = bench(name, kwargs)(batch)
    blocks = laws.Bench(name, kwargs | {"kernel": "blockwise", "block": 3})
    assert laws.worst(blocks(batch), plain) < TOLERANCE
    mesh = make_mesh(2, 4)
    with jax.set_mesh(mesh):
        state = jax.device_put(blocks.state, state_shardings(blocks.state, mesh))
        many = blocks._grad(state.params, state, to_global(batch, mesh))
    assert laws.worst(many, plain) < TOLERANCE


@pytest.mark.slow
def test_device_law_of_whole_steps():
    """Two donated steps, all objectives, 2 micro-batches, scanned layers: 8 devices = 1."""
    teach = {"momentum": True, "alpha": 0.4}
    goals = {"contrastive": teach, "itm": {}, "mlm": {**teach, "max_predictions": 2}}
    scan = {m: {"scan": True, "depth": 2} for m in ("image", "text")}
    b = laws.Bench("contrastive", objectives=goals, modalities=scan, micro_batches=2)
    step = jax.jit(make_step(b.config, b.model, b.goals, b.tx), donate_argnums=0)

    def run(state, place):
        losses = []
        for seed in (0, 1):
            state, metrics = step(state, place(laws.tiny_batch(16, seed)))
            losses.append(float(metrics["train/loss"]))
        return losses, jax.device_get(state.ema), jax.device_get(state.queue["text"])

    one = run(jax.tree.map(jnp.array, b.state), lambda batch: batch)
    mesh = make_mesh(2, 4)
    with jax.set_mesh(mesh):
        placed = jax.device_put(b.state, state_shardings(b.state, mesh))
        many = run(placed, lambda batch: to_global(batch, mesh))
    assert laws.worst(many, one) < TOLERANCE


@pytest.mark.parametrize("name, kwargs", CASES)
def test_players_law(name, kwargs):
    """A critic's objective moves critics alone, every other objective anything but critics."""
    b = bench(name, kwargs)
    grads = b(laws.tiny_batch())[1]
    player = objectives.OBJECTIVES[name].player
    labels = jax.tree.leaves(players(grads))
    moved = dict.fromkeys(("main", "critic"), False)
    for label, g in zip(labels, jax.tree.leaves(grads), strict=True):
        moved[label] |= bool((np.asarray(g) != 0).any())
    assert moved == {"main": player == "main", "critic": player == "critic"}


@pytest.mark.parametrize("name, kwargs", CASES)
def test_finite_law(name, kwargs):
    """Batches of one id, without a pair, and temperatures at their bounds: finite loss and
    gradient.
    """
    b = bench(name, kwargs)
    empty = laws.without(laws.tiny_batch(), range(8), "image")
    for batch in (laws.tiny_batch(same_id=True), empty):
        assert laws.finite(b(batch)), batch["id"]
    t = b.config.model.temperature
    for bound in (t.min, t.max):
        params = b.state.params | {"temperature": jnp.float32(-np.log(bound))}
        assert laws.finite(b(laws.tiny_batch(), params=params)), bound


@pytest.mark.slow
@pytest.mark.parametrize("name, kwargs", CASES)
def test_finite_law_of_one_example(name, kwargs):
    assert laws.finite(bench(name, kwargs)(laws.tiny_batch(1)))


def test_step_is_deterministic_and_moves():
    """The resume law at its root: a step is a function of state and batch, bit for bit."""
    b, batch = bench("contrastive", {"momentum": True, "alpha": 0.4}), laws.tiny_batch()
    first, _ = b.step(b.state, batch)
    again, _ = b.step(jax.tree.map(jnp.array, jax.device_get(b.state)), batch)
    assert all((x == y).all() for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(again)))
    assert laws.worst(first.params, b.state.params) > 0
    assert int(first.step) == int(b.state.step) + 1


def test_draws_of_one_objective_do_not_depend_on_others():
    alone = laws.Bench("itm").metrics(laws.tiny_batch())
    both = laws.Bench("itm", objectives={"mlm": {}, "itm": {}}).metrics(laws.tiny_batch())
    np.testing.assert_allclose(alone["itm/loss"], both["itm/loss"], rtol=1e-5)
