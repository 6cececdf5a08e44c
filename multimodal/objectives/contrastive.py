"""Contrastive objectives: softmax (CLIP, ALBEF) and sigmoid (SigLIP), positives by id."""

from functools import partial

import jax
import jax.numpy as jnp

from multimodal.errors import UserError
from multimodal.nn.batch import batch_axes, device_count
from multimodal.objectives.blockwise import (
    nearest,
    sigmoid_pairs,
    softmax_pairs,
)
from multimodal.objectives.blockwise_soft import softmax_rows
from multimodal.objectives.queue import EMPTY
from multimodal.objectives.registry import register
from multimodal.objectives.sampling import masked_mean, similarity
from multimodal.registry import nearest as nearest_name

stop = jax.lax.stop_gradient


def soft_cross_entropy(logits, targets, valid):
    """-sum_j targets log softmax(logits) [B], over valid columns only.

    Args:
      logits, targets: [B, C], targets zero where not valid; valid: [B, C] or [C] bool.
    """
    # Rows without a valid column are weighted 0 by the caller; they must be finite all the same.
    logp = jax.nn.log_softmax(jnp.where(valid, logits, jnp.finfo(logits.dtype).min / 2), axis=1)
    return -jnp.where(targets > 0, targets * logp, 0).sum(1)


def positive_targets(row_ids, column_ids, valid, dtype=jnp.float32):
    """[B, C] targets: each row spread evenly over the valid columns with its id."""
    same = ((row_ids[:, None] == column_ids[None]) & valid[None]).astype(dtype)
    return same / jnp.maximum(same.sum(1, keepdims=True), 1)


def choice(key, value, known):
    """value, if it is a known one; UserError otherwise."""
    if value not in known:
        raise UserError(
            f"objective: {key}={value!r}{nearest_name(value, known)}; known: {', '.join(known)}"
        )
    return value


def default_positives(mode):
    """What counts as a positive: ids, or in the original ALBEF's pre-training the diagonal."""
    return "diagonal" if mode == "albef_original" else "id"


PLAIN = 64 << 20  # bytes a device that similarities and gathered features may take


def use_blocks(kernel, x, columns):
    """Whether the loss goes by blocks: what the config says, or 'auto' by what the plain one holds
    on a device: two matrices of similarities, and the gathered features and their gradients."""
    choice("kernel", kernel, ("auto", "plain", "blockwise"))
    devices = device_count(batch_axes(len(x)))
    held = 8 * columns * (len(x) / devices + (x.shape[1] if devices > 1 else 0))
    return kernel == "blockwise" or (kernel == "auto" and held > PLAIN)


def as_products(products, *xs):
    """Features as their products take them: as they are ('float32'), or in bfloat16."""
    choice("products", products, ("float32", "bfloat16"))
    return [x if x is None or products == "float32" else x.astype(products) for x in xs]


def _queue_columns(queue, names, positives, products, mode):
    """({modality: embeddings [Q, d]}, ids [Q], which of them count [Q]) of the momentum queue."""
    if missing := [m for m in names if m not in queue]:
        raise UserError(
            f"config.queue.modalities lacks {missing[0]!r}, whose embeddings a contrastive "
            f"objective compares: make it {names!r}, or queue.size 0"
        )
    ids = queue["id"]
    filled = (ids != EMPTY) | (mode == "albef_original")
    ids = ids if positives == "id" else jnp.full_like(ids, EMPTY)
    return {m: as_products(products, queue[m])[0] for m in names}, ids, filled


