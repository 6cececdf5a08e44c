"""The step: order of teacher, update and queue; temperature bounds; what the queue holds."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal.errors import UserError
from multimodal.objectives.queue import EMPTY, empty_queue, enqueue
from multimodal.training.sharding import batch_sharding, make_mesh
from tests import laws


def test_teacher_moves_before_the_update():
    """ALBEF's order: after a step the teacher has seen the parameters from before it."""
    b = laws.Bench("contrastive", {"momentum": True, "alpha": 0.4})
    new, _ = b.step(b.state, laws.tiny_batch())
    expected = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, b.state.ema, b.state.params)
    assert laws.worst(new.ema, expected) < 1e-6


def test_temperature_stays_in_its_bounds():
    b = laws.Bench("contrastive", optim={"lr": {"peak": 10.0, "warmup": 0}})
    state = b.state.replace(params=b.state.params | {"temperature": jnp.float32(np.log(100.0))})
    seen = []
    for seed in range(3):
        state, _ = b.step(state, laws.tiny_batch(seed=seed))
        seen.append(float(jnp.exp(state.params["temperature"])))
    assert all(0.999 <= s <= 100.001 for s in seen)


def test_queue_wraps_around_and_keeps_the_newest():
    queue = empty_queue(5, {"a": 2}, jax.random.key(0))
    assert (queue["id"] == EMPTY).all()
    for start in (0, 3, 6):
        ids = jnp.arange(start, start + 3)
        embeds = {"a": jnp.stack([ids, -ids], 1).astype(jnp.float32)}
        queue = enqueue(queue, embeds, ids, jnp.ones(3, bool))
    assert sorted(queue["id"].tolist()) == [4, 5, 6, 7, 8] and int(queue["ptr"]) == 4
    np.testing.assert_array_equal(queue["a"][:, 0], queue["id"])


def test_queue_of_whole_batches_keeps_the_newest_without_exchange_between_devices():
    queue, write = empty_queue(32, {"a": 4}, jax.random.key(0)), jax.jit(enqueue)
    rows = batch_sharding(make_mesh(fsdp=2))
    sharded = {k: jax.device_put(v, rows if v.ndim else None) for k, v in queue.items()}
    for step in range(6):
        ids = jnp.arange(8) + 8 * step
        given = {"a": jnp.tile(ids[:, None], 4).astype(jnp.float32)}, ids, ids != 41
        queue, sharded = write(queue, *given), write(sharded, *jax.device_put(given, rows))
    assert set(queue["id"].tolist()) == {EMPTY, *range(16, 48)} - {41}
    filled = queue["id"] != EMPTY
    np.testing.assert_array_equal(queue["a"][filled, 0], queue["id"][filled])
    jax.tree.map(np.testing.assert_array_equal, queue, sharded)
    text = write.lower(sharded, *jax.device_put(given, rows)).compile().as_text()
    assert not re.search("all-gather|all-to-all|collective-permute|all-reduce", text)


def test_queue_smaller_than_the_batch_and_absent_examples():
    queue = empty_queue(4, {"a": 1}, jax.random.key(0))
    ids = jnp.arange(10)
    queue = enqueue(queue, {"a": ids[:, None].astype(jnp.float32)}, ids, ids != 8)
    assert sorted(queue["id"].tolist()) == [EMPTY, 6, 7, 9]


def test_empty_slots_are_no_negatives_but_in_the_original_mode():
    batch = laws.tiny_batch()
    b = laws.Bench("contrastive", {"momentum": True})
    noise = jax.random.normal(jax.random.key(5), b.state.queue["image"].shape)
    empty = b.state.queue["id"] == EMPTY
    other = {m: jnp.where(empty[:, None], noise, b.state.queue[m]) for m in ("image", "text")}
    assert b.loss(batch) == b.loss(batch, queue=b.state.queue | other)
    original = laws.Bench("contrastive", {"momentum": True}, mode="albef_original")
    assert original.loss(batch) != original.loss(batch, queue=original.state.queue | other)


def test_a_queue_without_a_modality_that_is_compared_is_told():
    queue = {"size": 12, "modalities": ("text",)}
    b = laws.Bench("contrastive", {"momentum": True}, queue=queue)
    with pytest.raises(UserError, match="config.queue.modalities lacks 'image'"):
        b.loss(laws.tiny_batch())


def test_positives_by_id_and_by_diagonal():
    """Two captions of one photo: positives for each other by id, negatives in the original."""
    batch = laws.tiny_batch()
    assert batch["id"][0] == batch["id"][-1]
    apart = batch | {"id": np.arange(8, dtype=np.int32)}
    for name in ("contrastive", "sigmoid", "itm"):
        b = laws.Bench(name)
        assert abs(b.loss(batch) - b.loss(apart)) > 1e-4, name
    original = laws.Bench("contrastive", mode="albef_original")
    assert original.loss(batch) == original.loss(apart)
