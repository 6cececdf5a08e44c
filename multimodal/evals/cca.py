"""Canonical correlation analysis in closed form: the linear baseline of shared spaces."""

import itertools

import numpy as np

from multimodal.errors import UserError
from multimodal.evals.records import features, modalities_of
from multimodal.evals.registry import register
from multimodal.evals.retrieval import count_matches, rank_all, summary

RIDGE = 1e-2  # times the features' mean variance
POWER = 4  # of the correlations, as weights of the components in retrieval


def linear_cca(x, y, k, ridge=0.0):
    """The k pairs of directions in which x and y correlate most (Hotelling 1936).

    With S_xx = cov(x) + ridge I, S_yy alike and S_xy = cov(x, y), the correlations are the singular
    values of S_xx^-1/2 S_xy S_yy^-1/2, and the directions its singular vectors, brought back by
    S^-1/2. Covariances divide by N - 1; the square roots are of the pseudo-inverse, so N < D has a
    finite answer also without ridge (where it is 1 and means nothing: give a ridge).

    Args:
      x: [N, D1]; y: [N, D2]; paired rows. k: at most min(D1, D2).
    Returns: (wx [D1, k], wy [D2, k], mean_x [D1], mean_y [D2], correlations [k], descending), in
      float64. (x - mean_x) @ wx has unit variance where ridge is 0.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) != len(y) or len(x) < 2 or not 1 <= k <= min(x.shape[1], y.shape[1]):
        raise UserError(
            f"CCA needs two or more paired rows and 1 <= k <= {min(x.shape[1], y.shape[1])}: "
            f"there are {len(x)} and {len(y)} rows, k is {k}"
        )
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    root_x, root_y = (_inverse_root(v.T @ v / (len(v) - 1), ridge) for v in (x, y))
    u, s, vt = np.linalg.svd(root_x @ (x.T @ y / (len(x) - 1)) @ root_y)
    correlations = np.clip(s[:k], 0, 1)
    return root_x @ u[:, :k], root_y @ vt[:k].T, mean_x, mean_y, correlations


def _inverse_root(covariance, ridge):
    """(covariance + ridge I)^-1/2; directions without variance are left out."""
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 0) + ridge
    least = values.max() * len(values) * np.finfo(np.float64).eps
    root = np.where(values > least, 1 / np.sqrt(np.maximum(values, least or 1.0)), 0)
    return vectors * root @ vectors.T


@register("cca")
def cca(net, data, cfg, mesh=None) -> dict[str, float]:
    """CCA of each pair of modalities' pooled features, fitted on the training split.

    Metrics are `SPLIT/cca/A_B/...`: correlation, the mean over the components of the correlation on
    this split, correlation_sum, components (as many as the shared space has dimensions, or fewer
    where a tower is narrower), and retrieval both ways, A_to_B/r1 and so on as the retrieval
    evaluator has them, by the cosine of the projections with the components weighted by
    correlation^4 (Gong et al. 2014).

    Args:
      cfg: `batch_size`.
    Raises: UserError without a training split, or without two modalities of pooled features.
    """
    train = data.train()
    fit, test = (features(net, d, cfg["batch_size"], mesh) for d in (train, data))
    known = [m for m in modalities_of(net, data) if m in test.pooled]
    if len(known) < 2:
        raise UserError(
            f"{data.name}: CCA needs two modalities with pooled features, there is "
            f"{', '.join(known) or 'none'} (config.modalities.<m>.pool)"
        )
    metrics = {}
    for a, b in itertools.combinations(known, 2):
        pairs = [_pairs(f, a, b) for f in (fit, test)]
        if min(len(p[0]) for p in pairs) < 2:
            raise UserError(f"{data.name}: CCA needs two or more records with {a} and {b}")
        for name, value in _evaluate(*pairs, a, b, net.model.embed_dim).items():
            metrics[f"{data.name}/cca/{a}_{b}/{name}"] = value
    return metrics


def _pairs(found, a, b):
    """(features of a, of b, ids) of the records that have both."""
    both = found.present[a] & found.present[b]
    return found.pooled[a][both], found.pooled[b][both], found.ids[both]


def _evaluate(train, test, a, b, dimensions):
    (x, y, _), (x_test, y_test, ids) = train, test
    # One scale a modality, so that the same ridge means the same for both.
    scales = [max(np.sqrt(np.var(v, axis=0, dtype=np.float64).mean()), 1e-12) for v in (x, y)]
    k = min(x.shape[1], y.shape[1], dimensions)
    wx, wy, mean_x, mean_y, correlations = linear_cca(x / scales[0], y / scales[1], k, RIDGE)
    p, q = (x_test / scales[0] - mean_x) @ wx, (y_test / scales[1] - mean_y) @ wy
    held_out = held_out_correlations(p, q)
    metrics = {
        "correlation": float(held_out.mean()),
        "correlation_sum": float(held_out.sum()),
        "components": float(k),
    }
    weights = correlations**POWER
    sides = {a: _unit(p * weights), b: _unit(q * weights)}
    for source, target in ((a, b), (b, a)):
        ranks = rank_all(sides[source], sides[target], ids, ids)[""]
        found = summary(ranks, count_matches(ids, ids), len(ids))
        metrics |= {f"{source}_to_{target}/{name}": v for name, v in found.items()}
    return metrics


def held_out_correlations(p, q) -> np.ndarray:
    """[k] correlation of each column of p [N, k] with that of q; 0 where one is constant."""
    p, q = p - p.mean(0), q - q.mean(0)
    size = np.linalg.norm(p, axis=0) * np.linalg.norm(q, axis=0)
    return np.where(size > 1e-12, (p * q).sum(0) / np.maximum(size, 1e-12), 0)


def _unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
