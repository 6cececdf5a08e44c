"""Linear probes and the modality gap: answers in closed form, and against scikit-learn."""

import itertools

import numpy as np
import pytest

from multimodal.errors import UserError
from multimodal.evals.gap import distances, gap, probe_accuracy, uniformity
from multimodal.evals.probe import fit_probe, logistic_regression, probe
from multimodal.evals.table import table
from tests.evals.toy import toy_data, toy_net

CFG = dict(batch_size=16)


def blobs(n, seed=0, dims=6, classes=3):
    """Gaussians around classes' means, on scales that differ by feature."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(9).normal(size=(classes, dims)) * 2
    y = rng.integers(0, classes, n)
    return (means[y] + rng.normal(size=(n, dims))) * 10.0 ** np.arange(dims), y


def test_the_gradient_is_zero_at_the_answer():
    x, y = blobs(80)
    l2 = 0.01
    found = logistic_regression(x, y, 3, l2)
    z = (x - x.mean(0)) / x.std(0)
    logits = found.logits(x)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = (p - np.eye(3)[y]) / len(y)
    np.testing.assert_allclose(z.T @ error + l2 * found.weight, 0, atol=1e-5)
    np.testing.assert_allclose(error.sum(0), 0, atol=1e-5)
    again = logistic_regression(x, y, 3, l2)
    np.testing.assert_array_equal(found.weight, again.weight)


def test_it_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = blobs(120)
    z = (x - x.mean(0)) / x.std(0)
    theirs = linear_model.LogisticRegression(C=1 / (0.02 * len(y)), tol=1e-8, max_iter=1000)
    theirs.fit(z, y)
    ours = logistic_regression(x, y, 3, 0.02)
    test, _ = blobs(200, seed=5)
    found = np.exp(ours.logits(test))
    expected = theirs.predict_proba((test - x.mean(0)) / x.std(0))
    np.testing.assert_allclose(found / found.sum(1, keepdims=True), expected, atol=1e-4)


def test_constant_features_and_regularisation():
    x, y = blobs(200)
    x[:, 2] = 7.0
    l2, found = fit_probe(x, y, 3)
    assert l2 in (1e-4, 1e-3, 1e-2, 1e-1)
    assert np.mean(found.predict(x) == y) > 0.85
    assert fit_probe(x[:19], y[:19], 3, grid=(1.0, 2.0))[0] == 2, "too few rows to choose"
    rows = np.arange(60)[:, None] % 2
    assert fit_probe(rows, rows[:, 0], 2, grid=(1e-3, 1e-2))[0] == 1e-2, "the larger of equals"


def test_probes_of_every_modality_and_label():
    data, train = toy_data(40), toy_data(60, seed=1, name="train")
    for d in (data, train):
        n = len(d.targets["label"])
        d.targets["label_odd"] = d.targets["label"] % 2
        d.targets["label_topics"] = np.eye(5, dtype=int)[d.targets["label"], :2]
        d.rows["audio"] = np.random.default_rng(n).normal(size=(n, 5)).astype(np.float32)
    data.targets["label"][:5] = -1
    data.load_train = lambda: train
    found = probe(toy_net(), data, CFG)
    for m, key in itertools.product(("image", "joint"), ("label", "label_odd")):
        assert found[f"dev/probe/{m}/{key}/accuracy"] == 1
    assert found["dev/probe/audio/label/accuracy"] < 0.5, "sounds are noise here"
    assert found["dev/probe/image/label_topics/exact"] == 1
    assert found["dev/probe/image/label/count"] == 35
    text = table(found)
    assert "linear probes" in text and "image label_topics" in text


def test_probes_need_a_training_split_and_labels():
    data = toy_data()
    with pytest.raises(UserError, match="train_split"):
        probe(toy_net(), data, CFG)
    data.load_train = lambda: data
    data.targets = {}
    with pytest.raises(UserError, match="need labels"):
        probe(toy_net(), data, CFG)


def test_gap_of_shifted_and_of_equal_embeddings():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(100, 6))
    a[:, 0] = 0
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b = np.sqrt(0.75) * a
    b[:, 0] = 0.5
    found = distances(a, b)
    assert found["centroid"] == pytest.approx(np.linalg.norm(a.mean(0) - b.mean(0)))
    assert found["probe"] == 1, "one feature tells them apart"
    assert found["alignment"] == pytest.approx(np.mean(np.sum((a - b) ** 2, 1)))
    alike = distances(a, a)
    assert (alike["centroid"], alike["alignment"], alike["probe"]) == (0, 0, 0.5)
    other = rng.normal(size=(100, 6))
    assert 0.3 < probe_accuracy(a[:, 1:], other[:, 1:] * 0.45) < 0.8


def test_uniformity_is_its_formula():
    x = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    assert uniformity(x) == pytest.approx(-4), "all pairs are at a squared distance of 2"
    assert uniformity(np.ones((5, 1))) == pytest.approx(0)


def test_gap_of_a_model():
    found = gap(toy_net(), toy_data(), CFG)
    assert found["dev/gap/image_audio/centroid"] == pytest.approx(0, abs=1e-6)
    assert found["dev/gap/image_audio/probe"] == pytest.approx(0.5)
    assert "image - audio" in table(found)
    with pytest.raises(UserError, match="two modalities"):
        gap(toy_net(("image",)), toy_data(), CFG)
