"""Dense layers, whose weights' gradient is computed in the form that CPUs multiply fast."""

import math
from collections.abc import Callable
from functools import partial

import jax
from flax import linen as nn

from multimodal.nn.batch import platform

# JAX's product and its code, as they are while nobody has put others in their place: see replaced.
DOT = jax.lax.dot_general
CODE = getattr(DOT, "__code__", None)


def product(x, kernel, dimension_numbers, precision=None, **kwargs):
    """jax.lax.dot_general, for a layer's `dot_general`: the same values, and on a CPU the gradient
    of the kernel in another form.

    JAX writes that gradient as (dy^T x)^T: XLA copies dy into the other order first, which after an
    MLP's first layer is four times as wide as x. Here it is x^T dy wherever that turns fewer
    numbers. GPUs and TPUs multiply in either order without a copy. On a CPU this differentiates in
    reverse mode only, and a vmap over x alone sums the kernel's gradient after the product.
    """
    (contract, over), batch = dimension_numbers
    n = len(over)
    axes = tuple(range(x.ndim - n, x.ndim)), tuple(range(n))
    dense = (tuple(contract), tuple(over)) == axes and not any(batch)
    usual = dense and x.dtype == kernel.dtype and not kwargs
    if platform() != "cpu" or not usual or replaced() or not partitioned_by_xla():
        return jax.lax.dot_general(x, kernel, dimension_numbers, precision, **kwargs)
    return _product(x, kernel, n, precision)


def partitioned_by_xla() -> bool:
    """Whether no axis of the mesh is explicit, or inside shard_map, where types tell the layout."""
    types = jax.sharding.get_abstract_mesh().axis_types
    return all(t == jax.sharding.AxisType.Auto for t in types)


def replaced() -> bool:
    """Whether JAX's product is another while this is traced: qwix's, with gradients of its own."""
    return jax.lax.dot_general is not DOT or getattr(DOT, "__code__", None) is not CODE


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x, kernel, n, precision):
    return _forward(x, kernel, n, precision)[0]


def _forward(x, kernel, n, precision):  # the product itself, which policies of remat look for
    inner = tuple(range(x.ndim - n, x.ndim)), tuple(range(n))
    return jax.lax.dot_general(x, kernel, (inner, ((), ())), precision), (x, kernel)


def _backward(n, precision, kept, dy):
    x, kernel = kept
    rows = tuple(range(x.ndim - n))
    outs = tuple(range(len(rows), dy.ndim)), tuple(range(n, kernel.ndim))
    dx = jax.lax.dot_general(dy, kernel, (outs, ((), ())), precision)
    over = ((rows, rows), ((), ()))
    number, into, out = map(math.prod, (x.shape[:-n], kernel.shape[:n], kernel.shape[n:]))
    if number * into <= (number + into) * out:
        return dx, jax.lax.dot_general(x, dy, over, precision)
    # Turned after the product: XLA would fold the two into one of its slower kind.
    turned = jax.lax.optimization_barrier(jax.lax.dot_general(dy, x, over, precision))
    return dx, turned.transpose(*range(kernel.ndim - n, kernel.ndim), *range(kernel.ndim - n))


_product.defvjp(_forward, _backward)


class Dense(nn.Dense):
    """A dense layer [..., D] -> [..., features]."""

    dot_general: Callable = product


class DenseGeneral(nn.DenseGeneral):
    """A dense layer over several axes."""

    dot_general: Callable = product


class Heads(DenseGeneral):
    """A dense layer [B, T, D] -> [B, T, heads, depth]. Where `flat`, the bias is added before the
    features are split: only then the product of cuBLAS adds it by itself.
    """

    flat: bool = False

    @nn.compact
    def __call__(self, x):
        if not self.flat:
            return super().__call__(x)
        shape = x.shape[-1], *self.features
        width = math.prod(self.features)

        def initial(key, shape, dtype):
            return self.kernel_init(key, (shape[0], width), dtype).reshape(shape)

        kernel = self.param("kernel", initial, shape, self.param_dtype).reshape(-1, width)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, self.features, self.param_dtype).reshape(-1)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = self.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
        return (y if bias is None else y + bias).reshape(*x.shape[:-1], *self.features)
