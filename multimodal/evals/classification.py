"""Classification by the model's own classifiers, of one label or of several at once."""

import numpy as np

from multimodal.errors import UserError
from multimodal.evals.embed import map_rows
from multimodal.evals.records import Records, modalities_of
from multimodal.evals.registry import register
from multimodal.registry import nearest


@register("classification")
def classification(net, data, cfg, mesh=None) -> dict[str, float]:
    """Scores of every classifier on the labelled records of a split.

    Metrics are `SPLIT/classify/NAME/...`: accuracy, mean_per_class, majority (the accuracy of
    always answering the split's most frequent class) and count; of a classifier of several labels
    f1_micro, f1_macro, exact and count. `SPLIT/classify/mean_accuracy` is the mean over the
    classifiers of one label. A classifier of one modality is measured on the records that have it,
    one of the joint representation on all.

    Args:
      cfg: `batch_size`.
    Raises: UserError for a model without classifiers and for data without their labels.
    """
    classifiers = classifiers_of(net)
    records = Records(data, modalities_of(net, data))
    logits = classify_records(net, records, cfg["batch_size"], mesh)
    usable, metrics, accuracies = records.usable(), {}, []
    for name, classifier in classifiers.items():
        rows, targets = labelled(data, records, name, classifier, usable)
        found = scores(logits[name][rows], targets, classifier["classes"])
        if "accuracy" in found:
            accuracies.append(found["accuracy"])
        metrics |= {f"{data.name}/classify/{name}/{k}": v for k, v in found.items()}
    if accuracies:
        metrics[f"{data.name}/classify/mean_accuracy"] = float(np.mean(accuracies))
    return metrics


def classifiers_of(net) -> dict:
    """The model's classifiers: name -> {of, classes, target, multi}. UserError for none."""
    found = getattr(net.model, "classifiers", None)
    if not found:
        raise UserError(
            "the model has no classifiers: set config.model.classifiers, or take 'classification' "
            "off config.eval.names"
        )
    return dict(found)


def logits_of(net, batch):
    """{classifier: logits [B, C]} of a batch."""
    return net.classify(net.encode(batch))


def classify_records(net, records, batch_size, mesh=None, hide=(), noise=None) -> dict:
    """{classifier: logits [N, C]} of records; `hide` and `noise` as Records.take has them."""

    def take(index):
        return records.take(index, hide, noise)

    return map_rows(logits_of, net, take, len(records), batch_size, mesh)


def labelled(data, records, name, classifier, usable) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `records` that count for a classifier, and their targets [K] or [K, C].

    Raises: UserError where the data has no such labels, or more classes than the classifier.
    """
    key, classes = classifier.get("target", "label"), classifier["classes"]
    if key not in data.targets:
        raise UserError(
            f"config.model.classifiers.{name}: {data.name} has no labels {key!r}"
            f"{nearest(key, data.targets)}; it has {', '.join(data.targets) or 'none'}"
        )
    targets = data.targets[key][records.numbers]
    several = bool(classifier.get("multi", False))
    if several != (targets.ndim == 2) or (several and targets.shape[1] != classes):
        shape = f"{targets.shape[1]} labels at once" if targets.ndim == 2 else "one class"
        wanted = f"{classes} labels at once" if several else "one class"
        raise UserError(
            f"config.model.classifiers.{name}: takes {wanted}, but {key!r} of {data.name} is "
            f"{shape} an example: mend its multi or classes"
        )
    known = (targets >= 0).all(1) if several else targets >= 0
    known &= usable & records.has.get(classifier["of"], True)
    rows = np.flatnonzero(known)
    if not len(rows):
        raise UserError(
            f"config.model.classifiers.{name}: no example of {data.name} has {key!r} and "
            f"{classifier['of']}"
        )
    if not several and targets[rows].max() >= classes:
        raise UserError(
            f"config.model.classifiers.{name}.classes is {classes}, but {data.name} has the class "
            f"{targets[rows].max()}"
        )
    return rows, targets[rows]


def scores(logits, targets, classes) -> dict[str, float]:
    """Metrics of logits [N, C] against classes [N], or against labels [N, C] of 0 and 1."""
    if targets.ndim == 2:
        return label_scores(logits > 0, targets)
    return class_scores(predict(logits), targets, classes)


def predict(logits) -> np.ndarray:
    """[N] most likely class; -1, which is never right, where a logit is not a number."""
    return np.where(np.isnan(logits).any(1), -1, logits.argmax(1))


def class_scores(predicted, targets, classes) -> dict[str, float]:
    """accuracy, mean_per_class (over the classes that occur), majority, count."""
    right = predicted == targets
    counts = np.bincount(targets, minlength=classes)
    per_class = np.bincount(targets, right, minlength=classes)[counts > 0] / counts[counts > 0]
    return {
        "accuracy": float(right.mean()),
        "mean_per_class": float(per_class.mean()),
        "majority": float(counts.max() / len(targets)),
        "count": float(len(targets)),
    }


def label_scores(predicted, targets) -> dict[str, float]:
    """f1_micro, f1_macro, exact (share of examples with all labels right), count.

    F1 = 2 TP / (2 TP + FP + FN), micro over all labels of all examples, macro the mean over the
    labels; a label that neither occurs nor is predicted counts 0, as in scikit-learn.

    Args:
      predicted: [N, C] bool; targets: [N, C] of 0 and 1.
    """
    targets = targets.astype(bool)
    hits, wrong = (predicted & targets).sum(0), (predicted != targets).sum(0)
    each = 2 * hits / np.maximum(2 * hits + wrong, 1)
    return {
        "f1_micro": float(2 * hits.sum() / max(2 * hits.sum() + wrong.sum(), 1)),
        "f1_macro": float(each.mean()),
        "exact": float((predicted == targets).all(1).mean()),
        "count": float(len(targets)),
    }
