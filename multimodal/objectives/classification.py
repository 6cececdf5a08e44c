"""Supervised classification by the model's classifiers, of one label or of several at once."""

import itertools

import jax
import optax

from multimodal.errors import UserError
from multimodal.nn.model import JOINT
from multimodal.objectives.registry import register
from multimodal.objectives.sampling import masked_mean
from multimodal.registry import nearest


@register("classification", needs=("classifiers",), partial=True)
def classification(net, out, batch, rng, heads=(), smoothing=0.0, subsets=False):
    """Cross-entropy of the model's classifiers, averaged over them.

    Softmax for an int label [B] (-1: unknown, left out), sigmoids for a `multi` one [B, C] of 0 and
    1. Examples without the classifier's modality (for 'joint': without any) are left out.

    Args:
      heads: names of classifiers; (): all.
      smoothing: share of the target spread over all classes (a number or a schedule).
      subsets: classifiers of 'joint' learn from every subset of the modalities, each example once
        in each, the towers run once: what modality dropout only samples (Neverova et al. 2016).
    Returns: loss, {'NAME_loss', 'NAME_accuracy', with subsets also 'NAME_accuracy_image', ...}.
    """
    losses, metrics = [], {}
    views = {"": out} | (_parts(net, out) if subsets and JOINT in out else {})
    for part, seen in views.items():
        logits = net.classify(seen)
        for name in heads or logits:
            spec = _known(name, net.model.classifiers)
            if part and spec["of"] != JOINT:
                continue
            labels = _labels(name, spec["target"], batch)
            loss, right, use = _score(spec, logits[name], labels, smoothing)
            use = use & seen[spec["of"]].present
            losses.append(masked_mean(loss, use))
            if not part:
                metrics[f"{name}_loss"] = losses[-1]
            key = f"{name}_accuracy" + (f"_{part}" if part else "")
            metrics[key] = masked_mean(right.astype(loss.dtype), use)
    return sum(losses) / len(losses), metrics


def _parts(net, out):
    """{'image+text': out with the h_m of these modalities alone} for every proper subset."""
    names = [m for m in net.model.modalities if m in out]
    found = {}
    for size in range(1, len(names)):
        for seen in itertools.combinations(names, size):
            towers = {m: out[m] if m in seen else out[m].hidden for m in names}
            joint = net.per_example(lambda net, towers: net.join(towers), towers)
            found["+".join(seen)] = {JOINT: joint}
    return found


def _score(spec, scores, labels, smoothing):
    """Loss [B], whether the guess is right [B], and which labels are known [B]."""
    if spec["multi"]:
        targets = labels.astype(scores.dtype)
        smooth = targets * (1 - smoothing) + smoothing / 2
        loss = optax.sigmoid_binary_cross_entropy(scores, smooth).mean(-1)
        return loss, ((scores > 0) == (targets > 0.5)).mean(-1), True
    one_hot = jax.nn.one_hot(labels, scores.shape[-1], dtype=scores.dtype)
    loss = optax.softmax_cross_entropy(scores, optax.smooth_labels(one_hot, smoothing))
    return loss, scores.argmax(-1) == labels, labels >= 0


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
