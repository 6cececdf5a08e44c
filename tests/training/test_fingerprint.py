"""Fingerprints: the same on any mesh, another for any changed element."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from multimodal.training.fingerprint import diverged, fingerprint, fingerprints
from multimodal.training.sharding import make_mesh

RNG = np.random.default_rng(0)
TREE = {
    "a": RNG.normal(size=(16, 24)).astype(np.float32),
    "b": RNG.normal(size=(8,)).astype(jnp.bfloat16),
    "c": np.int32(5),
    "d": np.array([True, False]),
    "e": RNG.integers(0, 255, (3, 5)).astype(np.uint8),
}


@pytest.mark.parametrize("axes", [{}, {"fsdp": 8}, {"fsdp": 2, "tensor": 2}])
def test_any_mesh_finds_the_same(axes):
    mesh = make_mesh(**axes)
    specs = {"a": P(("data", "fsdp"), "tensor"), "b": P("fsdp"), "c": P(), "d": P(), "e": P()}
    placed = {k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in TREE.items()}
    assert fingerprints(placed) == fingerprints(TREE)
    assert diverged(placed) == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16, np.int8, np.uint32])
def test_any_bit_of_any_element_counts(dtype):
    with jax.enable_x64(True):
        x = RNG.normal(size=(5, 7)).astype(dtype)
        first, find = int(fingerprint(jnp.asarray(x))), jax.jit(fingerprint)
        for _ in range(50):
            changed = x.copy()
            flat = changed.view(np.uint8).reshape(-1)
            flat[RNG.integers(flat.size)] ^= np.uint8(1 << RNG.integers(8))
            assert int(find(jnp.asarray(changed))) != first


def test_order_counts():
    x = np.arange(6, dtype=np.int32)
    assert fingerprint(jnp.asarray(x)) != fingerprint(jnp.asarray(x[::-1]))


@pytest.mark.parametrize("spec", [P(), P("fsdp")])
def test_a_copy_that_differs_on_one_device_is_found(spec):
    mesh = make_mesh(fsdp=2)
    good = {k: jax.device_put(np.ones((4, 4), np.float32), NamedSharding(mesh, spec)) for k in "xy"}
    parts = [np.array(s.data) for s in good["y"].addressable_shards]
    parts[3][0, 1] = np.nextafter(np.float32(1), np.float32(2))
    devices = [s.device for s in good["y"].addressable_shards]
    bad = jax.make_array_from_single_device_arrays(
        (4, 4), good["y"].sharding, [jax.device_put(p, d) for p, d in zip(parts, devices)]
    )
    assert diverged(good) == []
    assert diverged(good | {"y": bad}) == ["y"]
