"""Exact retrieval both ways: recall, median rank, mean reciprocal rank; by group; re-ranked."""

import dataclasses
import itertools

import numpy as np

from multimodal.errors import UserError
from multimodal.evals.embed import TokenStore, check_match, embed, match_pairs
from multimodal.evals.records import embed_joint
from multimodal.evals.registry import register
from multimodal.nn.model import JOINT
from multimodal.registry import nearest

RECALLS = (1, 5, 10)
HALF = 0.5 - 1e-12
TIE = 1e-6  # cosines (or logits) closer than this are a tie: what rounding decides is no merit
NOT_GROUPS = ("classify", "robustness", "cca", "gap", "probe")  # other evaluators' names
CELLS = 2**25  # of the largest matrix, queries x targets


@register("retrieval")
def retrieval(net, data, cfg, mesh=None) -> dict[str, float]:
    """Retrieval of each modality of a pair by the other, exact, each row counted once.

    A query's rank is that of its best match (equal id) among the targets that do not match; ties
    count against it. Metrics are `SPLIT/[GROUP/]A_to_B[_reranked]/NAME`, NAME being r1, r5, r10 (in
    0..1), median_rank, mrr, count (queries), targets and, for a random order, chance_r1 and so on;
    `SPLIT/mean_recall` is the mean of all r1, r5, r10 over the whole split. In a group only its
    rows of the grouped modality count: the texts of a language by all images and vice versa.

    Args:
      cfg: `batch_size`; `rerank` (candidates that the matching head re-ranks; 0: off); optional
        `rerank_score` ('itm': logit of a match, as in ALBEF; 'sum': that plus the cosine, as in
        BLIP) and `pairs` ((a, b), ...), by default all pairs of the split's modalities. In a pair,
        'joint' is the joint representation of each record without the pair's other modality.
    """
    pairs = cfg.get("pairs") or list(itertools.combinations(data.rows, 2))
    if not pairs:
        raise UserError(
            f"{data.name}: retrieval needs two modalities, there is {', '.join(data.rows)}"
        )
    batch_size, k = cfg["batch_size"], cfg.get("rerank", 0)
    if k:
        check_match(net.model)
    check_pairs(pairs, data)
    plain = dict.fromkeys(m for pair in pairs for m in pair if m != JOINT)
    sides = {m: _modality_side(net, data, m, batch_size, mesh) for m in plain}
    metrics, recalls = {}, []
    for a, b in pairs:
        scorer = None
        if k and net.model.mlm_modality in (a, b) and JOINT not in (a, b):  # as it was trained
            scorer = Scorer(net, data.rows, a, b, batch_size, mesh, cfg.get("rerank_score", "itm"))
        if JOINT in (a, b):
            other = a if b == JOINT else b
            sides[JOINT] = _joint_side(net, data, other, batch_size, mesh)
        for q, t in ((b, a), (a, b)):
            found = _direction(data.name, sides, q, t, scorer, k)
            recalls += [found[f"{data.name}/{q}_to_{t}/r{n}"] for n in RECALLS]
            metrics |= found
    return metrics | {f"{data.name}/mean_recall": float(np.mean(recalls))}


def check_pairs(pairs, data):
    """Raise UserError unless each pair is two different modalities of the data, or one and
    'joint'.
    """
    for pair in pairs:
        known = (*data.rows, JOINT)
        unknown = [m for m in pair if m not in known]
        if unknown:
            raise UserError(
                f"config.eval.pairs: {data.name} has no {unknown[0]!r}"
                f"{nearest(unknown[0], known)}; there are {', '.join(known)}"
            )
        if isinstance(pair, str) or len(pair) != 2 or pair[0] == pair[1]:
            raise UserError(
                f"config.eval.pairs: {pair!r} is no pair of modalities: give (('image', 'text'),)"
            )


@dataclasses.dataclass(frozen=True)
class Side:
    """What is searched for or among: embed [N, E], ids [N], usable [N], groups [N] or None."""

    embed: np.ndarray
    ids: np.ndarray
    usable: np.ndarray
    groups: np.ndarray | None = None


