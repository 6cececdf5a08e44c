"""The modality gap: how far apart the modalities lie in the space that they share."""

import itertools

import numpy as np

from multimodal.errors import UserError
from multimodal.evals.probe import logistic_regression
from multimodal.evals.records import features, modalities_of
from multimodal.evals.registry import register

L2 = 1e-3  # of the probe that tells the modalities apart
MOST = 4096  # rows whose pairwise distances are taken


@register("gap")
def gap(net, data, cfg, mesh=None) -> dict[str, float]:
    """Distances of each pair of modalities' embeddings, over the records that have both.

    Metrics are `SPLIT/gap/A_B/...`:
    centroid: distance of the means of the unit-length embeddings (Liang et al. 2022);
    probe: accuracy of a linear classifier at telling the modalities apart, fitted on a random half
      of the records and tested on the other half; 0.5 is chance;
    alignment: mean squared distance of the two embeddings of a record, and uniformity: the log of
      the mean of exp(-2 d^2) over pairs within a modality, mean of both modalities; of both less is
      better (Wang & Isola 2020); count: records.

    Args:
      cfg: `batch_size`.
    Raises: UserError for fewer than two modalities with embeddings, or four records with both.
    """
    found = features(net, data, cfg["batch_size"], mesh)
    known = [m for m in modalities_of(net, data) if m in found.embed]
    if len(known) < 2:
        raise UserError(
            f"{data.name}: the gap needs two modalities with embeddings, there is "
            f"{', '.join(known) or 'none'} (config.modalities.<m>.pool)"
        )
    metrics = {}
    for a, b in itertools.combinations(known, 2):
        both = found.present[a] & found.present[b]
        if both.sum() < 4:
            raise UserError(f"{data.name}: {both.sum()} records have {a} and {b}: the gap needs 4")
        values = distances(found.embed[a][both], found.embed[b][both])
        metrics |= {f"{data.name}/gap/{a}_{b}/{k}": v for k, v in values.items()}
    return metrics


def distances(a, b) -> dict[str, float]:
    """centroid, probe, alignment, uniformity, count of unit-length embeddings [N, E] of N pairs."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return {
        "centroid": float(np.linalg.norm(a.mean(0) - b.mean(0))),
        "probe": probe_accuracy(a, b),
        "alignment": float(np.square(a - b).sum(1).mean()),
        "uniformity": (uniformity(a) + uniformity(b)) / 2,
        "count": float(len(a)),
    }


def probe_accuracy(a, b, seed=0) -> float:
    """Held-out accuracy at telling a [N, E] from b [N, E]; no pair is in both halves."""
    order = np.random.default_rng(seed).permutation(len(a))
    fit, test = order[: len(a) // 2], order[len(a) // 2 :]

    def rows(index):
        return np.concatenate([a[index], b[index]]), np.repeat([0, 1], len(index))

    x, y = rows(test)
    return float(np.mean(logistic_regression(*rows(fit), 2, L2).predict(x) == y))


def uniformity(x) -> float:
    """log mean exp(-2 |x_i - x_j|^2) over pairs i < j of the first MOST rows."""
    x = x[:MOST]
    squared = np.maximum(2 - 2 * x @ x.T, 0)[np.triu_indices(len(x), 1)]
    return float(np.log(np.exp(-2 * squared).mean()))
