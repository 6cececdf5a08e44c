"""Zero-shot classification: the class whose prompts lie nearest (Radford et al. 2021, 3.1)."""

import logging

import numpy as np

from multimodal.errors import UserError
from multimodal.evals.embed import embed
from multimodal.evals.records import embed_joint
from multimodal.evals.registry import register
from multimodal.evals.retrieval import TIE, rank_of_best
from multimodal.nn.model import JOINT
from multimodal.registry import nearest

log = logging.getLogger(__name__)


@register("zeroshot")
def zeroshot(net, data, cfg, mesh=None) -> dict[str, float]:
    """Classify the labelled rows of a modality by prompts made of the names of the classes.

    Metrics are `SPLIT/zeroshot/NAME`: top1, top5, mean_per_class (top-1, classes weighted alike),
    count, classes, chance.

    Args:
      cfg: `batch_size`, `templates` (each with {} for the name); optional `classify` (modality,
        or 'joint' for all but the prompts'; by default 'image' where there is one, else the first)
        and `prompt` (modality of the prompts, 'text').
    Raises: UserError for data without labels or a template without {}.
    """
    prompt, modality = _chosen(data, cfg)
    transform, size = data.transforms[prompt], cfg["batch_size"]
    classes = class_embeddings(
        lambda texts: embed(net, prompt, np.stack([transform(t, None) for t in texts]), size, mesh),
        data.label_names,
        cfg["templates"],
    )
    _warn_of_equals(classes, data.name, prompt)
    if modality == JOINT:  # without the prompts' own modality, which may hold the answer
        embeds, records, usable = embed_joint(net, data, size, mesh, without=(prompt,))
        labels = data.targets["label"][records.numbers]
    else:
        embeds = embed(net, modality, data.rows[modality], size, mesh)
        usable, labels = data.usable(modality), data.labels[modality]
    rows = usable & (labels >= 0)
    found = accuracy(embeds[rows], classes, labels[rows])
    return {f"{data.name}/zeroshot/{k}": v for k, v in found.items()}


def _chosen(data, cfg):
    """(modality of the prompts, modality to classify); UserError for what the data lacks."""
    prompt = cfg.get("prompt") or "text"
    others = [m for m in data.rows if m != prompt]
    modality = cfg.get("classify") or ("image" if "image" in others else next(iter(others), ""))
    if modality == prompt or modality not in (*data.rows, JOINT):
        raise UserError(
            f"config.eval.classify: {data.name} has no {modality!r} to be classified by {prompt!r}"
            f"{nearest(modality, others)}; it has {', '.join(others) or 'nothing else'}"
        )
    labelled = "label" in data.targets if modality == JOINT else modality in data.labels
    if not data.label_names or not labelled or prompt not in data.transforms:
        raise UserError(
            f"{data.name}: zero-shot needs labels, their names and prompts: a source with 'label' "
            "and label_names, and a text modality; mend config.data or take 'zeroshot' off "
            "config.eval.names"
        )
    return prompt, modality


def _warn_of_equals(classes, split, prompt):
    same = (np.triu(classes @ classes.T, 1) > 1 - TIE).any(1).sum()
    if same:
        log.warning(
            "%s: the prompts of %d classes are embedded like another's, which counts against both: "
            "are they cut (config.modalities.%s.max_length), or their words unknown?",
            *(split, same, prompt),
        )


def class_embeddings(embed_texts, names, templates) -> np.ndarray:
    """[C, E]: the normalised mean of each class's normalised template embeddings.

    Args:
      embed_texts: list of str -> [N, E] unit length; templates: each with {} for the name.
    """
    templates = [templates] if isinstance(templates, str) else list(templates)
    for template in templates:
        if "{}" not in template:
            raise UserError(
                f"config.eval.templates: {template!r} has no {{}} for the name of the class"
            )
    texts = [template.replace("{}", name) for name in names for template in templates]
    mean = embed_texts(texts).reshape(len(names), len(templates), -1).mean(1)
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def accuracy(embeds, classes, labels, block=4096) -> dict[str, float]:
    """top1, top5 and mean_per_class of nearest-class classification; ties count against.

    Args:
      embeds: [N, E]; classes: [C, E]; labels: [N] int in 0..C-1.
    """
    if not len(labels) or labels.min() < 0 or labels.max() >= len(classes):
        raise UserError(
            f"zero-shot: labels must lie in 0..{len(classes) - 1}, and there must be some"
        )
    ranks = np.concatenate(
        [
            rank_of_best(
                embeds[i : i + block] @ classes.T,
                labels[i : i + block, None] == np.arange(len(classes))[None],
            )
            for i in range(0, len(labels), block)
        ]
    )
    right = ranks == 1
    per_class = np.bincount(labels, right) / np.maximum(np.bincount(labels), 1)
    return {
        "top1": float(right.mean()),
        "top5": float((ranks <= 5).mean()),
        "mean_per_class": float(per_class[np.unique(labels)].mean()),
        "count": float(len(labels)),
        "classes": float(len(classes)),
        "chance": 1 / len(classes),
    }
