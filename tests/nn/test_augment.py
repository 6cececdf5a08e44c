"""Augmentation on the device: the host's crops, keyed by example, whatever the batch around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import common
from multimodal.config import pair
from multimodal.data import image_ops
from multimodal.data.transforms import build_transform
from multimodal.errors import UserError
from multimodal.nn import augment as module
from multimodal.nn.augment import augment, random_box, random_resized_crop
from multimodal.nn.model import Net
from multimodal.training.sharding import batch_sharding, make_mesh


def pictures(count=8, height=40, width=56):
    """Smooth pixels uint8 [count, H, W, 3]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width][..., None, None]
    waves = rng.uniform(0.05, 0.5, (2, 3, 4, count))
    light = np.sin(y[..., None] * waves[0] + x[..., None] * waves[1]).sum(3)
    return np.clip(128 + 30 * light, 0, 255).astype(np.uint8).transpose(3, 0, 1, 2)


def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize("size", [16, (12, 24)])
def test_crops_are_pillows_of_the_same_box(size):
    pixels, keys = pictures(), keys_of(8)
    out = np.asarray(random_resized_crop(keys, pixels, size, (0.3, 1.0)))
    assert out.shape == (8, *pair(size), 3) and out.dtype == np.uint8
    for key, x, y in zip(keys, pixels, out, strict=True):
        sides, corner = random_box(
            jax.random.split(key)[0], jnp.array(x.shape[:2], jnp.float32), pair(size), (0.3, 1.0)
        )
        (h, w), (top, left) = np.asarray(sides), np.asarray(corner)
        wanted = image_ops.resample(x, size, (left, top, left + w, top + h))
        # Pillow does not look beyond the box, which matters at its edges only.
        inner = np.s_[2:-2, 2:-2]
        assert np.abs(y[inner].astype(int) - wanted[inner]).max() <= 2


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
def test_boxes_lie_inside_and_keep_the_share_and_ratio(size):
    shape = jnp.array([300.0, 500.0])
    sides, corners = jax.vmap(lambda k: random_box(k, shape, size, (0.2, 0.7)))(keys_of(2000))
    sides, corners = np.asarray(sides), np.asarray(corners)
    assert (corners >= 0).all() and (corners + sides <= np.asarray(shape) + 1e-3).all()
    share = sides.prod(1) / 150_000
    assert 0.2 <= share.min() < 0.21 and 0.69 < share.max() <= 0.7001
    ratio = sides[:, 1] / sides[:, 0] / (size[1] / size[0])
    assert 0.749 < ratio.min() < 0.77 and 1.30 < ratio.max() < 1.334
    assert module.ASPECT == image_ops.ASPECT
    whole, corner = random_box(jax.random.key(0), jnp.array([3.0, 900.0]), size, (0.9, 1.0))
    assert whole.tolist() == [3, 900] and corner.tolist() == [0, 0]


def test_flip_mirrors_half_and_the_whole_image_stays_as_it_is():
    pixels = np.tile(pictures(1, 24, 24), (64, 1, 1, 1))
    out = np.asarray(random_resized_crop(keys_of(64), pixels, 24, (1.0, 1.0), flip=True))
    same = [np.array_equal(x, pixels[0]) for x in out]
    mirrored = [np.array_equal(x, pixels[0, :, ::-1]) for x in out]
    assert all(a != b for a, b in zip(same, mirrored, strict=True)) and 16 < sum(same) < 48


def config_of():
    tower = dict(augment="random_resized_crop", augment_on="device", flip=True)
    return {"image": common.image_tower(size=16, patch=8, **tower), "text": common.text_tower()}


def run(batch, seed=0, chunks=1):
    net = Net(None, None, chunks=chunks)
    return augment(net, batch, config_of(), jax.random.key(seed))


def batch_of(order=range(8)):
    order = np.asarray(order)
    return {"image": pictures()[order], "index": (order * 7 + 3).astype(np.int32)}


def close(a, b):
    """Equal up to a rounding of sums in another order."""
    assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1


def test_order_and_neighbours_change_nothing():
    whole = run(batch_of())["image"]
    close(run(batch_of([5, 2]))["image"], whole[np.array([5, 2])])
    other = run(batch_of(), seed=1)["image"]
    assert (np.asarray(other) != np.asarray(whole)).any((1, 2, 3)).all()


@pytest.mark.parametrize("chunks", [2, 4])
def test_micro_batches_change_nothing(chunks):
    close(run(batch_of(), chunks=chunks)["image"], run(batch_of())["image"])


@pytest.mark.parametrize("chunks", [1, 2])
def test_devices_change_nothing(chunks):
    mesh = make_mesh(devices=jax.devices()[: 8 // chunks])
    batch = {k: jax.device_put(v, batch_sharding(mesh)) for k, v in batch_of().items()}
    with jax.set_mesh(mesh):
        out = jax.jit(lambda b: run(b, chunks=chunks))(batch)["image"]
    assert not out.sharding.is_fully_replicated or mesh.size == 1
    assert out.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), 4)
    close(out, run(batch_of())["image"])


def test_the_host_hands_over_what_is_not_random():
    cfg = config_of()["image"]
    pixels = pictures(1)[0]
    transform = build_transform("image", cfg, train=True)
    a, b = (transform(pixels, np.random.default_rng(s)) for s in range(2))
    np.testing.assert_array_equal(a, b)
    assert a.shape == transform.empty().shape == (24, 24, 3)
    assert build_transform("image", {**cfg, "host_size": 40}, True)(pixels).shape == (40, 40, 3)
    assert build_transform("image", cfg, train=False)(pixels).shape == (16, 16, 3)
    for bad in ({"augment": "pad_crop"}, {"augment_on": "gpu"}):
        with pytest.raises(UserError, match="augment_on"):
            build_transform("image", {**cfg, **bad}, train=True)
