"""Retrieval against brute force: several captions, ties, k > N, groups, re-ranking, chance."""

import itertools

import numpy as np
import pytest

from multimodal.errors import UserError
from multimodal.evals.embed import embed
from multimodal.evals.retrieval import (
    TIE,
    chance,
    count_matches,
    parse,
    rank_all,
    rank_of_best,
    retrieval,
    summary,
)
from tests.evals.conftest import match_logits
from tests.evals.toy import toy_data, toy_net


def unit_rows(n, e, rng):
    x = rng.normal(size=(n, e)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def brute_force(scores, query_ids, target_ids):
    """Rank of the best match of each query by sorting, wrong targets first among equals."""
    ranks = []
    for row, i in zip(scores, query_ids, strict=True):
        right = target_ids == i
        order = sorted(range(len(row)), key=lambda j: (-row[j], right[j]))
        place = next((n for n, j in enumerate(order) if right[j]), None)
        ranks.append(0 if place is None else place + 1)
    return np.array(ranks)


@pytest.mark.parametrize("cells", [1, 17, 2**20])
def test_ranks_equal_brute_force_with_several_captions(cells):
    rng = np.random.default_rng(0)
    images, texts = unit_rows(20, 6, rng), unit_rows(100, 6, rng)
    image_ids = rng.permutation(20) * 3
    text_ids = np.repeat(image_ids, 5)
    for q, t, qi, ti in (
        (images, texts, image_ids, text_ids),
        (texts, images, text_ids, image_ids),
    ):
        found = rank_all(q, t, qi, ti, cells=cells)[""]
        np.testing.assert_array_equal(found, brute_force(q @ t.T, qi, ti))


def test_ties_count_against():
    scores = np.array([[0.5, 0.5, 0.1], [0.5, 0.5 + TIE / 2, 0.1], [0.5, 0.4, 0.5 - 3 * TIE]])
    positive = np.array([[True, False, False]] * 3)
    np.testing.assert_array_equal(rank_of_best(scores, positive), [2, 2, 1])
    equal = np.ones((30, 4), np.float32) / 2
    ranks = rank_all(equal, equal, np.arange(30), np.arange(30))[""]
    assert (ranks == 30).all(), "a collapsed model must not look perfect"


def test_ties_equal_brute_force():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 4, (40, 12)).astype(np.float64)
    query_ids, target_ids = rng.integers(0, 9, 40), rng.integers(0, 9, 12)
    found = rank_of_best(scores, query_ids[:, None] == target_ids[None])
    np.testing.assert_array_equal(found, brute_force(scores, query_ids, target_ids))


def test_a_model_of_nan_ranks_last():
    scores = np.full((2, 5), np.nan)
    positive = np.eye(5, dtype=bool)[:2]
    np.testing.assert_array_equal(rank_of_best(scores, positive), [5, 5])


def test_summary_with_fewer_targets_than_k():
    found = summary(np.array([1, 2, 3, 3]), np.ones(4, int), 3)
    assert (found["r1"], found["r5"], found["r10"]) == (0.25, 1, 1)
    assert found["median_rank"] == 2.5
    assert found["mrr"] == pytest.approx((1 + 1 / 2 + 2 / 3) / 4)
    assert (found["count"], found["targets"]) == (4, 3)
    assert found["chance_r1"] == pytest.approx(1 / 3)
    assert found["chance_r10"] == 1


def test_queries_without_a_match_are_not_counted():
    matches = count_matches(np.array([4, 5, 6]), np.array([6, 4, 4]))
    np.testing.assert_array_equal(matches, [2, 0, 1])
    assert summary(np.array([1, 0, 2]), matches, 3)["count"] == 2
    with pytest.raises(UserError, match="no query has a match"):
        summary(np.zeros(3, int), np.zeros(3, int), 3)


def test_chance_is_that_of_all_orders():
    orders = list(itertools.permutations(range(6)))
    best = np.array([min(o.index(0), o.index(1)) + 1 for o in orders])
    found = chance(np.array([2, 2]), 6)
    assert found["chance_r1"] == pytest.approx(np.mean(best <= 1))
    assert found["chance_r5"] == pytest.approx(np.mean(best <= 5))
    assert found["chance_median_rank"] == np.median(best)
    assert chance(np.array([1]), 101)["chance_median_rank"] == 51


def test_metrics_by_group_equal_brute_force(net, data):
    metrics = retrieval(net, data, dict(batch_size=7))
    images, texts = (embed(net, m, data.rows[m]) for m in ("image", "text"))
    ids, text_ids = data.ids["image"], data.ids["text"]
    for group in ("", "en", "de"):
        pick = np.isin(data.groups["text"], [group] if group else ["en", "de"])
        prefix = f"dev/{group}/" if group else "dev/"
        scores = images @ texts[pick].T
        for name, ranks in (
            ("image_to_text", brute_force(scores, ids, text_ids[pick])),
            ("text_to_image", brute_force(scores.T, text_ids[pick], ids)),
        ):
            assert metrics[f"{prefix}{name}/count"] == len(ranks)
            assert metrics[f"{prefix}{name}/median_rank"] == np.median(ranks)
            for k in (1, 5, 10):
                assert metrics[f"{prefix}{name}/r{k}"] == pytest.approx(np.mean(ranks <= k))
    recalls = [
        metrics[f"dev/{d}/r{k}"] for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    ]
    assert metrics["dev/mean_recall"] == pytest.approx(np.mean(recalls))


