"""Contrastive losses in blocks of columns: neither N x N similarities nor all gathered features are
ever held, and the values are those of the plain ones.

Each device keeps its rows. A slice of the columns of every device at a time is gathered and used
(the bytes of one all-gather in all); the backward pass computes each tile again and sends the
slice's gradient straight home by a reduce-scatter. Sums and softmax statistics are kept in at least
float32. The derivatives stand outside the `shard_map`s: inside, with `check_vma=False`, gradients
of features would be off by the number of devices.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from multimodal.nn.batch import batch_axes
from multimodal.objectives.sampling import dot

LEAST, MOST = 8192, 32_768  # columns of a block, where the config leaves it open


def block_of(block, size):
    """Columns of a block: what is asked for, else a 32nd of them within LEAST and MOST."""
    return block or min(MOST, max(LEAST, size // 32))


def over(axes, fn, ins, outs):
    """fn on each device's rows: specs are P(axes) for True (rows) and P() for False; fn itself
    where there is one device."""
    if not axes:
        return fn
    specs = [jax.tree.map(lambda rows: P(axes) if rows else P(), s) for s in (ins, outs)]
    return jax.shard_map(fn, in_specs=specs[0], out_specs=specs[1], check_vma=False)


def gather(axes, *xs):
    """Each x of all devices, one after the other."""
    xs = tuple(lax.all_gather(x, axes, tiled=True) if axes else x for x in xs)
    return xs if len(xs) > 1 else xs[0]


def scatter(axes, x):
    """The sum of x over the devices, each device its own part."""
    return lax.psum_scatter(x, axes, scatter_dimension=0, tiled=True) if axes else x


def total(axes, x):
    """The sum of x over all rows and devices."""
    return lax.psum(x.sum(), axes) if axes else x.sum()


def stream(fn, carry, columns, axes, block):
    """Fold fn(carry, *slice) -> (carry, out) over slices of this device's columns.

    A slice holds so many that the slices of all devices are `block` columns. The last one is filled
    up with zeros, which `valid` among the columns must tell from columns.
    Returns: carry, outs [M, ...] in the order of the columns.
    """
    m, n = len(columns[0]), math.prod(lax.axis_size(a) for a in axes)
    c = min(m, max(1, block // n))
    k = -(-m // c)
    if k == 1:
        return fn(carry, *columns)

    def cut(x):
        x = jnp.pad(x, [(0, k * c - m)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(k, c, *x.shape[1:])

    carry, outs = lax.scan(lambda z, x: fn(z, *x), carry, jax.tree.map(cut, columns))
    return carry, jax.tree.map(lambda y: y.reshape(k * c, *y.shape[2:])[:m], outs)


def floor_of(dtype):
    """What a masked logit becomes: finite, so that a row without any column stays so."""
    return jnp.finfo(dtype).min / 2


def sum_dtype(x):
    """The type that sums over x are kept in: at least float32."""
    return jnp.promote_types(x.dtype, jnp.float32)


def best(found, logits, ids):
    """Running (largest logit [M], the id of its column [M])."""
    top = logits.argmax(1)
    value = jnp.take_along_axis(logits, top[:, None], 1)[:, 0]
    better = value > found[0]
    return jnp.where(better, value, found[0]), jnp.where(better, ids[top], found[1])


def log_sum(stats, logits):
    """Running (largest [M], sum of exp(logit - largest) [M]) of rows of logits."""
    high = jnp.maximum(stats[0], logits.max(1))
    return high, stats[1] * jnp.exp(stats[0] - high) + jnp.exp(logits - high[:, None]).sum(1)


def softmax_pairs(x, y, ids, valid, scale, block=0):
    """The symmetric softmax contrastive loss of N pairs, both directions from the same tiles.

    Args:
      x, y: [N, d] of the two modalities; ids: [N] int, equal ones are positives, each row's target
        spread evenly over them; valid: [N] bool, others are neither rows nor columns.
      scale: factor on the products; block: columns at a time, of all devices; 0: by N.
    Returns: loss, share of valid rows whose nearest column has their id (no gradient).
    """
    return _softmax(batch_axes(len(x)), block_of(block, len(x)), x, y, ids, valid, scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _softmax(axes, block, x, y, ids, valid, scale):
    return _softmax_forward(axes, block, x, y, ids, valid, scale)[0]


def _softmax_forward(axes, block, x, y, ids, valid, scale):
    def run(x, y, ids, valid, scale):
        low, m, dtype = floor_of(sum_dtype(x)), len(x), sum_dtype(x)

        def tile(carry, z, j, v):
            stats, pos, count, found = carry
            z, jj, vv = gather(axes, z, j, v)
            both = valid[:, None] & vv[None]
            logits = jnp.where(both, scale * dot(x, z, 1, 1), low)
            same = both & (ids[:, None] == jj[None])
            pos = pos + jnp.where(same, logits, 0).sum(1)
            count = count + same.sum(1, dtype=dtype)
            carry = (log_sum(stats, logits), pos, count, best(found, logits, jj))
            return carry, _column_log_sum(axes, logits, len(j))

        zero, lowest = jnp.zeros(m, dtype), jnp.full(m, low, dtype)
        start = ((lowest, zero), zero, zero, (lowest, jnp.full(m, -1, ids.dtype)))
        (stats, pos, count, found), columns = stream(tile, start, (y, ids, valid), axes, block)
        rows = jnp.log(stats[1]) + stats[0]
        n = jnp.maximum(total(axes, valid.astype(dtype)), 1)
        # Columns of one id have as many positives as its rows: both halves have the same targets.
        count = jnp.maximum(count, 1)
        loss = total(axes, jnp.where(valid, (rows + columns) / 2 - pos / count, 0)) / n
        hits = total(axes, (valid & (found[1] == ids)).astype(dtype)) / n
        return (loss, hits), (rows, columns, count, n)

    result, saved = over(
        axes, run, (True, True, True, True, False), ((False, False), (True, True, True, False))
    )(x, y, ids, valid, scale)
    return result, (x, y, ids, valid, scale, saved)


def _column_log_sum(axes, logits, own):
    """log sum exp over the rows of all devices, of this device's `own` columns of the tile."""
    high = logits.max(0)
    high = lax.pmax(high, axes) if axes else high
    sums = scatter(axes, jnp.exp(logits - high).sum(0))
    start = lax.axis_index(axes) * own if axes else 0
    return jnp.log(sums) + lax.dynamic_slice_in_dim(high, start, own)


