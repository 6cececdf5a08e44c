"""Contrastive objectives: softmax (CLIP, ALBEF) and sigmoid (SigLIP), positives by id."""

import jax
import jax.numpy as jnp

from multimodal.objectives.queue import EMPTY
from multimodal.objectives.registry import register
from multimodal.objectives.sampling import masked_mean

stop = jax.lax.stop_gradient


def soft_cross_entropy(logits, targets, valid):
    """-sum_j targets log softmax(logits) [B], over valid columns only.

    Args:
      logits, targets: [B, C], targets zero where not valid; valid: [B, C] or [C] bool.
    """
    # Rows without a valid column are weighted 0 by the caller; they must be finite all the same.
    logp = jax.nn.log_softmax(jnp.where(valid, logits, jnp.finfo(logits.dtype).min / 2), axis=1)
    return -jnp.where(targets > 0, targets * logp, 0).sum(1)


def positive_targets(row_ids, column_ids, valid, diagonal_only=False):
    """[B, C] targets: each row spread evenly over the columns with its id (column i of the first B is its own)."""
    own = jnp.arange(len(row_ids))[:, None] == jnp.arange(len(column_ids))[None]
    same = own if diagonal_only else (row_ids[:, None] == column_ids[None]) | own
    same = (same & valid[None]).astype(jnp.float32)
    return same / jnp.maximum(same.sum(1, keepdims=True), 1)


def default_positives(mode):
    """What counts as a positive: ids, or in the original ALBEF's pre-training the diagonal."""
    return "diagonal" if mode == "albef_original" else "id"


@register("contrastive")
def contrastive(
    net, out, batch, rng, a="image", b="text", momentum=False, alpha=0.0, positives="", mode="corrected"
):
    """Symmetric softmax contrastive loss (Radford et al. 2021); with `momentum`, ALBEF's (Li et al. 2021, eq. 1, 6).

    Args:
      a, b: the two modalities. Pairs that lack one are left out, as rows and as columns.
      momentum: columns are the teacher's embeddings of the batch, then the queue; they carry no gradient.
      alpha: share of the teacher's softmax in the targets (a number or a schedule).
      positives: 'id' (every column with the row's id) or 'diagonal'; by default what the mode does.
      mode: 'corrected', or 'albef_original', whose positives are the diagonal and whose negatives include the
        queue's initial noise.
    Returns: loss, {'r1': accuracy of a -> b within the batch}.
    """
    ids, present = batch["id"], out[a].present & out[b].present
    positives = positives or default_positives(mode)
    columns, column_ids, valid = {m: out[m].embed for m in (a, b)}, ids, present
    if momentum:
        teacher = out["teacher"]
        columns = {m: stop(teacher[m].embed) for m in (a, b)}
        if net.queue is not None:
            columns = {m: jnp.concatenate([columns[m], net.queue[m]]) for m in (a, b)}
            column_ids = jnp.concatenate([ids, net.queue["id"]])
            filled = (net.queue["id"] != EMPTY) | (mode == "albef_original")
            valid = jnp.concatenate([present, filled])
    scale, losses = net.scale(), []
    targets = positive_targets(ids, column_ids, valid, positives == "diagonal")
    for x, y in ((a, b), (b, a)):
        logits = scale * out[x].embed @ columns[y].T
        soft = targets
        if momentum:
            taught = stop(scale) * stop(teacher[x].embed) @ columns[y].T
            taught = jax.nn.softmax(jnp.where(valid, taught, jnp.finfo(taught.dtype).min / 2), axis=1)
            soft = stop(alpha * taught + (1 - alpha) * targets)
        losses.append(masked_mean(soft_cross_entropy(logits, soft, valid[None]), present))
    hit = jnp.where(present[None], out[a].embed @ out[b].embed.T, -jnp.inf).argmax(1)
    return sum(losses) / 2, {"r1": masked_mean((ids[hit] == ids).astype(jnp.float32), present)}


@register("sigmoid")
def sigmoid(net, out, batch, rng, a="image", b="text"):
    """Pairwise sigmoid loss (Zhai et al. 2023, SigLIP, algorithm 1); a pair with equal ids is a positive.

    Summed over columns, averaged over rows; pairs that lack a modality are left out.
    """
    ids, present = batch["id"], out[a].present & out[b].present
    logits = net.scale() * out[a].embed @ out[b].embed.T + net.logit_bias()
    same = (ids[:, None] == ids[None]) | jnp.eye(len(ids), dtype=bool)
    both = present[:, None] & present[None]
    loss = -jnp.where(both, jax.nn.log_sigmoid(jnp.where(same, logits, -logits)), 0).sum(1)
    hit = jnp.where(both, logits, -jnp.inf).argmax(1)
    return masked_mean(loss, present), {"r1": masked_mean((ids[hit] == ids).astype(loss.dtype), present)}
