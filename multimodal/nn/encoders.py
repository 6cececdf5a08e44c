"""Encoders: one modality's raw arrays -> (Tokens, pooled [B, D]). A new one is one class."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from multimodal.errors import UserError
from multimodal.nn.audio import SpectrogramTransformer, WhisperEncoder
from multimodal.nn.dense import Dense
from multimodal.nn.layers import (
    Stack,
    Tokens,
    block_config,
    dropout,
    fold_keys,
    layer_norm,
    layers_of,
)
from multimodal.nn.rows import add_positions, embed
from multimodal.nn.video import FrameTransformer, VideoTransformer
from multimodal.nn.vit import ViT, mean_pool
from multimodal.nn.wav2vec2 import Wav2Vec2
from multimodal.registry import lookup

ENCODERS: dict[str, type[nn.Module]] = {}


def register_encoder(name):
    """Class decorator: make an encoder known to configs as `encoder = name`."""

    def add(cls):
        ENCODERS[name] = cls
        return cls

    return add


def build_encoder(cfg: dict, **shared) -> nn.Module:
    """The encoder that a modality's config asks for; keys that are not its fields serve others.

    shared: fields that are the whole model's: dtype, attention_kernel.
    """
    cls = lookup(ENCODERS, cfg["encoder"], "config.modalities.<m>.encoder", kind=nn.Module)
    fields = {f.name for f in dataclasses.fields(cls)} - {"parent", "name"}
    return cls(**{k: v for k, v in {**cfg, **shared}.items() if k in fields})


@register_encoder("text")
class TextTransformer(nn.Module):
    """Text Transformer: causal with end-of-text pooling (CLIP), bidirectional (BERT, ALBEF,
    SigLIP).

    Takes token ids int32 [B, L], pad_id for padding. Raises UserError where L exceeds the table of
    positions.
    """

    vocab_size: int = 30522
    max_length: int = 77
    positions: int = 0  # rows of the position table; 0: as many as are needed
    position_offset: int = 0  # row of the first token (RoBERTa: 2)
    pad_id: int = 0  # what fills the rows of ids up (RoBERTa: 1)
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
    unroll: int = 1
    remat: str = "none"
    attention_kernel: str = "auto"
    dtype: str = "float32"

    def setup(self):
        normal = nn.initializers.normal(0.02)
        self.token_embed = nn.Embed(
            self.vocab_size, self.width, embedding_init=normal, dtype=self.dtype
        )
        rows = self.positions or self.max_length + self.position_offset
        self.pos_embed = self.param("pos_embed", normal, (rows, self.width))
        if self.type_embed:
            self.type_embedding = self.param("type_embed", normal, (self.type_embed, self.width))
        norm = partial(layer_norm, self.eps, self.dtype, None)
        if self.embed_norm:
            self.norm_embed = norm()
        if self.final_norm:
            self.norm_final = norm()
        if self.pooler:
            self.pooler_dense = Dense(self.width, dtype=self.dtype)
        self.stack = Stack(block_config(self), layers_of(self))

    def __call__(self, ids, present, keys=None, mask=None):
        positions = self.pos_embed[self.position_offset :]
        if ids.shape[1] > len(positions):
            raise UserError(
                f"text: {ids.shape[1]} tokens a caption exceed the model's "
                f"{len(positions)} positions: "
                "raise max_length or shorten the captions"
            )
        if mask is None:
            mask = ids != self.pad_id if self.mask_padding else jnp.ones_like(ids, dtype=bool)
        mask = mask.astype(bool) & present[:, None]
        x = embed(self.token_embed.embedding, ids, self.dtype)
        x = add_positions(x, positions[: ids.shape[1]])
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


register_encoder("vit")(ViT)
register_encoder("spectrogram")(SpectrogramTransformer)
register_encoder("whisper")(WhisperEncoder)
register_encoder("wav2vec2")(Wav2Vec2)
register_encoder("video")(VideoTransformer)
register_encoder("frames")(FrameTransformer)
