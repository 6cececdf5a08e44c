"""Supervised classification by the model's classifiers, of one label or of several at once."""

import jax
import optax

from multimodal.errors import UserError
from multimodal.objectives.registry import register
from multimodal.objectives.sampling import masked_mean
from multimodal.registry import nearest


@register("classification", needs=("classifiers",), partial=True)
def classification(net, out, batch, rng, heads=(), smoothing=0.0):
    """Cross-entropy of the model's classifiers, averaged over them.

    Softmax for an int label [B] (-1: unknown, left out), sigmoids for a `multi` one [B, C] of 0 and
    1. Examples without the classifier's modality (for 'joint': without any) are left out.

    Args:
      heads: names of classifiers; (): all.
      smoothing: share of the target spread over all classes (a number or a schedule).
    Returns: loss, {'NAME_loss', 'NAME_accuracy'}.
    """
    losses, metrics = [], {}
    logits = net.classify(out)
    for name in heads or logits:
        spec = _known(name, net.model.classifiers)
        labels, scores = _labels(name, spec["target"], batch), logits[name]
        present = out[spec["of"]].present
        if spec["multi"]:
            targets = labels.astype(scores.dtype)
            smooth = targets * (1 - smoothing) + smoothing / 2
            loss = optax.sigmoid_binary_cross_entropy(scores, smooth).mean(-1)
            right = ((scores > 0) == (targets > 0.5)).mean(-1)
        else:
            present = present & (labels >= 0)
            one_hot = jax.nn.one_hot(labels, scores.shape[-1], dtype=scores.dtype)
            loss = optax.softmax_cross_entropy(scores, optax.smooth_labels(one_hot, smoothing))
            right = scores.argmax(-1) == labels
        losses.append(masked_mean(loss, present))
        metrics[f"{name}_loss"] = losses[-1]
        metrics[f"{name}_accuracy"] = masked_mean(right.astype(loss.dtype), present)
    return sum(losses) / len(losses), metrics


def _known(name, classifiers):
    if name not in classifiers:
        raise UserError(
            f"config.objectives: no classifier {name!r}{nearest(name, classifiers)}; "
            f"config.model.classifiers has {', '.join(classifiers)}"
        )
    return classifiers[name]


def _labels(name, target, batch):
    if target not in batch:
        there = ", ".join(k for k in batch if k.startswith("label")) or "no label at all"
        raise UserError(
            f"config.model.classifiers.{name}.target: the data has no {target!r}; it has {there}"
        )
    return batch[target]
