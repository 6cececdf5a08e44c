"""Contrastive objectives: softmax (CLIP, ALBEF) and sigmoid (SigLIP), positives by id."""

import jax
import jax.numpy as jnp

from multimodal.errors import UserError
from multimodal.objectives.queue import EMPTY
from multimodal.objectives.registry import register
from multimodal.objectives.sampling import masked_mean, similarity
from multimodal.registry import nearest

stop = jax.lax.stop_gradient


def soft_cross_entropy(logits, targets, valid):
    """-sum_j targets log softmax(logits) [B], over valid columns only.

    Args:
      logits, targets: [B, C], targets zero where not valid; valid: [B, C] or [C] bool.
    """
    # Rows without a valid column are weighted 0 by the caller; they must be finite all the same.
    logp = jax.nn.log_softmax(jnp.where(valid, logits, jnp.finfo(logits.dtype).min / 2), axis=1)
    return -jnp.where(targets > 0, targets * logp, 0).sum(1)


def positive_targets(row_ids, column_ids, valid, diagonal_only=False, dtype=jnp.float32):
    """[B, C] targets: each row spread evenly over the columns with its id (column i of the first B
    is its own).
    """
    own = jnp.arange(len(row_ids))[:, None] == jnp.arange(len(column_ids))[None]
    same = own if diagonal_only else (row_ids[:, None] == column_ids[None]) | own
    same = (same & valid[None]).astype(dtype)
    return same / jnp.maximum(same.sum(1, keepdims=True), 1)


def choice(key, value, known):
    """value, if it is a known one; UserError otherwise."""
    if value not in known:
        raise UserError(
            f"objective: {key}={value!r}{nearest(value, known)}; known: {', '.join(known)}"
        )
    return value


def default_positives(mode):
    """What counts as a positive: ids, or in the original ALBEF's pre-training the diagonal."""
    return "diagonal" if mode == "albef_original" else "id"


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
    mode="corrected",
):
    """Symmetric softmax contrastive loss (Radford et al. 2021); with `momentum`, ALBEF's (Li et al.
    2021, eq. 1, 6).

    Args:
      a, b: the two modalities. Pairs that lack one are left out, as rows and as columns.
      momentum: there is a teacher, which gives the queue's columns and soft targets; they carry no
        gradient.
      columns: with momentum, whose embeddings of the batch are its columns: the teacher's (ALBEF),
        or the student's, with gradient. From scratch a teacher knows nothing for hundreds of steps,
        and the student learns much sooner from its own.
      alpha: share of the teacher's softmax in the targets (a number or a schedule).
      positives: 'id' (every column with the row's id) or 'diagonal'; by default what the mode does.
      mode: 'corrected', or 'albef_original', whose positives are the diagonal and whose negatives
        include the queue's initial noise.
    Returns: loss, {'r1': accuracy of a -> b within the batch}.
    """
    ids, present = batch["id"], out[a].present & out[b].present
    positives = choice("positives", positives or default_positives(mode), ("id", "diagonal"))
    choice("columns", columns, ("teacher", "student"))
    student = {m: out[m].embed for m in (a, b)}
    seen, column_ids, valid = student, ids, present
    if momentum:
        taught = {m: stop(out["teacher"][m].embed) for m in (a, b)}
        seen, taught_seen = taught if columns == "teacher" else student, taught
        if net.queue is not None:
            seen, taught_seen = (
                {m: jnp.concatenate([x[m], net.queue[m]]) for m in (a, b)} for x in (seen, taught)
            )
            column_ids = jnp.concatenate([ids, net.queue["id"]])
            filled = (net.queue["id"] != EMPTY) | (mode == "albef_original")
            valid = jnp.concatenate([present, filled])
    scale, losses = net.scale(), []
    dtype = out[a].embed.dtype
    targets = positive_targets(ids, column_ids, valid, positives == "diagonal", dtype)
    for x, y in ((a, b), (b, a)):
        logits = scale * similarity(student[x], seen[y])
        soft = targets
        if momentum:
            guess = stop(scale) * similarity(taught[x], taught_seen[y])
            guess = jax.nn.softmax(jnp.where(valid, guess, jnp.finfo(guess.dtype).min / 2), axis=1)
            soft = stop(alpha * guess + (1 - alpha) * targets)
        losses.append(masked_mean(soft_cross_entropy(logits, soft, valid[None]), present))
    hit = jnp.where(present[None], similarity(student[a], student[b]), -jnp.inf).argmax(1)
    return sum(losses) / 2, {"r1": masked_mean((ids[hit] == ids).astype(jnp.float32), present)}


@register("sigmoid")
def sigmoid(net, out, batch, rng, a="image", b="text"):
    """Pairwise sigmoid loss (Zhai et al. 2023, SigLIP, algorithm 1); a pair with equal ids is a
    positive.

    Summed over columns, averaged over rows; pairs that lack a modality are left out.
    """
    ids, present = batch["id"], out[a].present & out[b].present
    logits = net.scale() * similarity(out[a].embed, out[b].embed) + net.logit_bias()
    same = (ids[:, None] == ids[None]) | jnp.eye(len(ids), dtype=bool)
    both = present[:, None] & present[None]
    loss = -jnp.where(both, jax.nn.log_sigmoid(jnp.where(same, logits, -logits)), 0).sum(1)
    hit = jnp.where(both, logits, -jnp.inf).argmax(1)
    return masked_mean(loss, present), {
        "r1": masked_mean((ids[hit] == ids).astype(loss.dtype), present)
    }