def _modality_side(net, data, m, batch_size, mesh):
    embeds = embed(net, m, data.rows[m], batch_size, mesh)
    return Side(embeds, data.ids[m], data.usable(m), data.groups.get(m))


def _joint_side(net, data, other, batch_size, mesh):
    """Whole records without what they are searched by, or for: it would give itself away."""
    embeds, records, usable = embed_joint(net, data, batch_size, mesh, without=(other,))
    return Side(embeds, records.ids, usable)


def _direction(split, sides, q, t, scorer, k):
    """Metrics of one direction, over all rows and by group."""
    groups = {m: sides[m].groups for m in (q, t) if sides[m].groups is not None}
    names = sorted({g for values in groups.values() for g in values if g})
    metrics, whole = {}, {}
    for group in ["", *(names if len(names) > 1 else ())]:
        rows = {
            m: np.flatnonzero(
                sides[m].usable & ((groups[m] == group) if group and m in groups else True)
            )
            for m in (q, t)
        }
        ids = {m: sides[m].ids[rows[m]] for m in (q, t)}
        if group and t not in groups:  # The same targets: these queries' ranks are known.
            ranks = {
                name: r[np.searchsorted(whole["rows"], rows[q])]
                for name, r in whole["ranks"].items()
            }
        else:
            pick = scorer and (lambda i, j, rows=rows: scorer(q, rows[q][i], rows[t][j]))
            embeds = sides[q].embed[rows[q]], sides[t].embed[rows[t]]
            ranks = rank_all(*embeds, ids[q], ids[t], pick, k)
        whole = whole or {"rows": rows[q], "ranks": ranks}
        prefix = f"{split}/{group}/" if group else f"{split}/"
        matches = count_matches(ids[q], ids[t])
        for name, r in ranks.items():
            found = summary(r, matches, len(ids[t]))
            metrics |= {f"{prefix}{q}_to_{t}{name}/{key}": v for key, v in found.items()}
    return metrics


def count_matches(query_ids, target_ids) -> np.ndarray:
    """[Q] number of targets with the query's id."""
    known, counts = np.unique(target_ids, return_counts=True)
    at = np.searchsorted(known, query_ids).clip(max=len(known) - 1)
    return np.where(known[at] == query_ids, counts[at], 0)


def rank_of_best(scores, positive) -> np.ndarray:
    """1 + the number of wrong targets that are not clearly (by TIE) below the best right one.

    Args:
      scores: [B, N]; positive: [B, N] bool. NaN counts as not below, so a broken model ranks last.
    Returns: [B] int; 0 where no target is right.
    """
    best = np.where(positive, scores, -np.inf).max(1, keepdims=True)
    ahead = (~(scores < best - TIE) & ~positive).sum(1)
    return np.where(positive.any(1), 1 + ahead, 0)


