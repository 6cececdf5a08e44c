"""Robustness: every subset of the modalities, and a ladder of noise on each and on all."""

import functools
import itertools
import logging

import numpy as np

from multimodal.data.corrupt import CORRUPTIONS
from multimodal.errors import UserError
from multimodal.evals.classification import classify_records, labelled, scores
from multimodal.evals.embed import embed, gives_embedding
from multimodal.evals.records import NoisyRows, Records, modalities_of, noise_of, subsets
from multimodal.evals.registry import register
from multimodal.evals.retrieval import rank_all
from multimodal.nn.model import JOINT

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
ALL = "all"  # modalities corrupted together
log = logging.getLogger(__name__)


@register("robustness")
def robustness(net, data, cfg, mesh=None) -> dict[str, float]:
    """What is left of a score when modalities are missing or noisy.

    Of each classifier, on the records that have all modalities: its accuracy (f1_micro for several
    labels at once) for every subset of the modalities, the others marked as missing, as
    `SPLIT/robustness/NAME/subset/image+audio`; and with noise on one modality, or on all of them,
    as `SPLIT/robustness/NAME/noise/image/0.25`, with `.../area` under the curve, the trapezoid over
    the levels divided by their range (MultiBench's relative robustness, Liang et al. 2021). A
    classifier of one modality depends on no other, and is measured on its own alone. `majority`
    is what the most frequent class gives.

    A model without classifiers is measured by R@1 of each direction of each pair of embeddings
    instead, NAME being `A_to_B`; its one subset is both modalities.

    Args:
      cfg: `batch_size`, `noise_levels`; optional `pairs`, as for retrieval.
    """
    levels = check_levels(cfg.get("noise_levels") or LEVELS)
    by_classifier = bool(getattr(net.model, "classifiers", None))
    measure = _classifiers if by_classifier else _pairs
    metrics = {}
    for name, found in measure(net, data, cfg, levels, mesh).items():
        prefix = f"{data.name}/robustness/{name}"
        metrics |= {f"{prefix}/subset/{s}": v for s, v in found["subset"].items()}
        for m, values in found["noise"].items():
            for level, value in zip(levels, values, strict=True):
                metrics[f"{prefix}/noise/{m}/{level:g}"] = value
            metrics[f"{prefix}/noise/{m}/area"] = area(levels, values)
        metrics |= {f"{prefix}/{k}": found[k] for k in ("majority", "count") if k in found}
    return metrics


def check_levels(levels) -> tuple[float, ...]:
    """Noise levels as floats. Raises UserError unless they ascend from 0, which is clean, to 1."""
    levels = tuple(float(v) for v in levels)
    if len(levels) < 2 or levels[0] != 0 or levels[-1] > 1 or list(levels) != sorted(set(levels)):
        raise UserError(
            f"config.eval.noise_levels: {levels} must start with 0 (clean) and ascend to at most 1"
        )
    return levels


def corruptible(net, modalities) -> list[str]:
    """The modalities whose inputs there is a corruption for; others are named in the log."""
    kinds = {m: net.model.modalities[m].get("transform", m) for m in modalities}
    for m in [m for m, kind in kinds.items() if kind not in CORRUPTIONS]:
        log.warning("robustness: no noise for %s: register a corruption %r", m, kinds[m])
    return [m for m, kind in kinds.items() if kind in CORRUPTIONS]


def area(levels, values) -> float:
    """Area under a curve by the trapezoid rule, divided by the range of the levels."""
    return float(np.trapezoid(values, levels) / (levels[-1] - levels[0]))


def effective(levels, values, reference) -> float:
    """Effective robustness: the area between a curve and the reference's, shifted to start with it.

    After Taori et al. 2020, as MultiBench has it: f(level) - (r(level) - r(clean) + f(clean)), here
    as an area over the levels, so that their number does not matter. Above 0: loses less than the
    reference does.

    Args:
      levels: ascending, the first one clean; values, reference: scores at the levels.
    """
    values, reference = np.asarray(values), np.asarray(reference)
    return area(levels, (values - values[0]) - (reference - reference[0]))


def _classifiers(net, data, cfg, levels, mesh):
    """{classifier: {subset, noise, majority, count}}."""
    ours = _Classified(net, data, cfg["batch_size"], mesh)
    modalities, found = ours.records.modalities, ours.found
    joint = [n for n, c in net.model.classifiers.items() if c["of"] == JOINT]
    for chosen in subsets(modalities) if joint else ():
        gone = tuple(m for m in modalities if m not in chosen)
        scored = ours.score(hide=gone) if gone else ours.clean
        for name in joint:
            found[name]["subset"]["+".join(chosen)] = scored[name]
    for corrupted, names in _ladders(net.model.classifiers, corruptible(net, modalities)):
        values = [ours.clean]
        for level in levels[1:]:
            noise = noise_of(net, data, dict.fromkeys(corrupted, level))
            values.append(ours.score(noise=noise))
        label = corrupted[0] if len(corrupted) == 1 else ALL
        for name in names:
            found[name]["noise"][label] = [v[name] for v in values]
    return found


