"""One direction of the contrastive loss in blocks of columns, with a teacher's soft targets and the
queue's columns (Li et al. 2021, ALBEF, eq. 6). See blockwise.py for how it runs on devices.
"""

import functools

import jax
import jax.numpy as jnp

from multimodal.nn.batch import batch_axes
from multimodal.objectives import blockwise as bw
from multimodal.objectives.sampling import dot


def softmax_rows(x, taught, columns, queue, ids, valid, scale, alpha=0.0, frozen=False, block=0):
    """Mean over valid rows of the cross-entropy of softmax(scale x y^T) with targets
    alpha softmax(scale g) + (1 - alpha) positives, over the columns of the batch and the queue.

    Args:
      x: [N, d]; taught: [N, d] the teacher's, which gives g, or None (then alpha counts for none).
      columns: (y, its teacher's y) [N, d] each, of the batch, rows in the same order; teacher None
        as `taught`.
      queue: (q [Q, d], its ids [Q], valid [Q]), for both products, no gradient; or None.
      ids, valid: [N] of the batch. Columns with the row's id are its positives.
      frozen: whether y gets no gradient.
      block: columns at a time, of all devices; 0: by their number.
    Returns: loss.
    """
    y, taught_y = columns
    soft = taught is not None
    groups = [(y, taught_y if soft else y, ids, valid)]
    size = len(x)
    if queue is not None:
        q, q_ids, q_valid = queue
        groups.append((q, q, q_ids, q_valid))
        size += len(q)
    axes = batch_axes(len(x))
    if queue is not None and batch_axes(len(q)) != axes:
        axes = ()
    rows = (x, taught if soft else x, ids, valid)
    alpha = jnp.asarray(alpha if soft else 0.0, bw.sum_dtype(x))
    settings = (axes, bw.block_of(block, size), soft, frozen)
    return _loss(settings, rows, groups, scale, alpha)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(settings, rows, groups, scale, alpha):
    return _forward(settings, rows, groups, scale, alpha)[0]


def _specs(groups):
    """Rows and groups are spread over the devices; scale and alpha are not."""
    return ((True,) * 4, [(True,) * 4] * len(groups), False, False)


def _tile(axes, rows, scale, soft, column):
    """(product, logits, guess or None, same, both, gathered y) of rows and one slice of columns."""
    x, taught, ids, valid = rows
    y, taught_y, j, v = bw.gather(axes, *column)
    both = valid[:, None] & v[None]
    product, low = dot(x, y, 1, 1), bw.floor_of(bw.sum_dtype(x))
    guess = jnp.where(both, scale * dot(taught, taught_y, 1, 1), low) if soft else None
    same = both & (ids[:, None] == j[None])
    return product, jnp.where(both, scale * product, low), guess, same, both, y


def _forward(settings, rows, groups, scale, alpha):
    axes, block, soft, _ = settings

    def run(rows, groups, scale, alpha):
        x, _, _, valid = rows
        m, dtype = len(x), bw.sum_dtype(x)

        def tile(carry, *column):
            own, taught, pos, count = carry
            _, logits, guess, same, both, _ = _tile(axes, rows, scale, soft, column)
            seen = jnp.where(both, logits, 0)
            if soft:
                (high, sums), weighted = taught
                stats = bw.log_sum((high, sums), guess)
                weights = jnp.exp(guess - stats[0][:, None])
                weighted = weighted * jnp.exp(high - stats[0]) + (weights * seen).sum(1)
                taught = (stats, weighted)
            pos = pos + jnp.where(same, logits, 0).sum(1)
            carry = (bw.log_sum(own, logits), taught, pos, count + same.sum(1, dtype=dtype))
            return carry, ()

        zero, lowest = jnp.zeros(m, dtype), jnp.full(m, bw.floor_of(dtype), dtype)
        carry = ((lowest, zero), ((lowest, zero), zero) if soft else (), zero, zero)
        for group in groups:
            carry, _ = bw.stream(tile, carry, group, axes, block)
        own, taught, pos, count = carry
        lse, count = jnp.log(own[1]) + own[0], jnp.maximum(count, 1)
        target, lse_taught = pos / count, lse
        if soft:
            (high, sums), weighted = taught
            lse_taught = jnp.log(sums) + high
            target = alpha * weighted / sums + (1 - alpha) * target
        n = jnp.maximum(bw.total(axes, valid.astype(dtype)), 1)
        loss = bw.total(axes, jnp.where(valid, lse - target, 0)) / n
        return loss, (lse, lse_taught, count, n)

    outs = (False, (True, True, True, False))
    loss, kept = bw.over(axes, run, _specs(groups), outs)(rows, groups, scale, alpha)
    return loss, (rows, groups, scale, alpha, kept)


def _backward(settings, saved, ct):
    axes, block, soft, frozen = settings
    rows, groups, scale, alpha, kept = saved

    def run(rows, groups, scale, alpha, kept, ct):
        x = rows[0]
        lse, lse_taught, count, n = kept

        def tile(learn, carry, *column):
            product, logits, guess, same, both, y = _tile(axes, rows, scale, soft, column)
            targets = same / count[:, None]
            if soft:
                taught = jnp.exp(guess - lse_taught[:, None])
                targets = alpha * taught + (1 - alpha) * targets
            w = jnp.where(both, (jnp.exp(logits - lse[:, None]) - targets) * (ct / n), 0)
            if learn:
                return bw.tile_gradient(axes, x, y, w, product, *carry)
            dx, dscale = carry
            return (dx + dot(w.astype(x.dtype), y, 1, 0), dscale + (w * product).sum()), ()

        carry = (jnp.zeros(x.shape, bw.sum_dtype(x)), jnp.zeros((), bw.sum_dtype(x)))
        dys = []
        for i, group in enumerate(groups):
            learn = i == 0 and not frozen
            carry, dy = bw.stream(functools.partial(tile, learn), carry, group, axes, block)
            dys.append(dy if learn else jnp.zeros_like(group[0]))
        y = groups[0][0]
        return bw.finish(axes, x, y, scale, carry[0], dys[0], carry[1])

    ins = (*_specs(groups), (True, True, True, False), False)
    run = bw.over(axes, run, ins, (True, True, False))
    dx, dy, ds = run(rows, groups, scale, alpha, kept, ct)
    others = [jax.tree.map(_no_gradient, g) for g in groups]
    d_groups = [(dy, *others[0][1:]), *others[1:]]
    return (dx, *jax.tree.map(_no_gradient, rows)[1:]), d_groups, ds, jnp.zeros_like(alpha)


def _no_gradient(x):
    return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else None


_loss.defvjp(_forward, _backward)
