"""Masked language modelling with the other modality in sight (Devlin et al. 2019; Li et al. 2021, eq. 2, 7)."""

import jax
import jax.numpy as jnp
import optax

from multimodal.nn.model import example_keys
from multimodal.objectives.registry import register
from multimodal.objectives.sampling import index_of

stop = jax.lax.stop_gradient
IGNORE = -100  # the label of a position that was not masked


def mask_tokens(rng, ids, index, *, vocab_size, mask_id, keep_ids, rate, random_from=0):
    """BERT's masking: of `rate` of the tokens 80 % become [MASK], 10 % a random token, 10 % stay.

    Args:
      ids: [B, L]; index: [B], draws depend on the example's index and the position only.
      keep_ids: ids that are never masked (padding, class token).
      random_from: smallest id of a random token.
    Returns: masked ids [B, L], labels [B, L] (IGNORE where not masked).
    """

    def draw(key):
        k1, k2, k3 = jax.random.split(key, 3)
        length = ids.shape[1:]
        hit = jax.random.bernoulli(k1, rate, length)
        return hit, jax.random.uniform(k2, length), jax.random.randint(k3, length, random_from, vocab_size)

    hit, fate, other = jax.vmap(draw)(example_keys(rng, index))
    hit = hit & ~jnp.isin(ids, jnp.asarray(keep_ids))
    masked = jnp.where(fate < 0.8, mask_id, jnp.where(fate < 0.9, other, ids))
    return jnp.where(hit, masked, ids).astype(ids.dtype), jnp.where(hit, ids, IGNORE)


@register("mlm")
def mlm(
    net, out, batch, rng, a="text", context="image", rate=0.15, mask_id=4, keep_ids=(0, 2),
    momentum=False, alpha=0.0, masked=None, mode="corrected",
):
    """Cross-entropy of masked tokens, predicted from the fusion of the masked text with the context.

    Args:
      a: the modality of token ids; context: the modality that its tokens look at; '' for text alone.
      rate: share of tokens masked; mask_id, keep_ids: the tokenizer's.
      momentum, alpha: mix in alpha times the cross-entropy to the teacher's softmax on the same masked text.
      masked: (ids, labels) to use instead of drawing (parity tests).
      mode: 'albef_original' draws random tokens from the whole vocabulary, special ones included.
    Returns: loss (mean over masked tokens), {'accuracy'}.
    """
    rng_mask, rng_encode = jax.random.split(rng)
    ids, present = batch[a], out[a].present
    present = present & out[context].present if context else present
    if masked is None:
        masked = mask_tokens(
            rng_mask, ids, index_of(batch, len(ids)), vocab_size=net.model.modalities[a]["vocab_size"],
            mask_id=mask_id, keep_ids=keep_ids, rate=rate,
            random_from=0 if mode == "albef_original" else max(mask_id, *keep_ids) + 1,
        )
    ids, labels = masked
    weights = (labels != IGNORE) & present[:, None]
    inputs = {a: ids, f"{a}_present": out[a].present, "index": index_of(batch, len(ids))}
    inputs |= {k: batch[k] for k in (f"{a}_mask",) if k in batch}

    def logits_of(net, inputs, tokens):
        text = net.encode(inputs, rng=rng_encode)[a].tokens
        return net.mlm(net.fuse(text, tokens) if context else text)

    def losses_of(net, inputs, labels, tokens, teacher_tokens):
        logits = logits_of(net, inputs, tokens)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        if momentum:
            taught = jax.nn.softmax(logits_of(net.teacher, inputs, teacher_tokens))
            soft = -(stop(taught) * jax.nn.log_softmax(logits)).sum(-1)
            losses = (1 - alpha) * losses + alpha * soft
        return losses, logits.argmax(-1) == labels

    tokens = out[context].tokens if context else None
    teacher_tokens = out["teacher"][context].tokens if context and momentum else None
    losses, right = net.per_example(losses_of, inputs, labels, tokens, teacher_tokens)
    count = jnp.maximum(weights.sum(), 1)

    def mean(x):
        return jnp.where(weights, x, 0).sum() / count

    return mean(losses), {"accuracy": mean(right.astype(losses.dtype))}
