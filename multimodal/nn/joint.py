"""The joint representation h_m of all modalities: where they meet (stage) times how (operator).

Stage 'early': the towers only embed, and one sequence of all tokens goes through the joint blocks.
'hybrid': towers run apart, then some blocks together. 'late': whole towers, and only their pooled
vectors meet. The number of blocks is the same at every stage; the stage moves them.
"""

import itertools
import math

import jax.numpy as jnp
from flax import linen as nn

from multimodal.nn.dense import Dense, DenseGeneral
from multimodal.nn.encoders import mean_pool
from multimodal.nn.layers import (
    Block,
    BlockConfig,
    Stack,
    Tokens,
    attend,
    block_config,
    dropout,
    fold_keys,
    layer_norm,
    layers_of,
    repeat,
    shared_fields,
)
from multimodal.nn.operators import OPERATORS

STAGES = ("early", "hybrid", "late")
CROSS = 1_000  # folds the keys of a layer's cross-attention apart from its block's


def blocks_apart(stage: str, depth: int, together: int) -> int:
    """Blocks of a tower of `depth` that run before the modalities meet.

    together: blocks that a tower gives to the joint part, at the stage 'hybrid'.
    """
    return {"early": 0, "hybrid": depth - together, "late": depth}[stage]


class CrossAttention(nn.Module):
    """One modality over another: Q = H_t W_q, K = H_v W_k, V = H_v W_v, O = softmax(Q K^T /
    sqrt(d)) V, LayerNorm(O + H_t).

    With several heads each has its own d = width / heads and their outputs are concatenated. An
    example without context gets O = 0. Dropout acts on A (`attention_dropout`) and on O.
    """

    width: int
    heads: int = 1
    eps: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0
    attention_kernel: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Tokens, context: Tokens | None) -> Tokens:
        out = 0
        keys_in, keys_out = fold_keys(x.keys, 0), fold_keys(x.keys, 1)
        if context is not None:
            q, k, v = (
                DenseGeneral(
                    (self.heads, self.width // self.heads),
                    use_bias=False,
                    kernel_init=nn.initializers.xavier_uniform(),
                    dtype=self.dtype,
                    name=name,
                )(side.x)
                for name, side in (("query", x), ("key", context), ("value", context))
            )
            out = attend(
                q,
                k,
                v,
                context.mask,
                rate=self.attention_dropout,
                keys=keys_in,
                kernel=self.attention_kernel,
            )
            out = jnp.where(context.mask.any(-1)[:, None, None, None], out, 0)
            out = dropout(out.reshape(*x.x.shape[:2], self.width), self.dropout, keys_out)
        return x.replace(x=layer_norm(self.eps, self.dtype, "norm")(out + x.x))


def concatenate(parts: list[Tokens]) -> Tokens:
    """One sequence of the tokens of all parts."""
    return Tokens(
        jnp.concatenate([p.x for p in parts], axis=1),
        jnp.concatenate([p.mask for p in parts], axis=1),
        parts[0].keys,
    )


def split(tokens: Tokens, parts: list[Tokens]) -> list[Tokens]:
    """The inverse of concatenate, with masks and keys as in parts."""
    ends = itertools.accumulate((p.x.shape[1] for p in parts), initial=0)
    bounds = itertools.pairwise(ends)
    return [p.replace(x=tokens.x[:, a:b]) for p, (a, b) in zip(parts, bounds, strict=True)]


def pool(tokens: Tokens):
    """Mean of the tokens [B, D], and whether there is any [B, 1]."""
    return mean_pool(tokens), tokens.mask.any(-1, keepdims=True)


def self_block(cfg, m, p, keys):
    """One modality's tokens through a block of its own; call in a compact method."""
    return p.replace(x=Block(cfg, name=f"self_{m}")(p.x, keys, p.mask))


class AttentionLayer(nn.Module):
    """One layer of the multimodal Transformer: tokens of the modalities -> (after self-attention,
    after cross-attention over the others').

    Attributes:
      asks: which of the modalities attend to the others; alone: whether there is self-attention.
    """

    names: tuple[str, ...]
    cfg: BlockConfig
    asks: tuple[bool, ...]
    alone: bool = True

    @nn.compact
    def __call__(self, parts, i):
        c, own, out = self.cfg, list(parts), []
        keys = [fold_keys(p.keys, i) for p in parts]
        if self.alone:
            own = [self_block(c, *of) for of in zip(self.names, parts, keys, strict=True)]
        for n, (m, p) in enumerate(zip(self.names, own, strict=True)):
            if self.asks[n]:
                others = own[:n] + own[n + 1 :]
                asking = p.replace(keys=fold_keys(keys[n], CROSS))
                cross = CrossAttention(**shared_fields(c, CrossAttention), name=f"cross_{m}")
                p = cross(asking, concatenate(others) if others else None).replace(keys=p.keys)
            out.append(p)
        return own, out


class BottleneckLayer(nn.Module):
    """Blocks of each modality over its own tokens and the shared bottleneck z, whose copies are
    averaged (Nagrani et al. 2021, eq. 8-9): (tokens of the modalities, z) -> the same.
    """

    names: tuple[str, ...]
    cfg: BlockConfig

    @nn.compact
    def __call__(self, parts, z, i):
        out, seen, size = [], [], z.shape[1]
        for m, p in zip(self.names, parts, strict=True):
            both = concatenate([p, Tokens(z, jnp.ones(z.shape[:2], bool))])
            x = self_block(self.cfg, m, both, fold_keys(p.keys, i)).x
            out.append(p.replace(x=x[:, :-size]))
            seen.append(x[:, -size:])
        there = jnp.stack([p.mask.any(-1) for p in parts])[..., None, None]
        mean = jnp.where(there, jnp.stack(seen), 0).sum(0) / jnp.maximum(there.sum(0), 1)
        return out, mean.astype(z.dtype)


class JointFusion(nn.Module):
    """Tokens or pooled vectors of the modalities -> (Tokens of all, h_m [B, width]).

    Missing modalities are masked, or with `standin` replaced by one learned token each. Operators
    of vectors (tensor, gated, ...) act at the early and hybrid stage on each token and the mean of
    the other modalities' tokens, before the joint blocks.

    Attributes:
      names: the modalities, in order; together: the blocks that each gives to the joint part.
      query: for the operator 'attention', the modality that attends to the others; '': all do.
      bottleneck: for 'concat', tokens through which the modalities see each other, which otherwise
        stay apart (Nagrani et al. 2021, MBT); 0: full attention over the one sequence.
      inner, rank, form: see operators.py.
    """

    names: tuple[str, ...]
    together: tuple[int, ...]
    stage: str = "late"
    operator: str = "concat"
    query: str = ""
    bottleneck: int = 0
    standin: bool = False
    inner: int = 16
    rank: int = 4
    form: str = "vector"
    width: int = 192
    heads: int = 3
    mlp_dim: int = 768
    act: str = "gelu"
    eps: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.0
    scan: bool = False
    unroll: int = 1
    remat: str = "none"
    attention_kernel: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, encoded: dict):
        parts = [self._enter(m, encoded[m]) for m in self.names]
        at_end = self.operator if self.stage == "late" else "concat"
        if self.operator == "attention":
            at_end = "concat"
            parts, pairs = self._attention(parts)
        else:
            if self.stage != "late":
                parts = self._bottleneck(parts) if self.bottleneck else self._one_sequence(parts)
            pairs = [pool(p) for p in parts]
        combine = self._operator(at_end, "combine")
        h = combine([jnp.where(there, x, 0) for x, there in pairs], [there for _, there in pairs])
        return concatenate(parts), layer_norm(self.eps, self.dtype, "norm_joint")(h)

    def _operator(self, operator, name):
        cls = OPERATORS[operator]
        options = {
            k: getattr(self, k) for k in ("inner", "rank", "form") if k in cls.__dataclass_fields__
        }
        return cls(self.width, **options, dtype=self.dtype, name=name)

    def _enter(self, m, e):
        """A modality's tokens (late: its pooled vector as one) in the joint width; the layer's bias
        tells the modalities apart."""
        tokens = e.tokens
        if self.stage == "late":
            tokens = Tokens(e.pooled[:, None], e.present[:, None], tokens.keys)
        x = Dense(self.width, dtype=self.dtype, name=f"enter_{m}")(tokens.x)
        mask = tokens.mask
        if self.standin:
            token = self.param(f"standin_{m}", nn.initializers.normal(0.02), (self.width,))
            gone = ~mask.any(-1, keepdims=True) & (jnp.arange(x.shape[1]) == 0)
            x, mask = jnp.where(gone[..., None], token.astype(x.dtype), x), mask | gone
        return Tokens(x, mask, tokens.keys)

    def _one_sequence(self, parts):
        """The joint blocks over all tokens, which the operator has conditioned on each other."""
        parts = parts if self.operator == "concat" else self._condition(parts)
        tokens = concatenate(parts)
        layers = layers_of(self, depth=sum(self.together))
        stack = Stack(block_config(self, norm="pre"), layers, name="joint_stack")
        x = stack(tokens.x, fold_keys(tokens.keys, 0), tokens.mask)
        return split(tokens.replace(x=x), parts)

    def _condition(self, parts):
        """Each token plus the operator on it and the mean of the other modalities' tokens."""
        out = []
        for i, p in enumerate(parts):
            others = [q for j, q in enumerate(parts) if j != i]
            if not others:
                return parts
            other = concatenate(others)
            there = other.mask.any(-1)[:, None, None]
            mean = jnp.broadcast_to(mean_pool(other)[:, None], p.x.shape)
            mine = p.mask[..., None]
            xs = [jnp.where(mine, p.x, 0), jnp.where(there, mean, 0)]
            added = self._operator(self.operator, f"condition_{self.names[i]}")(xs, [mine, there])
            out.append(p.replace(x=p.x + added))
        return out

    def _attention(self, parts):
        """The multimodal Transformer: in each layer self-attention S_t, then cross-attention C_t
        over the other modalities. What is combined are the means of both of the last layer.
        """
        late = self.stage == "late"
        asks = tuple(self.query in ("", m) for m in self.names)
        own, parts = self._layers(
            AttentionLayer,
            lambda layer, carry, i: layer(carry[1], i),
            (parts, parts),
            1 if late else math.ceil(sum(self.together) / len(parts)),
            "attend",
            asks=asks,
            alone=not late,
        )
        both = [(s, c) if asking else (s,) for s, c, asking in zip(own, parts, asks, strict=True)]
        return parts, [pool(tokens) for results in both for tokens in results]

    def _bottleneck(self, parts):
        """Layers in which modalities see each other through the shared bottleneck's tokens."""
        shape = (1, self.bottleneck, self.width)
        z = self.param("bottleneck_tokens", nn.initializers.normal(0.02), shape)
        z = jnp.broadcast_to(z.astype(parts[0].x.dtype), (len(parts[0].x), *shape[1:]))
        parts, _ = self._layers(
            BottleneckLayer,
            lambda layer, carry, i: layer(*carry, i),
            (parts, z),
            math.ceil(sum(self.together) / len(parts)),
            "bottleneck",
        )
        return parts

    def _layers(self, cls, apply, carry, depth, name, **fields):
        cfg = block_config(self, norm="pre")

        def make(cls, name):
            return cls(self.names, cfg, **fields, name=name)

        return repeat(cls, make, apply, carry, layers_of(self, depth=depth), name)
