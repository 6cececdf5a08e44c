"""Transformer building blocks that every encoder, fusion and decoder share."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from multimodal.nn.attention import (
    attend,
    best_kernel,
    examples_a_row,
    is_half,
    tokens_to_add,
)
from multimodal.nn.batch import dropout, fold_keys, shard_batch
from multimodal.nn.dense import Dense, DenseGeneral, Heads
from multimodal.nn.rows import wide


class Tokens(struct.PyTreeNode):
    """The one currency between networks.

    Attributes:
      x: [B, L, D] features.
      mask: [B, L] bool, True where a token is real. An all-False row is an example without this
        modality.
      keys: [B] PRNG keys, one an example, that drive dropout; None switches dropout off. Keyed by
        example, a draw does not depend on the batch's order, size or micro-batches.
    """

    x: jax.Array
    mask: jax.Array
    keys: jax.Array | None = None


def quick_gelu(x):
    """x sigmoid(1.702 x), the activation of OpenAI's CLIP weights."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x):
    """x Phi(x). Of 16 bits by erf in float32: erfc, which float32 needs where Phi is next to 0, has
    two branches, and both are computed for every number.
    """
    if not is_half(x.dtype):
        return jax.nn.gelu(x, approximate=False)
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable] = {
    "gelu": gelu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Sizes and switches of one Transformer block; see Block."""

    width: int
    heads: int
    mlp_dim: int
    act: str = "gelu"
    norm: str = "pre"  # 'pre': x + f(LN(x)), as ViT and CLIP; 'post': LN(x + f(x)), as BERT
    eps: float = 1e-6
    causal: bool = False
    cross: bool = False
    dropout: float = 0.0  # of residual branches
    attention_dropout: float = 0.0  # of attention probabilities
    init_std: float = 0.0  # 0: Xavier uniform; otherwise a normal of this deviation (BERT: 0.02)
    dtype: str = "float32"
    layer_scale: float = 0.0  # > 0: branches times a learned vector that starts so (CaiT, DINOv2)
    key_bias: bool = True  # False: keys without bias, which softmax cannot see (Whisper, VideoMAE)
    attention_kernel: str = "auto"  # see nn/attention.py
    real: int = 0  # tokens that are not filling; 0: all (see attention.tokens_to_add)

    @property
    def kernel_init(self):
        """The initialiser of every matrix in the block."""
        if self.init_std:
            return nn.initializers.normal(self.init_std)
        return nn.initializers.xavier_uniform()


def shared_fields(module, cls) -> dict:
    """The fields of a dataclass that a module has as well, with the module's values."""
    own = {f.name for f in dataclasses.fields(module)} - {"parent", "name"}
    return {f.name: getattr(module, f.name) for f in dataclasses.fields(cls) if f.name in own}


def block_config(module, **changes) -> BlockConfig:
    """The BlockConfig that a module's fields of the same names ask for, with changes."""
    return BlockConfig(**shared_fields(module, BlockConfig) | changes)


class Attention(nn.Module):
    """Multi-head attention of x [B, T, width] over context [B, S, any]; q, k and v go straight into
    heads. Short sequences may share a row (see attention.examples_a_row): from here on, since
    queries, keys and values then get the layout that the products want.
    """

    width: int
    heads: int
    dropout: float = 0.0
    causal: bool = False
    kernel_init: Callable = nn.initializers.xavier_uniform()
    dtype: str = "float32"
    key_bias: bool = True
    attention_kernel: str = "auto"
    real: int = 0

    @nn.compact
    def __call__(self, x, context, mask=None, keys=None):
        shape, depth = x.shape, self.width // self.heads
        lengths, masked = (x.shape[1], context.shape[1]), mask is not None
        kernel = best_kernel(self.attention_kernel, self.dtype, *lengths, depth, masked)
        split = partial(
            Heads,
            features=(self.heads, depth),
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            flat=kernel == "cudnn",
        )
        drops = self.dropout and keys is not None
        share = examples_a_row(x, self.dtype, kernel) if x is context and not drops else 1
        if share > 1:
            x = shard_batch(x.reshape(shape[0] // share, share * shape[1], shape[2]))
            context, mask = x, None if mask is None else mask.reshape(x.shape[:2])
        q = checkpoint_name(split(name="query")(x), "query")
        k = checkpoint_name(split(name="key", use_bias=self.key_bias)(context), "key")
        v = checkpoint_name(split(name="value")(context), "value")
        length = shape[1] if share > 1 else 0
        out = attend(q, k, v, mask, self.causal, self.dropout, keys, kernel, length, self.real)
        out = DenseGeneral(
            self.width, axis=(-2, -1), kernel_init=self.kernel_init, dtype=self.dtype, name="out"
        )(out)
        return out.reshape(*shape[:-1], self.width)


class Mlp(nn.Module):
    """Two dense layers with an activation between them."""

    width: int
    hidden: int
    act: str = "gelu"
    kernel_init: Callable = nn.initializers.xavier_uniform()
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        dense = partial(Dense, kernel_init=self.kernel_init, dtype=self.dtype)
        h = checkpoint_name(dense(self.hidden, name="up")(x), "up")
        h = checkpoint_name(ACTIVATIONS[self.act](h), "act")
        return dense(self.width, name="down")(h)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis (Ba et al. 2016), in float32 or better. Its variance takes two
    passes, since E[x^2] - E[x]^2 loses digits that parity needs; but one for 16 bits, where that
    loses less in float32 than the input's rounding did. Its mean and variance, two numbers a token,
    are kept whatever is rematerialised.
    """

    eps: float
    dtype: str

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        x = wide(x)
        mean = checkpoint_name(x.mean(-1, keepdims=True), "norm")
        if is_half(self.dtype):
            variance = jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean)
            variance = jnp.maximum(checkpoint_name(variance, "norm"), 0)
        else:
            variance = checkpoint_name(jnp.square(x - mean).mean(-1, keepdims=True), "norm")
        factor = jax.lax.rsqrt(variance + self.eps)
        return ((x - mean) * (factor * scale) + bias).astype(self.dtype)


def layer_norm(eps, dtype, name):
    """A LayerNorm module."""
    return LayerNorm(eps, dtype, name=name)


class Block(nn.Module):
    """Self-attention, optional cross-attention, MLP; pre-norm (ViT, CLIP) or post-norm (BERT,
    ALBEF).
    """

    cfg: BlockConfig

    @nn.compact
    def __call__(self, x, keys, mask=None, context=None):
        """x [B, L, D]; keys [B], mask [B, L] and context Tokens, or None each -> [B, L, D]."""
        c = self.cfg
        attention = partial(
            Attention,
            c.width,
            c.heads,
            c.attention_dropout,
            kernel_init=c.kernel_init,
            dtype=c.dtype,
            key_bias=c.key_bias,
            attention_kernel=c.attention_kernel,
        )

        def branch(x, name, i, fn):
            norm = layer_norm(c.eps, c.dtype, f"norm_{name}")
            if c.layer_scale:
                start = nn.initializers.constant(c.layer_scale)
                scale = self.param(f"scale_{name}", start, (c.width,)).astype(x.dtype)
                fn = partial(lambda f, h, k: f(h, k) * scale, fn)
            keys_in, keys_out = fold_keys(keys, 2 * i), fold_keys(keys, 2 * i + 1)
            if c.norm == "pre":
                h = checkpoint_name(norm(x), "normed")
                x = x + dropout(fn(h, keys_in), c.dropout, keys_out)
                return checkpoint_name(x, "residual")
            return norm(x + dropout(fn(x, keys_in), c.dropout, keys_out))

        x = shard_batch(x)
        self_attention = attention(causal=c.causal, real=c.real, name="attention")
        x = branch(x, "attention", 0, lambda h, k: self_attention(h, h, mask, k))
        if c.cross:
            cross_attention = attention(name="cross_attention")
            context = jax.tree.map(shard_batch, context)
            # An example without context gets nothing from it, rather than a mean of padding.
            seen = context.mask.any(-1)[:, None, None]
            x = branch(
                x,
                "cross_attention",
                1,
                lambda h, k: jnp.where(seen, cross_attention(h, context.x, context.mask, k), 0),
            )
        mlp = Mlp(c.width, c.mlp_dim, c.act, c.kernel_init, c.dtype, name="mlp")
        return branch(x, "mlp", 2, lambda h, _: mlp(h))


# What can be kept of a block: what norms give (pre-norm), attention's inputs, its output, the sum
# after each branch (pre-norm), the MLP's first product, what its activation gives. See keeps.
KEPT = ("normed", "query", "key", "value", "context", "residual", "up", "act")
REMAT = {"full": (), "attention": ("query", "key", "value", "context"), "elementwise": KEPT}

POLICIES = {
    "products": jax.checkpoint_policies.dots_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def is_remat(value):
    """Whether `remat` may be this: see Layers."""
    return value in ("none", *POLICIES, *REMAT) or set(value.split("+")) <= set(KEPT)


def keeps(remat):
    """The checkpoint policy of a value of `remat` other than 'none'."""
    policies = jax.checkpoint_policies
    names = REMAT.get(remat, remat.split("+"))
    policy = policies.save_only_these_names("norm", *names)
    if remat in POLICIES:
        return policies.save_from_both_policies(policy, POLICIES[remat])
    return policies.save_from_both_policies(policy, is_cudnn) if "context" in names else policy


def is_cudnn(primitive, *_, **__):
    """Whether this is cuDNN's attention, whose context goes with two numbers a row: a policy."""
    return primitive.name.startswith("dot_product_attention_fwd")


@dataclasses.dataclass(frozen=True)
class Layers:
    """How a stack's layers follow each other.

    Attributes:
      depth: how many.
      scan: parameters stacked along a first axis, and a loop over layers, so that compile time does
        not grow with depth.
      unroll: layers in one turn of that loop; from depth on there is no loop. There is more to
        compile, but what is kept for the backward pass is not copied into a stack.
      remat: what the backward pass computes again: 'none' | 'full' | 'products' (all but matrix
        products) | 'dots' (attention's two as well) | 'attention' (all but its inputs and output) |
        'elementwise' (all but KEPT: of pre-norm blocks no product but XLA's attention's) | all but
        names of KEPT joined by +: 'context+residual+up' saves the most time for its memory,
        6 [B, L, width] a layer more than 'full' where the MLP is 4 times as wide.
    """

    depth: int
    scan: bool = False
    unroll: int = 1
    remat: str = "none"


def layers_of(module, **changes) -> Layers:
    """The Layers that a module's fields of the same names ask for, with changes."""
    return Layers(**shared_fields(module, Layers) | changes)


def repeat(cls, make, apply, carry, layers: Layers, name="block"):
    """Layers of one kind after each other; call in a compact method.

    Args:
      cls: the layer's class; make(cls, name) builds one of it (or of its rematerialised copy).
      apply: (layer, carry, i) -> carry of the same structure; i is traced when scanned.
      name: parameters are NAMEs, stacked, when scanned, else NAME_0, NAME_1, ...
    """
    depth, unroll = layers.depth, min(layers.unroll, layers.depth)
    if not depth:
        return carry
    if layers.remat != "none":
        # In a loop nothing can be taken from the forward pass, in one body of layers it could.
        loop = layers.scan and unroll == 1
        cls = nn.remat(cls, policy=keeps(layers.remat), prevent_cse=not loop)
    if not layers.scan:
        for i in range(depth):
            carry = apply(make(cls, f"{name}_{i}"), carry, i)
        return carry
    scanned = nn.scan(
        lambda layer, carry, i: (apply(layer, carry, i), None),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=depth,
        unroll=unroll,
    )
    return scanned(make(cls, f"{name}s"), carry, jnp.arange(depth))[0]


class Stack(nn.Module):
    """A stack of blocks, one by one or scanned; see Layers."""

    cfg: BlockConfig
    layers: Layers

    @nn.compact
    def __call__(self, x, keys=None, mask=None, context=None):
        c, length = self.cfg, x.shape[1]
        drops = keys is not None and (c.dropout or c.attention_dropout)
        if mask is None and not drops:  # draws depend on the number of tokens
            extra = tokens_to_add(length, c.width // c.heads, c.dtype, c.attention_kernel)
            if extra:
                c = dataclasses.replace(c, real=length)
                x = jnp.pad(x, ((0, 0), (0, extra), (0, 0)))
        x = repeat(
            Block,
            lambda cls, name: cls(c, name=name),
            lambda block, x, i: block(x, fold_keys(keys, i), mask, context),
            x,
            self.layers,
        )
        return x[:, :length]
