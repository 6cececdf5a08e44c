"""Every objective obeys the laws of laws.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal.training.sharding import make_mesh, state_shardings, to_global
from tests import laws

CASES = [pytest.param(n, k, id=f"{n}-momentum" if k else n) for n, k in laws.cases()]
TOLERANCE = 2e-5  # float32, sums in another order

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
    masked = b(laws.without(batch, [2, 5], modality))
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


@pytest.mark.parametrize("name, kwargs", CASES)
@pytest.mark.parametrize("drop", [0.0, 0.2])
def test_micro_batch_law(name, kwargs, drop):
    """k micro-batches give the gradient of one batch, dropout's draws included."""
    batch = laws.without(laws.tiny_batch(), [3], "image")

    def run(k):
        b = (
            laws.Bench(name, kwargs, micro_batches=k)
            if drop == 0
            else _with_dropout(name, kwargs, k)
        )
        return b(batch)

    assert laws.worst(run(4), run(1)) < TOLERANCE


def _with_dropout(name, kwargs, k):
    changes = {m: {"dropout": 0.2, "attention_dropout": 0.1} for m in ("image", "text")}
    return laws.Bench(name, kwargs, micro_batches=k, modalities=changes)


def test_dropout_changes_the_loss():
    batch = laws.tiny_batch()
    assert (
        abs(_with_dropout("contrastive", {}, 1)(batch)[0] - bench("contrastive", {})(batch)[0])
        > 1e-4
    )


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


@pytest.mark.parametrize("name, kwargs", CASES)
def test_finite_law(name, kwargs):
    """Batches of one, of one id, without a pair, and temperatures at their bounds: finite loss and
    gradient.
    """
    b = bench(name, kwargs)
    empty = laws.without(laws.tiny_batch(), range(8), "image")
    for batch in (laws.tiny_batch(1), laws.tiny_batch(same_id=True), empty):
        assert laws.finite(b(batch)), batch["id"]
    t = b.config.model.temperature
    for bound in (t.min, t.max):
        params = b.state.params | {"temperature": jnp.float32(-np.log(bound))}
        assert laws.finite(b(laws.tiny_batch(), params=params)), bound


@pytest.mark.parametrize("name, kwargs", CASES)
def test_step_is_deterministic_and_moves(name, kwargs):
    """The resume law at its root: a step is a function of state and batch, bit for bit."""
    b, batch = bench(name, kwargs), laws.tiny_batch()
    first, _ = b.step(b.state, batch)
    again, _ = b.step(jax.tree.map(jnp.array, jax.device_get(b.state)), batch)
    assert all((x == y).all() for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(again)))
    assert laws.worst(first.params, b.state.params) > 0
    assert int(first.step) == int(b.state.step) + 1


def test_draws_of_one_objective_do_not_depend_on_others():
    batch = laws.tiny_batch()
    alone = laws.Bench("itm")
    both = laws.Bench("itm", objectives={"mlm": {}, "itm": {}})
    _, one = alone.step(alone.state, batch)
    _, two = both.step(both.state, batch)
    np.testing.assert_allclose(one["itm/loss"], two["itm/loss"], rtol=1e-5)
