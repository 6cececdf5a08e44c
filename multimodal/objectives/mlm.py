"""Masked language modelling with the other modality in sight (Devlin et al. 2019; Li et al. 2021,
eq. 2, 7).
"""

from functools import partial

import jax
import jax.numpy as jnp

from multimodal.nn.model import example_keys
from multimodal.objectives.registry import register
from multimodal.objectives.sampling import index_of, masked_mean

stop = jax.lax.stop_gradient
IGNORE = -100  # the label of a position that was not masked


def mask_tokens(rng, ids, index, *, vocab_size, mask_id, keep_ids, rate, most=0, no_words=()):
    """BERT's masking: of `rate` of the tokens 80 % become [MASK], 10 % a random token, 10 % stay.

    Args:
      ids: [B, L]; index: [B], draws depend on the example's index and the position only.
      keep_ids: ids that are never masked (padding, class token).
      most: largest number of masked tokens an example; 0 for any.
      no_words: ids that no random token has.
    Returns: masked ids [B, L], labels [B, L] (IGNORE where not masked).
    """

    no_words = sorted(set(no_words))

    def draw(key):
        k1, k2, k3 = jax.random.split(key, 3)
        length = ids.shape[1:]
        other = jax.random.randint(k3, length, 0, vocab_size - len(no_words))
        for i in no_words:  # from the n-th word to its id
            other += other >= i
        return jax.random.uniform(k1, length), jax.random.uniform(k2, length), other

    luck, fate, other = jax.vmap(draw)(example_keys(rng, index))
    luck = jnp.where(jnp.isin(ids, jnp.asarray(keep_ids)), 1.0, luck)
    hit = luck < rate
    if most and most < ids.shape[1]:
        hit &= luck <= jnp.sort(luck, axis=1)[:, most - 1 : most]
    masked = jnp.where(fate < 0.8, mask_id, jnp.where(fate < 0.9, other, ids))
    return jnp.where(hit, masked, ids).astype(ids.dtype), jnp.where(hit, ids, IGNORE)


@register("mlm", needs=("mlm",))
def mlm(
    net,
    out,
    batch,
    rng,
    a="text",
    context="image",
    rate=0.15,
    mask_id=4,
    keep_ids=(0, 2),
    special_ids=(0, 1, 2, 3, 4),
    vocab_size=0,
    max_predictions=0,
    momentum=False,
    alpha=0.0,
    masked=None,
    mode="corrected",
):
    """Cross-entropy of masked tokens, predicted from the fusion of the masked text with the
    context.

    Args:
      a: the modality of token ids; context: the modality that its tokens look at; '' for text
        alone.
      rate: share of tokens masked; mask_id, keep_ids: the tokenizer's.
      special_ids, vocab_size: the tokenizer's; random tokens are its other ids. 0: the tower's.
      max_predictions: largest number of masked tokens an example; 0 for any. A bound saves most of
        the output layer's work, which is then done for that many positions only (BERT's
        max_predictions_per_seq).
      momentum, alpha: mix in alpha times the cross-entropy to the teacher's softmax on the same
        masked text.
      masked: (ids, labels) to use instead of drawing (parity tests).
      mode: 'albef_original' draws random tokens from the whole vocabulary, special ones included.
    Returns: loss (mean over masked tokens), {'accuracy'}.
    """
    rng_mask, rng_encode = jax.random.split(rng)
    ids, present = batch[a], out[a].present
    present = present & out[context].present if context else present
    if masked is None:
        masked = mask_tokens(
            rng_mask,
            ids,
            index_of(batch, len(ids)),
            vocab_size=vocab_size or net.model.modalities[a]["vocab_size"],
            mask_id=mask_id,
            keep_ids=keep_ids,
            rate=rate,
            most=max_predictions,
            no_words=() if mode == "albef_original" else special_ids,
        )
    ids, labels = masked
    at, labels = _masked_positions(labels, max_predictions)
    weights = (labels != IGNORE) & present[:, None]
    inputs = {a: ids, f"{a}_present": out[a].present, "index": index_of(batch, len(ids))}
    inputs |= {k: batch[k] for k in (f"{a}_mask",) if k in batch}
    tokens = out[context].tokens if context else None
    taught = out["teacher"][context].tokens if context and momentum else None
    losses, right = net.per_example(
        partial(_losses, a, rng_encode, alpha if momentum else None),
        inputs, at, labels, tokens, taught,
    )  # fmt: skip
    accuracy = masked_mean(right.astype(losses.dtype), weights)
    return masked_mean(losses, weights), {"accuracy": accuracy}


def _losses(a, rng, alpha, net, inputs, at, labels, tokens, taught_tokens):
    """Cross-entropy [B, P] at the positions `at`, and whether the guess is right; alpha None: no
    teacher.
    """
    logits = _logits(net, a, rng, inputs, at, tokens)
    own = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    target = own
    if alpha is not None:
        taught = jax.nn.softmax(_logits(net.teacher, a, rng, inputs, at, taught_tokens))
        target = (1 - alpha) * own + alpha * (stop(taught) * logits).sum(-1)
    # Targets sum to one: -sum t log softmax(z) = logsumexp(z) - sum t z. And no argmax: on a CPU it
    # took a tenth of the step.
    return jax.nn.logsumexp(logits, axis=-1) - target, own >= stop(logits).max(-1)


def _logits(net, a, rng, inputs, at, tokens):
    """Logits [B, P, V] for the masked text, fused with the context's tokens where there are any."""
    text = net.encode(inputs, rng=rng)[a].tokens
    fused = net.fuse(text, tokens) if tokens is not None else text
    if at is not None:
        fused = fused.replace(x=jnp.take_along_axis(fused.x, at[..., None], axis=1))
    return net.mlm(fused)


def _masked_positions(labels, most):
    """Positions [B, most] that hold all masked tokens, and their labels; (None, labels) without a
    bound.
    """
    if not most or most >= labels.shape[1]:
        return None, labels
    _, at = jax.lax.top_k((labels != IGNORE).astype(jnp.int32), most)
    return at, jnp.take_along_axis(labels, at, axis=1)
