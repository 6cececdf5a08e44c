"""Audio encoders over log-mel spectrograms: patches (AST) and convolutions (Whisper)."""

import math

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from multimodal.errors import UserError
from multimodal.nn.dense import Dense
from multimodal.nn.layers import (
    ACTIVATIONS,
    Stack,
    Tokens,
    block_config,
    dropout,
    fold_keys,
    layer_norm,
    layers_of,
)
from multimodal.nn.spectrogram import frame_count, log_mel
from multimodal.nn.vit import PatchTransformer, patchify

WAVE_FIELDS = ("features", "sample_rate", "mels", "window", "hop", "fft", "fmin", "fmax")


def check_pool(module, known):
    """Raise UserError for a pool that an encoder does not have."""
    if module.pool not in known:
        raise UserError(
            f"config.modalities.<m>.pool: {type(module).__name__} has no {module.pool!r}: "
            f"give one of {', '.join(known)}"
        )


def spectrogram_of(module, x):
    """[B, mels, frames] in the module's dtype, of waves [B, T] or of spectrograms as they are.

    Waves become (log_mel - spec_mean) / spec_std, but 'whisper' features, which are normalised by
    definition. Raises UserError for another number of bands or frames than the config's.
    """
    if x.ndim == 2:
        x = log_mel(x, **{k: getattr(module, k) for k in WAVE_FIELDS})
        if module.features != "whisper":
            x = (x - module.spec_mean) / module.spec_std
    samples = round(module.sample_rate * module.seconds)
    frames = frame_count(samples, module.features, module.window, module.hop, module.fft)
    if x.shape[1:] != (module.mels, frames):
        raise UserError(
            f"audio: the model takes {module.mels} mel bands x {frames} frames, the batch has "
            f"{x.shape[1]} x {x.shape[2]}: set mels, seconds, sample_rate and hop to the data's"
        )
    return x.astype(module.dtype)


class SpectrogramTransformer(PatchTransformer):
    """Audio Spectrogram Transformer (Gong et al. 2021): a ViT over patches of mel bands x frames.

    Takes waves [B, T], T = sample_rate * seconds, or spectrograms [B, mels, frames] as they are.
    Tokens: special tokens, then patches, bands outside, time inside. With a distillation token
    pool 'class' is the mean of both special tokens, as AST has it.
    """

    class_token: bool = False  # True also where the pool is 'class'
    pool: str = "class"
    sample_rate: int = 16_000
    seconds: float = 10.0
    features: str = "log_mel"
    mels: int = 128
    window: int = 400
    hop: int = 160
    fft: int = 512
    fmin: float = 0.0
    fmax: float = 0.0
    spec_mean: float = 0.0
    spec_std: float = 1.0
    patch: tuple[int, int] = (16, 16)  # mel bands, frames
    stride: tuple[int, int] | tuple = ()  # (): the patch

    def has_class_token(self):
        return self.class_token or self.pool == "class"

    @nn.compact
    def __call__(self, sound, present, keys=None, mask=None):
        check_pool(self, ("class", "mean", "map", "none"))
        x = spectrogram_of(self, sound)[..., None]
        x = patchify(x, self.patch, self.stride)
        x = Dense(self.width, dtype=self.dtype, name="patch_embed")(x)
        return self.transform(x, present, keys)


def whisper_sinusoids(length, width):
    """[length, width]: sines, then cosines, of wavelengths from 2 pi to 20,000 pi."""
    half = width // 2
    step = math.log(10_000) / max(half - 1, 1)
    angles = np.arange(length)[:, None] * np.exp(-step * np.arange(half))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class WhisperEncoder(nn.Module):
    """Whisper's encoder (Radford et al. 2022, section 2.2): two convolutions, pre-norm blocks.

    Takes waves [B, T] or spectrograms [B, mels, frames]. Tokens: one for two frames. Its positions
    are fixed sinusoids; 'learned' holds them as a parameter, which files of weights bring along.
    """

    sample_rate: int = 16_000
    seconds: float = 30.0
    features: str = "whisper"
    mels: int = 80
    window: int = 400
    hop: int = 160
    fft: int = 400
    fmin: float = 0.0
    fmax: float = 0.0
    spec_mean: float = 0.0
    spec_std: float = 1.0
    position_embedding: str = "sinusoid"  # | 'learned'
    width: int = 384
    depth: int = 4  # 0: convolutions and positions, then the final norm
    heads: int = 6
    mlp_dim: int = 1536
    act: str = "gelu"
    eps: float = 1e-5
    pool: str = "mean"  # 'mean' | 'none'
    key_bias: bool = False
    layer_scale: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.0
    scan: bool = False
    unroll: int = 1
    remat: str = "none"
    attention_kernel: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, sound, present, keys=None, mask=None):
        check_pool(self, ("mean", "none"))
        x = spectrogram_of(self, sound).swapaxes(1, 2)
        for i, stride in enumerate((1, 2), start=1):
            conv = nn.Conv(self.width, (3,), stride, padding=1, dtype=self.dtype, name=f"conv{i}")
            x = ACTIVATIONS["gelu"](conv(x))
        table = whisper_sinusoids(*x.shape[1:])
        if self.position_embedding == "learned":
            table = self.param("pos_embed", lambda _: jnp.asarray(table))
        x = dropout(x + jnp.asarray(table, x.dtype), self.dropout, fold_keys(keys, 0))
        stack = Stack(block_config(self), layers_of(self), name="stack")
        x = stack(x, fold_keys(keys, 1))
        x = layer_norm(self.eps, self.dtype, "final_norm")(x)
        tokens = Tokens(x, jnp.broadcast_to(present[:, None], x.shape[:2]), fold_keys(keys, 2))
        return tokens, x.mean(1) if self.pool == "mean" else None