def _softmax_backward(axes, block, saved, cotangents):
    def run(x, y, ids, valid, scale, rows, columns, count, n, ct):
        def tile(carry, z, j, v, c):
            dx, dscale = carry
            z, jj, vv, c = gather(axes, z, j, v, c)
            product = dot(x, z, 1, 1)
            logits = scale * product
            both = valid[:, None] & vv[None]
            p = (jnp.exp(logits - rows[:, None]) + jnp.exp(logits - c[None])) / 2
            w = p - (ids[:, None] == jj[None]) / count[:, None]
            w = jnp.where(both, w * (ct / n), 0)
            return tile_gradient(axes, x, z, w, product, dx, dscale)

        start = (jnp.zeros(x.shape, sum_dtype(x)), jnp.zeros((), sum_dtype(x)))
        (dx, ds), dy = stream(tile, start, (y, ids, valid, columns), axes, block)
        return finish(axes, x, y, scale, dx, dy, ds)

    x, y, ids, valid, scale, kept = saved
    ins = (True, True, True, True, False, True, True, True, False, False)
    run = over(axes, run, ins, (True, True, False))
    dx, dy, ds = run(x, y, ids, valid, scale, *kept, cotangents[0])
    return dx, dy, None, None, ds


def tile_gradient(axes, x, z, w, product, dx, dscale):
    """Running gradients from those of a tile's logits w, and that of its columns, sent home."""
    narrow = w.astype(x.dtype)
    dy = scatter(axes, dot(narrow, x, 0, 0).astype(x.dtype))
    return (dx + dot(narrow, z, 1, 0), dscale + (w * product).sum()), dy


def finish(axes, x, y, scale, dx, dy, dscale):
    """Gradients of x, y and scale from those of the products over scale."""
    return (
        (scale * dx).astype(x.dtype),
        (scale * dy).astype(y.dtype),
        total(axes, dscale).astype(scale.dtype),
    )


_softmax.defvjp(_softmax_forward, _softmax_backward)