def test_each_example_counts_once(net, data):
    whole = retrieval(net, data, dict(batch_size=5))
    assert whole["dev/text_to_image/count"] == whole["dev/image_to_text/targets"] == 39
    assert whole["dev/image_to_text/count"] == whole["dev/text_to_image/targets"] == 13
    for rows in (np.arange(12), np.append(np.arange(13), 3)):  # one missing, one twice
        other = type(data)(
            "dev",
            data.rows | {"image": data.rows["image"][rows]},
            data.ids | {"image": data.ids["image"][rows]},
        )
        found = retrieval(net, other, dict(batch_size=5))
        assert found["dev/image_to_text/count"] == len(rows) != 13


def test_reranking_all_is_ranking_by_the_matching_head(net, data):
    metrics = retrieval(net, data, dict(batch_size=16, rerank=1000))
    t, i = np.divmod(np.arange(39 * 13), 13)
    pairs = {"image": data.rows["image"][i], "text": data.rows["text"][t]}
    logits = match_logits(net, pairs)[:, 1].reshape(39, 13)
    ids, text_ids = data.ids["image"], data.ids["text"]
    for name, ranks in (
        ("text_to_image", brute_force(logits, text_ids, ids)),
        ("image_to_text", brute_force(logits.T, ids, text_ids)),
    ):
        assert len(set(ranks)) > 3
        assert metrics[f"dev/{name}_reranked/mrr"] == pytest.approx(np.mean(1 / ranks))
        assert metrics[f"dev/{name}_reranked/median_rank"] == np.median(ranks)


def test_reranking_few_keeps_the_order_of_the_rest():
    rng = np.random.default_rng(2)
    queries, targets = unit_rows(30, 5, rng), unit_rows(25, 5, rng)
    query_ids, target_ids = rng.integers(0, 12, 30), rng.integers(0, 12, 25)
    match = rng.normal(size=(30, 25))
    cosines = queries @ targets.T
    for weight, k in ((0.0, 1), (0.0, 6), (1.0, 6), (1.0, 25)):
        # Reference: one matrix of scores in which candidates lie above all others.
        reference = cosines.astype(np.float64).copy()
        for row, top in enumerate(np.argsort(-cosines, axis=1)[:, :k]):
            reference[row, top] = 100 + match[row, top] + weight * cosines[row, top]
        found = rank_all(
            queries,
            targets,
            query_ids,
            target_ids,
            lambda q, t, weight=weight: (match[q, t], weight),
            k,
            cells=200,
        )
        expected = brute_force(reference, query_ids, target_ids)
        np.testing.assert_array_equal(found["_reranked"], expected)
        np.testing.assert_array_equal(found[""], brute_force(cosines, query_ids, target_ids))


def test_joint_representation_as_query_and_target():
    """It is that of the record without the other modality of the pair."""
    rng = np.random.default_rng(0)
    data = toy_data(12)
    image, audio = rng.integers(1, 9, (12, 5)), rng.integers(1, 9, (12, 5))
    data.rows = dict(image=image.astype(np.uint8), audio=audio.astype(np.float32))
    data.rows["text"] = np.repeat(image + audio, 2, 0).astype(np.float32)
    data.ids["text"] = data.records["text"] = np.repeat(np.arange(12), 2)
    cfg = dict(batch_size=8, pairs=(("joint", "text"), ("image", "text")))
    found = retrieval(toy_net(("image", "audio", "text")), data, cfg)
    assert found["dev/joint_to_text/r1"] == found["dev/text_to_joint/r1"] == 1
    assert found["dev/joint_to_text/count"] == 12 and found["dev/text_to_joint/count"] == 24
    assert found["dev/image_to_text/r1"] < 1


@pytest.mark.parametrize("pair", [("image", "txt"), ("text", "text"), ("image",), "image"])
def test_pairs_that_are_none(net, data, pair):
    with pytest.raises(UserError, match=r"config\.eval\.pairs"):
        retrieval(net, data, dict(batch_size=16, pairs=(pair,)))


def test_a_model_without_joint_embedding(net, data):
    with pytest.raises(UserError, match="no joint embedding"):
        retrieval(net, data, dict(batch_size=16, pairs=(("joint", "text"),)))


def test_unknown_rerank_score(net, data):
    with pytest.raises(UserError, match="neither 'itm' nor 'sum'"):
        retrieval(net, data, dict(batch_size=16, rerank=3, rerank_score="max"))


def test_names_are_taken_apart():
    name = parse("unseen/en/text_to_image_reranked/r1")
    assert (name.split, name.group, name.reranked, name.metric) == ("unseen", "en", True, "r1")
    assert (name.query, name.target) == ("text", "image")
    assert parse("unseen/mean_recall") is None
