"""The Vision Transformer, and what Transformers over patches of sound or video share with it."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from multimodal.config import pair
from multimodal.errors import UserError
from multimodal.nn.dense import Dense
from multimodal.nn.layers import (
    ACTIVATIONS,
    Attention,
    BlockConfig,
    Mlp,
    Stack,
    Tokens,
    block_config,
    dropout,
    fold_keys,
    layer_norm,
    layers_of,
)
from multimodal.nn.rows import add_positions


class MapHead(nn.Module):
    """Multi-head attention pooling with a learned probe (SigLIP): [B, L, D] -> [B, D]."""

    cfg: BlockConfig

    @nn.compact
    def __call__(self, x):
        c = self.cfg
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, c.width))
        probe = jnp.broadcast_to(probe.astype(x.dtype), (len(x), 1, c.width))
        x = Attention(
            c.width, c.heads, dtype=c.dtype, attention_kernel=c.attention_kernel, name="attention"
        )(probe, x)
        h = layer_norm(c.eps, c.dtype, "norm")(x)
        return (x + Mlp(c.width, c.mlp_dim, c.act, dtype=c.dtype, name="mlp")(h))[:, 0]


def mean_pool(tokens: Tokens):
    """Mean over real tokens; zero for an example without any."""
    w = tokens.mask[..., None].astype(tokens.x.dtype)
    return (tokens.x * w).sum(1) / jnp.maximum(w.sum(1), 1)


def pooler(x, dtype):
    """BERT's and ViT's tanh(dense(x)); call inside a compact method."""
    return jnp.tanh(Dense(x.shape[-1], dtype=dtype, name="pooler")(x))


def sinusoids(length: int, width: int):
    """[length, width] of interleaved sines and cosines (Vaswani et al. 2017, section 3.5)."""
    angles = np.arange(length)[:, None] / 10_000 ** (2 * (np.arange(width) // 2) / width)
    return np.where(np.arange(width) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def normalize(image, mean, std, dtype):
    """uint8 [..., C] -> (x / 255 - mean) / std in dtype; floats pass through."""
    if image.dtype != jnp.uint8:
        return image.astype(dtype)
    mean, std = jnp.asarray(mean, jnp.float32) * 255, jnp.asarray(std, jnp.float32) * 255
    return ((image.astype(jnp.float32) - mean) / std).astype(dtype)


def patchify(image, patch, stride=None):
    """[B, H, W, C] -> [B, patches, p*p*C]; a dense layer on it is the patch convolution.

    Args:
      patch: pixels, a number or (down, across).
      stride: likewise; None: the patch. Pixels that fill no whole patch are left out.
    """
    (p, q), stride = pair(patch), pair(stride or patch)
    b, h, w, c = image.shape
    if stride != (p, q) or h % p or w % q:
        rows, columns = (windows(n, k, s) for n, k, s in zip((h, w), (p, q), stride))
        x = image[:, rows][:, :, :, columns]
    else:
        x = image.reshape(b, h // p, p, w // q, q, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, p * q * c)


def windows(length, size, stride):
    """[N, size] indices of the whole windows in a line."""
    return np.arange((length - size) // stride + 1)[:, None] * stride + np.arange(size)


class PatchTransformer(nn.Module):
    """What Transformers over embedded patches share, whatever the patches are of.

    A subclass embeds its input in a compact `__call__` and returns `self.transform(...)`.
    """

    width: int = 768
    depth: int = 12  # 0: patches and positions, then the final norm
    heads: int = 12
    mlp_dim: int = 3072
    act: str = "gelu"
    eps: float = 1e-6
    class_token: bool = True
    distillation_token: bool = False  # a second one after it (DeiT, AST); pool 'class' means both
    position_embedding: str = "learned"  # 'sinusoid': fixed sines and cosines (VideoMAE)
    pre_norm: bool = False  # LayerNorm before the blocks (CLIP)
    # 'tokens': of all tokens; 'pooled': of the pooled one only (CLIP); 'twice': of all tokens, and
    # of the pooled one again (HF's BLIP); 'none' (VideoMAE)
    final_norm: str = "tokens"
    pool: str = "class"  # 'class' | 'mean' | 'map' | 'none'
    pooler: bool = False  # tanh(dense) on the pooled token, as in HF's ViT
    layer_scale: float = 0.0  # > 0: see BlockConfig (DINOv2)
    key_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.0
    scan: bool = False
    unroll: int = 1
    remat: str = "none"
    attention_kernel: str = "auto"
    dtype: str = "float32"

    def has_class_token(self):
        """Is there a class token?"""
        return self.class_token

    def transform(self, x, present, keys):
        """Embedded patches [B, N, D] -> (Tokens of special tokens and patches, pooled or None)."""
        x = self._add_tokens_and_positions(x)
        x = dropout(x, self.dropout, fold_keys(keys, 0))
        norm = partial(layer_norm, self.eps, self.dtype)
        x = norm("pre_norm")(x) if self.pre_norm else x
        cfg = block_config(self)
        x = Stack(cfg, layers_of(self), name="stack")(x, fold_keys(keys, 1))
        final = norm("final_norm")
        x = final(x) if self.final_norm in ("tokens", "twice") else x
        tokens = Tokens(x, jnp.broadcast_to(present[:, None], x.shape[:2]), fold_keys(keys, 2))
        return tokens, self._pool(x, final, cfg)

    def _add_tokens_and_positions(self, x):
        """Special tokens before the patches, and what tells each where it is."""
        names = ["class_token"] * self.has_class_token()
        names += ["distillation_token"] * self.distillation_token
        normal = nn.initializers.normal(0.02)
        special = [self.param(name, normal, (1, 1, x.shape[-1])) for name in names]
        x = jnp.pad(x, ((0, 0), (len(special), 0), (0, 0)))
        rows = jnp.asarray(self.positions(x.shape[1:]), jnp.promote_types(x.dtype, jnp.float32))
        for i, token in enumerate(special):
            rows = rows.at[:, i].add(token[:, 0])
        return add_positions(x, rows)

    def positions(self, shape):
        """[1, *shape] to be added to tokens of so many rows and features."""
        if self.position_embedding == "sinusoid":
            return jnp.asarray(sinusoids(*shape))[None]
        return self.param("pos_embed", nn.initializers.normal(0.02), (1, *shape))

    def _pool(self, x, final, cfg):
        if self.pool == "none":
            return None
        if self.pool == "map":
            x = MapHead(cfg, name="map_head")(x)
        elif self.pool == "class":
            x = x[:, :2].mean(1) if self.distillation_token else x[:, 0]
        else:
            x = x.mean(1)
        x = final(x) if self.final_norm in ("pooled", "twice") else x
        return pooler(x, self.dtype) if self.pooler else x


class ViT(PatchTransformer):
    """Vision Transformer (Dosovitskiy et al. 2021) with the switches that CLIP, ALBEF/DeiT, SigLIP,
    DINOv2 and BLIP need, and a convolutional stem.

    Takes uint8 images [B, H, W, 3], normalised here on the device, or floats taken as they are.
    Raises UserError where the image is not of that size.
    """

    size: int | tuple[int, int] = 224  # pixels, a number or (down, across)
    patch: int | tuple[int, int] = 16
    patch_bias: bool = True
    stem: str = "patch"  # 'patch' | 'conv'
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @nn.compact
    def __call__(self, image, present, keys=None, mask=None):
        height, width = pair(self.size)
        if image.shape[1:3] != (height, width):
            raise UserError(
                f"image: the model takes {height}x{width} pixels, the batch has "
                f"{image.shape[1]}x{image.shape[2]}: set modalities.image.size to the data's size"
            )
        x, patch = normalize(image, self.mean, self.std, self.dtype), self.patch
        if self.stem == "conv":
            x, patch = self._convolve(x), 1
        embed = Dense(self.width, use_bias=self.patch_bias, dtype=self.dtype, name="patch_embed")
        return self.transform(embed(patchify(x, patch)), present, keys)

    def _convolve(self, x):
        """[B, H, W, 3] -> [B, H/p, W/p, D]: 3 x 3 convolutions of stride 2, each twice as wide as
        the one before (8 at least), up to the width (Xiao et al. 2021, section 4). They are
        followed by LayerNorm, not by the paper's batch normalisation: an example must not depend on
        others.
        """
        count = pair(self.patch)[0].bit_length() - 1
        for i in range(count):
            channels = max(8, self.width >> (count - 1 - i))
            conv = nn.Conv(channels, (3, 3), 2, padding=1, dtype=self.dtype, name=f"stem_{i}")
            x = ACTIVATIONS[self.act](layer_norm(self.eps, self.dtype, f"stem_norm_{i}")(conv(x)))
        return x
