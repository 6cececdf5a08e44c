"""Encoders: one modality's raw arrays -> (Tokens, pooled [B, D]). A new one is one class."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from multimodal.errors import UserError
from multimodal.nn.layers import (
    Attention,
    BlockConfig,
    Mlp,
    Stack,
    Tokens,
    dropout,
    fold_keys,
    layer_norm,
)
from multimodal.registry import lookup

ENCODERS: dict[str, type[nn.Module]] = {}


def register_encoder(name):
    """Class decorator: make an encoder known to configs as `encoder = name`."""

    def add(cls):
        ENCODERS[name] = cls
        return cls

    return add


def build_encoder(cfg: dict, dtype: str) -> nn.Module:
    """The encoder that a modality's config asks for; keys that are not its fields serve others."""
    cls = lookup(ENCODERS, cfg["encoder"], "config.modalities.<m>.encoder")
    fields = {f.name for f in dataclasses.fields(cls)} - {"parent", "name"}
    return cls(**{k: v for k, v in cfg.items() if k in fields}, dtype=dtype)


class MapHead(nn.Module):
    """Multi-head attention pooling with a learned probe (SigLIP): [B, L, D] -> [B, D]."""

    cfg: BlockConfig

    @nn.compact
    def __call__(self, x):
        c = self.cfg
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, c.width))
        probe = jnp.broadcast_to(probe.astype(x.dtype), (len(x), 1, c.width))
        x = Attention(c.width, c.heads, dtype=c.dtype, name="attention")(probe, x)
        h = layer_norm(c.eps, c.dtype, "norm")(x)
        return (x + Mlp(c.width, c.mlp_dim, c.act, dtype=c.dtype, name="mlp")(h))[:, 0]


def mean_pool(tokens: Tokens):
    """Mean over real tokens; zero for an example without any."""
    w = tokens.mask[..., None].astype(tokens.x.dtype)
    return (tokens.x * w).sum(1) / jnp.maximum(w.sum(1), 1)


def pooler(x, dtype):
    """BERT's and ViT's tanh(dense(x)); call inside a compact method."""
    return jnp.tanh(nn.Dense(x.shape[-1], dtype=dtype, name="pooler")(x))


@register_encoder("vit")
class ViT(nn.Module):
    """Vision Transformer (Dosovitskiy et al. 2021) with the switches that CLIP, ALBEF/DeiT and
    SigLIP need.

    Takes uint8 images [B, H, W, 3], normalised here on the device, or floats taken as they are.
    Raises UserError where the image is not size x size.
    """

    size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    act: str = "gelu"
    eps: float = 1e-6
    class_token: bool = True
    patch_bias: bool = True
    pre_norm: bool = False  # LayerNorm before the blocks (CLIP)
    final_norm: str = "tokens"  # 'tokens': of all tokens; 'pooled': of the pooled one only (CLIP)
    pool: str = "class"  # 'class' | 'mean' | 'map' | 'none'
    pooler: bool = False  # tanh(dense) on the pooled token, as in HF's ViT
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.0
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, image, present, keys=None, mask=None):
        if image.shape[1:3] != (self.size, self.size):
            raise UserError(
                f"image: the model takes {self.size}x{self.size} pixels, the batch has "
                f"{image.shape[1]}x{image.shape[2]}: set modalities.image.size to the data's size"
            )
        x = nn.Dense(self.width, use_bias=self.patch_bias, dtype=self.dtype, name="patch_embed")(
            patchify(normalize(image, self.mean, self.std, self.dtype), self.patch)
        )
        b, n, d = x.shape
        if self.class_token:
            token = self.param("class_token", nn.initializers.normal(0.02), (1, 1, d))
            x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (b, 1, d)), x], axis=1)
        x = x + self.param("pos_embed", nn.initializers.normal(0.02), (1, x.shape[1], d)).astype(
            x.dtype
        )
        x = dropout(x, self.dropout, fold_keys(keys, 0))
        norm = partial(layer_norm, self.eps, self.dtype)
        x = norm("pre_norm")(x) if self.pre_norm else x
        cfg = BlockConfig(
            self.width,
            self.heads,
            self.mlp_dim,
            self.act,
            "pre",
            self.eps,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            init_std=self.init_std,
            dtype=self.dtype,
        )
        x = Stack(cfg, self.depth, self.scan, self.remat, name="stack")(x, fold_keys(keys, 1))
        x = norm("final_norm")(x) if self.final_norm == "tokens" else x
        tokens = Tokens(x, jnp.broadcast_to(present[:, None], x.shape[:2]), fold_keys(keys, 2))
        return tokens, self._pool(tokens, norm, cfg)

    def _pool(self, tokens, norm, cfg):
        x = tokens.x
        if self.pool == "none":
            return None
        if self.pool == "map":
            x = MapHead(cfg, name="map_head")(x)
        else:
            x = x[:, 0] if self.pool == "class" else x.mean(1)
        x = norm("final_norm")(x) if self.final_norm == "pooled" else x
        return pooler(x, self.dtype) if self.pooler else x