class _Classified:
    """A model's classifiers on the complete records of a split, whatever is done to these.

    Attributes:
      records: that have all modalities; clean: classifier -> score on them as they are.
      found: classifier -> {subset, noise}, to be filled, and its constants.
    """

    def __init__(self, net, data, batch_size, mesh):
        modalities = modalities_of(net, data)
        self.records = Records(data, modalities, Records(data, modalities).complete(), hold=True)
        if not len(self.records):
            raise UserError(
                f"{data.name}: no record has all of {', '.join(modalities)}, which robustness needs"
            )
        self._run = functools.partial(classify_records, net, self.records, batch_size, mesh)
        logits = self._run()
        usable = self.records.usable()  # known now that all have been read
        self._rows = {
            name: (*labelled(data, self.records, name, c, usable), c["classes"])
            for name, c in net.model.classifiers.items()
        }
        self.found, self.clean = {}, {}
        for name, metrics in self._metrics(logits).items():
            self.clean[name] = _score(metrics)
            own = net.model.classifiers[name]["of"]
            self.found[name] = {k: metrics[k] for k in ("majority", "count") if k in metrics}
            alone = {} if own == JOINT else {own: self.clean[name]}
            self.found[name] |= {"subset": alone, "noise": {}}

    def _metrics(self, logits):
        return {n: scores(logits[n][rows], *of) for n, (rows, *of) in self._rows.items()}

    def score(self, **changes):
        """{classifier: score} with modalities hidden or noise added, as Records.take has them."""
        return {n: _score(m) for n, m in self._metrics(self._run(**changes)).items()}


def _score(metrics):
    return metrics.get("accuracy", metrics.get("f1_micro"))


def _ladders(classifiers, modalities):
    """[(modalities to corrupt, classifiers to score)]: each modality alone, then all together."""
    of = {name: c["of"] for name, c in classifiers.items()}
    alone = [((m,), [n for n, o in of.items() if o in (m, JOINT)]) for m in modalities]
    joint = [n for n, o in of.items() if o == JOINT]
    together = [(tuple(modalities), joint)] if len(modalities) > 1 else []
    return [(corrupted, names) for corrupted, names in alone + together if names]


def _pairs(net, data, cfg, levels, mesh):
    """{A_to_B: {subset, noise}} by R@1."""
    modalities = corruptible(net, modalities_of(net, data))
    modalities = [m for m in modalities if gives_embedding(net, m, data.rows[m])]
    pairs = [p for p in cfg.get("pairs") or () if JOINT not in p]
    pairs = pairs or list(itertools.combinations(modalities, 2))
    if not pairs:
        raise UserError(
            f"{data.name}: robustness needs classifiers (config.model.classifiers) or two "
            f"modalities with embeddings; there is {', '.join(modalities) or 'none'}"
        )
    embeds = {
        m: [_noisy_embed(net, data, m, level, cfg["batch_size"], mesh) for level in levels]
        for m in dict.fromkeys(itertools.chain(*pairs))
    }
    out = {}
    for q, t in itertools.chain(*((p, p[::-1]) for p in pairs)):
        noise = {
            q: [_recall(data, q, t, e, embeds[t][0]) for e in embeds[q]],
            t: [_recall(data, q, t, embeds[q][0], e) for e in embeds[t]],
            ALL: [_recall(data, q, t, *both) for both in zip(embeds[q], embeds[t])],
        }
        both = "+".join(m for m in modalities if m in (q, t))
        out[f"{q}_to_{t}"] = {"subset": {both: noise[ALL][0]}, "noise": noise}
    return out


def _noisy_embed(net, data, modality, level, batch_size, mesh):
    rows = data.rows[modality]
    if level:
        rows = NoisyRows(data, modality, noise_of(net, data, {modality: level}))
    return embed(net, modality, rows, batch_size, mesh)


def _recall(data, q, t, queries, targets):
    """R@1 over the queries that have a match."""
    use = {m: data.usable(m) for m in (q, t)}
    ids = data.ids[q][use[q]], data.ids[t][use[t]]
    ranks = rank_all(queries[use[q]], targets[use[t]], *ids)[""]
    ranks = ranks[ranks > 0]
    if not len(ranks):
        raise UserError(f"{data.name}: no {q} has the id of a {t}: there is nothing to retrieve")
    return float(np.mean(ranks == 1))
