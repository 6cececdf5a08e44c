"""Image-text matching: does a pair belong together? (Li et al. 2021, ALBEF, eq. 3)"""

import jax
import jax.numpy as jnp
import optax

from multimodal.objectives.contrastive import choice, default_positives
from multimodal.objectives.fetch import fetch
from multimodal.objectives.negatives import draw_negatives
from multimodal.objectives.registry import register
from multimodal.objectives.sampling import index_of, masked_mean


@register("itm", needs=("match",))
def itm(
    net,
    out,
    batch,
    rng,
    a="image",
    b="text",
    positives="",
    fetching="auto",
    block=0,
    negatives=None,
    mode="corrected",
):
    """Cross-entropy of the matching head on B positives and 2B hard negatives drawn within the
    batch of all devices.

    For each b (text) a negative a (image), and for each a a negative b, drawn in proportion to
    exp(similarity); never one with the same id. Examples without any negative contribute their
    positive only.

    Args:
      a: the modality that is the fusion's context; b: its query.
      positives: 'id' or 'diagonal', which pairs belong together; by default what the mode does.
      fetching: how tokens of negatives come from other devices: 'all_to_all' moves the drawn rows,
        'gather' all tokens; 'auto': the former. The values are the same.
      block: columns at a time that negatives are looked for among, of all devices; 0: by memory.
      negatives: (a for each b, b for each a), [B] int each, to use instead of drawing (parity
        tests).
    Returns: loss, {'accuracy': over positives and negatives}.
    """
    ids, present = batch["id"], out[a].present & out[b].present
    positives = choice("positives", positives or default_positives(mode), ("id", "diagonal"))
    choice("fetching", fetching, ("auto", "all_to_all", "gather"))
    size = len(ids)
    ids = ids if positives == "id" else jnp.arange(size, dtype=jnp.int32)
    if negatives is None:
        # The original compares with the teacher's embeddings, as its contrastive loss does.
        seen = out["teacher"] if mode == "albef_original" and "teacher" in out else out
        about = ids, present, index_of(batch, size), net.scale(), block
        rng_a, rng_b = jax.random.split(rng)
        neg_a, found = draw_negatives(rng_a, out[b].embed, seen[a].embed, *about)
        neg_b, _ = draw_negatives(rng_b, out[a].embed, seen[b].embed, *about)
    else:
        neg_a, neg_b = negatives
        found = ((ids[:, None] != ids[None]) & present[:, None] & present[None]).any(1)

    tokens_a, tokens_b = out[a].tokens, out[b].tokens
    query = jax.tree.map(beside, tokens_b, tokens_b, fetch(tokens_b, neg_b, fetching))
    context = jax.tree.map(beside, tokens_a, fetch(tokens_a, neg_a, fetching), tokens_a)
    logits = net.per_example(lambda net, q, c: net.match(net.fuse(q, c)), query, context)
    labels = jnp.tile(jnp.array([1, 0, 0]), size)
    weights = beside(present, present & found, present & found)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = (logits.argmax(1) == labels).astype(losses.dtype)
    return masked_mean(losses, weights), {"accuracy": masked_mean(right, weights)}


def beside(*rows):
    """[n B, ...] of n arrays [B, ...], the n of an example next to each other: they stay on its
    device, where one array after the other would send most of them to another.
    """
    return jnp.stack(rows, 1).reshape(-1, *rows[0].shape[1:])