def sigmoid_pairs(x, y, ids, valid, scale, bias, block=0):
    """The pairwise sigmoid loss (Zhai et al. 2023): sum over columns, mean over rows.

    Args: as softmax_pairs; bias: added to the logits.
    Returns: loss, share of valid rows whose nearest column has their id (no gradient).
    """
    axes = batch_axes(len(x))
    return _sigmoid(axes, block_of(block, len(x)), x, y, ids, valid, scale, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sigmoid(axes, block, x, y, ids, valid, scale, bias):
    return _sigmoid_forward(axes, block, x, y, ids, valid, scale, bias)[0]


def _sigmoid_forward(axes, block, x, y, ids, valid, scale, bias):
    def run(x, y, ids, valid, scale, bias):
        low, m, dtype = floor_of(sum_dtype(x)), len(x), sum_dtype(x)

        def tile(carry, z, j, v):
            rows, found = carry
            z, jj, vv = gather(axes, z, j, v)
            logits = scale * dot(x, z, 1, 1) + bias
            both = valid[:, None] & vv[None]
            signed = jnp.where(ids[:, None] == jj[None], logits, -logits)
            rows = rows + jnp.where(both, jax.nn.softplus(-signed), 0).sum(1)
            return (rows, best(found, jnp.where(both, logits, low), jj)), ()

        start = (jnp.zeros(m, dtype), (jnp.full(m, low, dtype), jnp.full(m, -1, ids.dtype)))
        (rows, found), _ = stream(tile, start, (y, ids, valid), axes, block)
        n = jnp.maximum(total(axes, valid.astype(dtype)), 1)
        hits = total(axes, (valid & (found[1] == ids)).astype(dtype)) / n
        return (total(axes, rows) / n, hits), n

    run = over(axes, run, (True, True, True, True, False, False), ((False, False), False))
    result, n = run(x, y, ids, valid, scale, bias)
    return result, (x, y, ids, valid, scale, bias, n)


def _sigmoid_backward(axes, block, saved, cotangents):
    def run(x, y, ids, valid, scale, bias, n, ct):
        def tile(carry, z, j, v):
            grads, dbias = carry
            z, jj, vv = gather(axes, z, j, v)
            product = dot(x, z, 1, 1)
            logits, same = scale * product + bias, ids[:, None] == jj[None]
            # sigmoid(z) - 1 would lose the digits of what a confident positive has left.
            w = jnp.where(same, -jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits))
            w = jnp.where(valid[:, None] & vv[None], w * (ct / n), 0)
            grads, dy = tile_gradient(axes, x, z, w, product, *grads)
            return (grads, dbias + w.sum()), dy

        zero = jnp.zeros((), sum_dtype(x))
        start = ((jnp.zeros(x.shape, sum_dtype(x)), zero), zero)
        ((dx, ds), db), dy = stream(tile, start, (y, ids, valid), axes, block)
        return *finish(axes, x, y, scale, dx, dy, ds), total(axes, db).astype(bias.dtype)

    ins = (True, True, True, True, False, False, False, False)
    run = over(axes, run, ins, (True, True, False, False))
    dx, dy, ds, db = run(*saved, cotangents[0])
    return dx, dy, None, None, ds, db


_sigmoid.defvjp(_sigmoid_forward, _sigmoid_backward)


def nearest(x, y, ids, valid, block=0):
    """Share of valid rows x [N, d] whose nearest valid column y has their id; no gradient."""
    axes = batch_axes(len(x))

    def run(x, y, ids, valid):
        low, m, dtype = floor_of(sum_dtype(x)), len(x), sum_dtype(x)

        def tile(found, z, j, v):
            z, jj, vv = gather(axes, z, j, v)
            return best(found, jnp.where(vv[None], dot(x, z, 1, 1), low), jj), ()

        start = (jnp.full(m, low, dtype), jnp.full(m, -1, ids.dtype))
        found, _ = stream(tile, start, (y, ids, valid), axes, block_of(block, len(x)))
        n = jnp.maximum(total(axes, valid.astype(dtype)), 1)
        return total(axes, (valid & (found[1] == ids)).astype(dtype)) / n

    return over(axes, run, (True,) * 4, False)(*map(lax.stop_gradient, (x, y, ids, valid)))
