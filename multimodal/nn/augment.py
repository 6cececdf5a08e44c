"""Augmentation on the device: pure functions of keys and pixels."""

import zlib

import jax
import jax.numpy as jnp

from multimodal.config import pair
from multimodal.nn.layers import shard_batch
from multimodal.nn.model import example_keys

ASPECT = 3 / 4, 4 / 3  # as of the host's crops, data/image_ops.py
_TRIES = 10


def random_resized_crop(keys, pixels, size, scale=(0.5, 1.0), flip=False):
    """Crops of random area and 3/4 to 4/3 of the result's aspect ratio (Inception crop), scaled
    bicubically.

    Args:
      keys: [B] PRNG keys, one an example.
      pixels: uint8 [B, H, W, C].
      size: pixels of the result, a number or (height, width).
      scale: least and largest share of the area; (1, 1) takes the whole image.
      flip: mirror half of the examples left and right.
    Returns: uint8 [B, height, width, C]. Where pixels are dropped they are averaged (antialiased),
      as Pillow's resize does.
    """
    return jax.vmap(lambda key, x: _crop(key, x, pair(size), scale, flip))(keys, pixels)


def _crop(key, x, size, scale, flip):
    shape, crop, mirror = jnp.array(x.shape[:2], jnp.float32), *jax.random.split(key)
    sides, corner = random_box(crop, shape, size, scale)
    factor = jnp.array(size, jnp.float32) / sides
    out = jax.image.scale_and_translate(
        x.astype(jnp.float32), (*size, x.shape[2]), (0, 1), factor, -corner * factor, "cubic"
    )
    out = jnp.clip(jnp.round(out), 0, 255).astype(jnp.uint8)
    return jnp.where(jax.random.bernoulli(mirror), out[:, ::-1], out) if flip else out


def random_box(key, shape, size, scale):
    """(height, width) and (top, left) of a random crop in pixels; all of it after ten misses."""
    areas, ratios, places = jax.random.split(key, 3)
    area = shape.prod() * jax.random.uniform(areas, (_TRIES,), minval=scale[0], maxval=scale[1])
    low, high = jnp.log(jnp.array(ASPECT))
    ratio = jnp.exp(jax.random.uniform(ratios, (_TRIES,), minval=low, maxval=high))
    ratio = ratio * (size[1] / size[0])
    sides = jnp.sqrt(jnp.stack([area / ratio, area * ratio], axis=1))
    fits = (sides <= shape).all(1) & (sides >= 1).all(1)
    sides = jnp.where(fits.any(), sides[jnp.argmax(fits)], shape)
    return sides, jax.random.uniform(places, (2,)) * (shape - sides)


def augment(net, batch, modalities, rng):
    """The batch with those modalities cropped whose config says augment_on='device'.

    Keyed by example, so that order, devices and micro-batches change nothing.
    """
    for m, c in modalities.items():
        if c.get("augment_on") != "device" or m not in batch:
            continue
        key = jax.random.fold_in(rng, zlib.crc32(f"augment_{m}".encode()))
        scale = c.scale if c.augment == "random_resized_crop" else (1.0, 1.0)
        index = batch.get("index", jnp.arange(len(batch[m])))

        def crop(_, pixels, index, key=key, c=c, scale=scale):
            keys = example_keys(key, index)
            return random_resized_crop(keys, shard_batch(pixels), c.size, scale, c.flip)

        batch = batch | {m: net.per_example(crop, batch[m], index)}
    return batch
