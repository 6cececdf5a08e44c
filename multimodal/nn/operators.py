"""Fusion operators: several modalities' vectors -> one. Functions of arrays, and modules that hold
their parameters.

A module is called with vectors [..., D_m] (zero where a modality is missing) and presences
[..., 1] bool, and gives [..., width].
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from multimodal.nn.dense import Dense

OPERATORS: dict[str, type[nn.Module]] = {}


def register_operator(name):
    """Class decorator: make an operator of vectors known as `fusion.operator = name`."""

    def add(cls):
        OPERATORS[name] = cls
        return cls

    return add


def with_one(x):
    """[1; x]: with the constant, a product of such vectors holds every lower-order term too."""
    return jnp.concatenate([jnp.ones_like(x[..., :1]), x], axis=-1)


def outer_product(xs):
    """The flattened outer product of [1; x] over the vectors xs [..., D_m]: [..., prod(D_m + 1)].

    Tensor fusion (Zadeh et al. 2017, eq. 3).
    """
    out = with_one(xs[0])
    for x in xs[1:]:
        out = (out[..., :, None] * with_one(x)[..., None, :]).reshape(*out.shape[:-1], -1)
    return out


def low_rank_product(xs, factors, weights, bias):
    """sum_r w_r prod_m [1; x_m] F_m[r] + b (Liu et al. 2018, eq. 8), never forming the tensor.

    Args:
      xs: vectors [..., D_m]; factors: [R, D_m + 1, W] each; weights [R]; bias [W].
    """
    product = 1
    for x, factor in zip(xs, factors, strict=True):
        product = product * jnp.einsum("...d,rdw->...rw", with_one(x), factor)
    return jnp.einsum("...rw,r->...w", product, weights) + bias


def multiplicative(x, y, w, u, v, b):
    """Multiplicative interaction of x [..., N] and y [..., M] (Jayakumar et al. 2020, eq. 1).

    The shape of w tells which: [N, M, W] a matrix (W' = x w + v, result y W' + x u + b), [N, M] a
    vector (result (x w + v) * y + x u + b), [N] a scalar (the same, one factor for all of y).
    """
    if w.ndim == 3:
        generated = jnp.einsum("...n,nmw->...mw", x, w) + v
        return jnp.einsum("...m,...mw->...w", y, generated) + x @ u + b
    if w.ndim == 2:
        return (x @ w + v) * y + x @ u + b
    return ((x @ w)[..., None] + v) * y + (x @ u)[..., None] + b


def softmax_gate(query, keys, values):
    """query + softmax(query keys) values: the non-local gate of MultiBench (Wang et al. 2018).

    Args: query [B, T, C]; keys [B, C, S]; values [B, S, C].
    """
    return query + jax.nn.softmax(query @ keys, axis=-1) @ values


class Reduce(nn.Module):
    """A dense layer that leaves a missing modality at zero."""

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, there):
        return jnp.where(there, Dense(self.width, dtype=self.dtype)(x), 0)


@register_operator("concat")
class Concatenation(nn.Module):
    """A dense layer over [x_1; x_2; ...]."""

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, xs, there):
        return Dense(self.width, dtype=self.dtype, name="out")(jnp.concatenate(xs, axis=-1))


@register_operator("tensor")
class Tensor(nn.Module):
    """A dense layer over the full outer product of [1; x], each x first reduced to `inner`
    numbers: the product has (inner + 1)^M.
    """

    width: int
    inner: int = 16
    dtype: str = "float32"

    @nn.compact
    def __call__(self, xs, there):
        small = [
            Reduce(self.inner, self.dtype, name=f"reduce_{i}")(x, t)
            for i, (x, t) in enumerate(zip(xs, there, strict=True))
        ]
        return Dense(self.width, dtype=self.dtype, name="out")(outer_product(small))


@register_operator("low_rank_tensor")
class LowRankTensor(nn.Module):
    """The outer product through `rank` trainable factors a modality (MultiBench's are no
    parameters, and stay at their random start).
    """

    width: int
    rank: int = 4
    dtype: str = "float32"

    @nn.compact
    def __call__(self, xs, there):
        init = nn.initializers.xavier_normal(in_axis=-2, out_axis=-1, batch_axis=(0,))
        factors = [
            self.param(f"factor_{i}", init, (self.rank, x.shape[-1] + 1, self.width))
            for i, x in enumerate(xs)
        ]
        # Near one, the products of M factors keep the scale of a single one.
        weights = self.param("weights", nn.initializers.normal(1.0), (self.rank,))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        cast = [p.astype(xs[0].dtype) for p in (*factors, weights, bias)]
        return low_rank_product(xs, cast[:-2], *cast[-2:])


@register_operator("gated")
class Gated(nn.Module):
    """Gated multimodal unit: sum_m g_m * tanh(W_m x_m), gates from all of them (Arevalo et al.
    2017, eq. 1-4); with a softmax over the modalities that are there, for any number of them.
    """

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, xs, there):
        together = jnp.concatenate(xs, axis=-1)
        values, gates = [], []
        for i, x in enumerate(xs):
            values.append(jnp.tanh(Dense(self.width, dtype=self.dtype, name=f"value_{i}")(x)))
            gates.append(Dense(self.width, dtype=self.dtype, name=f"gate_{i}")(together))
        seen = jnp.stack([jnp.broadcast_to(t, g.shape) for t, g in zip(there, gates, strict=True)])
        floor = jnp.finfo(gates[0].dtype).min / 2
        gates = jax.nn.softmax(jnp.where(seen, jnp.stack(gates), floor), axis=0)
        return (jnp.where(seen, gates, 0) * jnp.stack(values)).sum(0)


@register_operator("multiplicative")
class Multiplicative(nn.Module):
    """Multiplicative interaction of the first vector with the second, of the result with the third,
    and so on; `form` says what the one generates for the other.
    """

    width: int
    form: str = "vector"  # 'matrix' | 'vector' | 'scalar'
    inner: int = 16  # of a matrix: both are first reduced to so many numbers
    dtype: str = "float32"

    @nn.compact
    def __call__(self, xs, there):
        size = self.inner if self.form == "matrix" else self.width
        small = [
            Reduce(size, self.dtype, name=f"reduce_{i}")(x, t)
            for i, (x, t) in enumerate(zip(xs, there, strict=True))
        ]
        out = small[0]
        for i, y in enumerate(small[1:]):
            out = multiplicative(out, y, *self._weights(i, out.shape[-1], size, y.dtype))
        return Dense(self.width, dtype=self.dtype, name="out")(out)

    def _weights(self, i, n, m, dtype):
        shapes = {
            "matrix": ((n, m, self.width), (n, self.width), (m, self.width), (self.width,)),
            "vector": ((n, m), (n, m), (m,), (m,)),
            "scalar": ((n,), (n,), (1,), (1,)),
        }[self.form]
        fan = nn.initializers.normal((n * m if self.form == "matrix" else n) ** -0.5)
        inits = (fan, nn.initializers.normal(n**-0.5), nn.initializers.ones, nn.initializers.zeros)
        if self.form == "matrix":
            inits = (*inits[:2], nn.initializers.normal(m**-0.5), inits[3])
        return [
            self.param(f"{name}_{i}", init, shape).astype(dtype)
            for name, init, shape in zip("wuvb", inits, shapes, strict=True)
        ]