def normalize(image, mean, std, dtype):
    """uint8 [..., C] -> (x / 255 - mean) / std in dtype; floats pass through."""
    if image.dtype != jnp.uint8:
        return image.astype(dtype)
    mean, std = jnp.asarray(mean, jnp.float32) * 255, jnp.asarray(std, jnp.float32) * 255
    return ((image.astype(jnp.float32) - mean) / std).astype(dtype)


def patchify(image, patch):
    """[B, H, W, C] -> [B, H/p * W/p, p*p*C]; a dense layer on it is the patch convolution."""
    b, h, w, c = image.shape
    x = image.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, patch * patch * c)


@register_encoder("text")
class TextTransformer(nn.Module):
    """Text Transformer: causal with end-of-text pooling (CLIP), bidirectional (BERT, ALBEF,
    SigLIP).

    Takes token ids int32 [B, L], 0 for padding. Raises UserError where L exceeds max_length.
    """

    vocab_size: int = 30522
    max_length: int = 77
    positions: int = 0  # rows of the position table; 0: max_length
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_dim: int = 2048
    act: str = "gelu"
    norm: str = "pre"
    eps: float = 1e-6
    causal: bool = False
    mask_padding: bool = True  # False: padding is attended to, as in CLIP (causal) and SigLIP
    type_embed: int = 0  # token types in the weights (BERT: 2); type 0 is what is used
    embed_norm: bool = False  # LayerNorm after the embeddings (BERT)
    final_norm: bool = True
    pool: str = "class"  # 'class' | 'eot' | 'last' | 'mean' | 'none'
    eot_id: int = (
        -1
    )  # for pool='eot': first token of this id; -1: the largest id (CLIP's vocabulary)
    pooler: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.02
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    def setup(self):
        normal = nn.initializers.normal(0.02)
        self.token_embed = nn.Embed(
            self.vocab_size, self.width, embedding_init=normal, dtype=self.dtype
        )
        self.pos_embed = self.param(
            "pos_embed", normal, (self.positions or self.max_length, self.width)
        )
        if self.type_embed:
            self.type_embedding = self.param("type_embed", normal, (self.type_embed, self.width))
        norm = partial(nn.LayerNorm, epsilon=self.eps, use_fast_variance=False, dtype=self.dtype)
        if self.embed_norm:
            self.norm_embed = norm()
        if self.final_norm:
            self.norm_final = norm()
        if self.pooler:
            self.pooler_dense = nn.Dense(self.width, dtype=self.dtype)
        cfg = BlockConfig(
            self.width,
            self.heads,
            self.mlp_dim,
            self.act,
            self.norm,
            self.eps,
            self.causal,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            init_std=self.init_std,
            dtype=self.dtype,
        )
        self.stack = Stack(cfg, self.depth, self.scan, self.remat)

    def __call__(self, ids, present, keys=None, mask=None):
        if ids.shape[1] > len(self.pos_embed):
            raise UserError(
                f"text: {ids.shape[1]} tokens a caption exceed the model's "
                f"{len(self.pos_embed)} positions: "
                "raise max_length or shorten the captions"
            )
        if mask is None:
            mask = ids != 0 if self.mask_padding else jnp.ones_like(ids, dtype=bool)
        mask = mask.astype(bool) & present[:, None]
        x = self.token_embed(ids) + self.pos_embed[: ids.shape[1]].astype(self.dtype)
        if self.type_embed:
            x = x + self.type_embedding[0].astype(x.dtype)
        x = self.norm_embed(x) if self.embed_norm else x
        x = dropout(x, self.dropout, fold_keys(keys, 0))
        x = self.stack(x, fold_keys(keys, 1), mask if self.mask_padding else None)
        x = self.norm_final(x) if self.final_norm else x
        tokens = Tokens(x, mask, fold_keys(keys, 2))
        pooled = self._pool(tokens, ids)
        return tokens, jnp.tanh(self.pooler_dense(pooled)) if self.pooler else pooled

    def _pool(self, tokens, ids):
        if self.pool == "none":
            return None
        if self.pool == "mean":
            return mean_pool(tokens)
        if self.pool == "eot":
            end = jnp.argmax(ids if self.eot_id < 0 else ids == self.eot_id, axis=1)
            return jax.vmap(lambda x, i: x[i])(tokens.x, end)
        return tokens.x[:, -1 if self.pool == "last" else 0]

    def attend(self, x):
        """Logits [..., V] of the tied output layer (without its bias) for features [..., D]."""
        return self.token_embed.attend(x)