def rank_all(queries, targets, query_ids, target_ids, score_pairs=None, k=0, cells=CELLS) -> dict:
    """Ranks of all queries, in blocks of at most `cells` similarities.

    The matching head re-ranks the k nearest targets; the others follow in order of their cosine.

    Args:
      queries [Q, E], targets [N, E]: unit length; query_ids [Q], target_ids [N].
      score_pairs: function of (query index [P], target index [P]) to (logits [P], weight of the
        cosine that is added to them); None: no re-ranking.
    Returns: {'': [Q] ranks by cosine, '_reranked': [Q]}, the second only with score_pairs.
    """
    found = {"": []} | ({"_reranked": []} if score_pairs and k else {})
    block = max(1, cells // len(targets))
    for start in range(0, len(queries), block):
        part = slice(start, min(start + block, len(queries)))
        scores = queries[part] @ targets.T
        positive = query_ids[part, None] == target_ids[None]
        ranks = rank_of_best(scores, positive)
        found[""].append(ranks)
        if "_reranked" in found:
            rows = np.arange(part.start, part.stop)
            found["_reranked"].append(_rerank(rows, scores, positive, ranks, score_pairs, k))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _rerank(rows, scores, positive, ranks, score_pairs, k):
    k = min(k, scores.shape[1])
    # A right target loses a tie here as well: it is not taken before wrong ones like it.
    top = np.argpartition(TIE * positive - scores, k - 1, axis=1)[:, :k]
    logits, cosine_weight = score_pairs(np.repeat(rows, k), top.ravel())
    again = logits.reshape(top.shape) + cosine_weight * np.take_along_axis(scores, top, 1)
    best = rank_of_best(again, np.take_along_axis(positive, top, 1))
    return np.where(best > 0, best, np.where(ranks > 0, np.maximum(ranks, k + 1), 0))


class Scorer:
    """Matching scores of pairs of rows of two modalities, in whichever direction one searches."""

    def __init__(self, net, rows, a, b, batch_size, mesh=None, score="itm"):
        if score not in ("itm", "sum"):
            raise UserError(f"config.eval.rerank_score: {score!r} is neither 'itm' nor 'sum'")
        self._query = net.model.mlm_modality
        self._context = a if self._query == b else b
        self._net, self._size, self._mesh = net, batch_size, mesh
        self._cosine_weight = float(score == "sum")
        self._tokens = {m: TokenStore(net, m, rows[m], batch_size, mesh) for m in (a, b)}

    def __call__(self, searching, index, target_index):
        """Logits [P] of a match of rows `index` of modality `searching`; weight of the cosine."""
        pair = (index, target_index) if searching == self._query else (target_index, index)
        tokens = self._tokens[self._query], self._tokens[self._context]
        logits = match_pairs(self._net, *tokens, *pair, self._size, self._mesh)
        return logits[:, 1], self._cosine_weight


def summary(ranks, matches, targets) -> dict[str, float]:
    """Metrics of ranks [Q]; queries without a match (rank 0) are left out of `count`.

    Args:
      matches: [Q] right targets of each query, for chance level; targets: number of all targets.
    """
    there = ranks > 0
    ranks, matches = ranks[there], matches[there]
    if not len(ranks):
        raise UserError(
            "retrieval: no query has a match among the targets: check the ids of the data"
        )
    found = {f"r{n}": np.mean(ranks <= n) for n in RECALLS}
    found |= {"median_rank": np.median(ranks), "mrr": np.mean(1 / ranks)}
    found |= {"count": len(ranks), "targets": targets}
    return {k: float(v) for k, v in (found | chance(matches, targets)).items()}


def chance(matches, targets) -> dict[str, float]:
    """What a random order of the targets gives: exact, averaged over queries.

    P(best match in the first n) = 1 - C(N - m, n) / C(N, n); median_rank is where it passes 1/2.
    """
    values, weights = np.unique(matches, return_counts=True)
    weights = weights / weights.sum()
    reached, none_yet = [], np.ones(len(values))
    while len(reached) < targets and (len(reached) < max(RECALLS) or reached[-1] < HALF):
        n = len(reached)
        none_yet = none_yet * np.maximum(targets - values - n, 0) / (targets - n)
        reached.append(weights @ (1 - none_yet))
    found = {f"chance_r{n}": reached[min(n, targets) - 1] for n in RECALLS}
    return found | {"chance_median_rank": 1 + int(np.argmax(np.array(reached) >= HALF))}


@dataclasses.dataclass(frozen=True)
class Name:
    """A retrieval metric's name, taken apart; see `parse`."""

    split: str
    group: str
    query: str
    target: str
    reranked: bool
    metric: str


def parse(name) -> Name | None:
    """The parts of 'SPLIT/[GROUP/]A_to_B[_reranked]/METRIC', or None for another metric's name."""
    parts = name.split("/")
    if len(parts) not in (3, 4) or "_to_" not in parts[-2]:
        return None
    if len(parts) == 4 and parts[1] in NOT_GROUPS:
        return None
    direction = parts[-2].removesuffix("_reranked")
    query, _, target = direction.partition("_to_")
    group = parts[1] if len(parts) == 4 else ""
    return Name(parts[0], group, query, target, direction != parts[-2], parts[-1])
