"""wav2vec 2.0: a Transformer over a waveform's convolutional features."""

import jax.numpy as jnp
from flax import linen as nn

from multimodal.errors import UserError
from multimodal.nn.audio import check_pool
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


class FeatureEncoder(nn.Module):
    """Convolutions over a wave [B, T] -> [B, L, features]; the first with a norm of each channel
    over time (Baevski et al. 2020, section 2, in the form of the base model)."""

    dims: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    act: str = "gelu"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, wave):
        x = wave[..., None]
        for i, (dim, kernel, stride) in enumerate(zip(self.dims, self.kernels, self.strides)):
            x = nn.Conv(
                dim,
                (kernel,),
                stride,
                padding="VALID",
                use_bias=False,
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x)
            if i == 0:
                x = nn.GroupNorm(
                    dim, epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name="norm"
                )(x)
            x = ACTIVATIONS[self.act](x)
        return x


class PositionalConvolution(nn.Module):
    """A grouped convolution over time, whose output is added as a position embedding.

    Its kernel is `scale` x direction / |direction|, the norm taken for each tap (weight
    normalisation, Salimans and Kingma 2016, over the last axis).
    """

    kernel: int
    groups: int
    act: str = "gelu"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        normal = nn.initializers.normal((4.0 / (self.kernel * width)) ** 0.5)
        v = self.param("direction", normal, (self.kernel, width // self.groups, width))
        norm = jnp.sqrt((v * v).sum((1, 2), keepdims=True))
        g = self.param("scale", lambda _: norm)
        bias = self.param("bias", nn.initializers.zeros, (width,))
        conv = nn.Conv(
            width,
            (self.kernel,),
            padding=[(self.kernel // 2, (self.kernel - 1) // 2)],
            feature_group_count=self.groups,
            dtype=self.dtype,
            parent=None,
        )
        return ACTIVATIONS[self.act](
            conv.apply({"params": {"kernel": v * (g / norm), "bias": bias}}, x)
        )


class Wav2Vec2(nn.Module):
    """wav2vec 2.0's base model (Baevski et al. 2020), without quantisation and masking.

    Takes waves [B, T]. Tokens: one for each step of the convolutions (20 ms at 16 kHz with the
    published strides). Raises UserError for anything but waves, and for too short ones.
    """

    conv_dims: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    position_kernel: int = 128
    position_groups: int = 16
    normalize_wave: bool = False  # each wave to zero mean and unit variance
    width: int = 768
    depth: int = 12  # 0: features and positions, then their norm
    heads: int = 12
    mlp_dim: int = 3072
    act: str = "gelu"
    eps: float = 1e-5
    pool: str = "mean"  # 'mean' | 'none'
    layer_scale: float = 0.0
    key_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.0
    scan: bool = False
    unroll: int = 1
    remat: str = "none"
    attention_kernel: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, wave, present, keys=None, mask=None):
        check_pool(self, ("mean", "none"))
        self._check(wave)
        if self.normalize_wave:
            centred = wave - wave.mean(1, keepdims=True)
            wave = centred / jnp.sqrt((centred * centred).mean(1, keepdims=True) + 1e-7)
        x = FeatureEncoder(
            self.conv_dims, self.conv_kernels, self.conv_strides, dtype=self.dtype, name="features"
        )(wave.astype(self.dtype))
        x = layer_norm(self.eps, self.dtype, "feature_norm")(x)
        x = Dense(self.width, dtype=self.dtype, name="feature_projection")(x)
        x = x + PositionalConvolution(
            self.position_kernel, self.position_groups, dtype=self.dtype, name="positions"
        )(x)
        x = layer_norm(self.eps, self.dtype, "norm_embed")(x)
        x = dropout(x, self.dropout, fold_keys(keys, 0))
        cfg = block_config(self, norm="post")
        stack = Stack(cfg, layers_of(self), name="stack")
        x = stack(x, fold_keys(keys, 1))
        tokens = Tokens(x, jnp.broadcast_to(present[:, None], x.shape[:2]), fold_keys(keys, 2))
        return tokens, x.mean(1) if self.pool == "mean" else None

    def _check(self, wave):
        """Raise UserError for what cannot go through the convolutions."""
        if wave.ndim != 2:
            raise UserError(
                f"audio: wav2vec2 takes waves [B, T], the batch has {wave.ndim} axes: "
                "give waveforms, or set modalities.<m>.encoder to spectrogram or whisper"
            )
        length = wave.shape[1]
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            length = (length - kernel) // stride + 1
        if length < 1:
            raise UserError(
                f"audio: {wave.shape[1]} samples are too few for wav2vec2's convolutions: "
                "raise seconds"
            )