@register("contrastive")
def contrastive(
    net,
    out,
    batch,
    rng,
    a="image",
    b="text",
    momentum=False,
    columns="teacher",
    alpha=0.0,
    positives="",
    kernel="auto",
    block=0,
    products="float32",
    mode="corrected",
):
    """Symmetric softmax contrastive loss (Radford et al. 2021); with `momentum`, ALBEF's (Li et al.
    2021, eq. 1, 6).

    Args:
      a, b: the two modalities (default: the config's, if it has just two). Pairs that lack one are
        left out, as rows and as columns.
      momentum: there is a teacher, which gives the queue's columns and soft targets; they carry no
        gradient.
      columns: with momentum, whose embeddings of the batch are its columns: the teacher's (ALBEF),
        or the student's, with gradient. From scratch a teacher knows nothing for hundreds of steps,
        and the student learns much sooner from its own.
      alpha: share of the teacher's softmax in the targets (a number or a schedule).
      positives: 'id' (every column with the row's id) or 'diagonal'; by default what the mode does.
      kernel: 'plain' holds all similarities, 'blockwise' a block of columns at a time (see
        blockwise.py), with the same result; 'auto' by memory.
      block: columns at a time, of all devices; 0: by their number.
      products: 'float32', or 'bfloat16' for the similarities' products (statistics stay float32).
      mode: 'corrected', or 'albef_original', whose positives are the diagonal and whose negatives
        include the queue's initial noise.
    Returns: loss, {'r1': accuracy of a -> b within the batch}.
    """
    positives = choice("positives", positives or default_positives(mode), ("id", "diagonal"))
    choice("columns", columns, ("teacher", "student"))
    present = out[a].present & out[b].present
    ids = batch["id"] if positives == "id" else jnp.arange(len(present), dtype=jnp.int32)
    student = dict(zip((a, b), as_products(products, out[a].embed, out[b].embed)))
    taught, queue = {a: None, b: None}, None
    if momentum:
        seen = [stop(out["teacher"][m].embed) for m in (a, b)]
        taught = dict(zip((a, b), as_products(products, *seen)))
        if net.queue is not None:
            queue = _queue_columns(net.queue, (a, b), positives, products, mode)
    frozen = momentum and columns == "teacher"
    blocks = use_blocks(kernel, student[a], len(ids) + (len(queue[1]) if queue else 0))
    if blocks and not momentum:
        pairs = softmax_pairs(student[a], student[b], ids, present, net.scale(), block)
        return pairs[0], {"r1": pairs[1]}
    rows = partial(softmax_rows, block=block) if blocks else plain_rows
    loss = 0.0
    for x, y in ((a, b), (b, a)):
        pair = taught[y] if frozen else student[y], taught[y]
        more = (queue[0][y], *queue[1:]) if queue else None
        given = (student[x], taught[x], pair, more, ids, present, net.scale())
        loss = loss + rows(*given, alpha=alpha, frozen=frozen) / 2
    hits = nearest if blocks else plain_nearest
    return loss, {"r1": hits(student[a], student[b], ids, present)}


def plain_rows(x, taught, columns, queue, ids, valid, scale, alpha=0.0, frozen=False):
    """What blockwise_soft.softmax_rows computes, with all similarities at once."""
    y, taught_y = columns
    column_ids, seen = ids, valid
    if queue is not None:
        y = jnp.concatenate([y, queue[0]])
        taught_y = None if taught is None else jnp.concatenate([taught_y, queue[0]])
        column_ids, seen = (jnp.concatenate(v) for v in ((ids, queue[1]), (valid, queue[2])))
    logits = scale * similarity(x, y)
    targets = positive_targets(ids, column_ids, seen, logits.dtype)
    if taught is not None:
        guess = stop(scale) * similarity(taught, taught_y)
        guess = jax.nn.softmax(jnp.where(seen, guess, jnp.finfo(guess.dtype).min / 2), axis=1)
        targets = stop(alpha * guess + (1 - alpha) * targets)
    return masked_mean(soft_cross_entropy(logits, targets, seen[None]), valid)


def plain_nearest(x, y, ids, valid):
    """What blockwise.nearest computes."""
    hit = jnp.where(valid[None], similarity(x, y), -jnp.inf).argmax(1)
    return masked_mean((ids[hit] == ids).astype(jnp.float32), valid)


@register("sigmoid")
def sigmoid(net, out, batch, rng, a="image", b="text", kernel="auto", block=0, products="float32"):
    """Pairwise sigmoid loss (Zhai et al. 2023, SigLIP, algorithm 1); a pair with equal ids is a
    positive.

    Summed over columns, averaged over rows; pairs that lack a modality are left out.

    Args:
      kernel, block, products: as of `contrastive`.
    Returns: loss, {'r1': accuracy of a -> b within the batch}.
    """
    ids, present = batch["id"], out[a].present & out[b].present
    x, y = as_products(products, out[a].embed, out[b].embed)
    scale, bias = net.scale(), net.logit_bias()
    if use_blocks(kernel, x, len(y)):
        loss, hits = sigmoid_pairs(x, y, ids, present, scale, bias, block)
        return loss, {"r1": hits}
    logits = scale * similarity(x, y) + bias
    both = present[:, None] & present[None]
    signed = jnp.where(ids[:, None] == ids[None], logits, -logits)
    loss = -jnp.where(both, jax.nn.log_sigmoid(signed), 0).sum(1)
    return masked_mean(loss, present), {"r1": plain_nearest(x, y, ids, present)}
