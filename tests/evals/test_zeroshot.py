"""Zero-shot classification on cases with a known answer."""

import numpy as np
import pytest

from multimodal.errors import UserError
from multimodal.evals.embed import embed
from multimodal.evals.zeroshot import accuracy, class_embeddings, zeroshot
from tests.evals.conftest import random_texts
from tests.evals.toy import toy_data, toy_net


def test_separable_classes_are_all_right():
    rng = np.random.default_rng(0)
    classes = np.linalg.qr(rng.normal(size=(8, 8)))[0][:6]
    labels = rng.integers(0, 6, 50)
    found = accuracy(classes[labels] + 0.05 * rng.normal(size=(50, 8)), classes, labels, block=7)
    assert (found["top1"], found["top5"], found["mean_per_class"]) == (1, 1, 1)
    assert (found["count"], found["classes"], found["chance"]) == (50, 6, 1 / 6)


def test_mean_per_class_weights_classes_alike():
    embeds = np.eye(3)[[0, 0, 0, 1]]
    found = accuracy(embeds, np.eye(3), np.array([0, 0, 0, 2]))
    assert found["top1"] == 0.75
    assert found["mean_per_class"] == 0.5


def test_equal_classes_are_not_right():
    found = accuracy(np.ones((10, 4)) / 2, np.ones((10, 4)) / 2, np.arange(10))
    assert found["top1"] == found["top5"] == 0


def test_class_embedding_is_the_normalised_mean_over_templates():
    points = {"a dog": [1, 0], "the dog": [0, 1], "a cat": [1, 0], "the cat": [1, 0]}
    found = class_embeddings(
        lambda texts: np.array([points[t] for t in texts]), ["dog", "cat"], ("a {}", "the {}")
    )
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5], [1, 0]])
    with pytest.raises(UserError, match="has no {}"):
        class_embeddings(None, ["dog"], ("a photo",))


def test_texts_classified_by_their_own_prompts(net, data):
    """The tower of texts on both sides: a caption is nearest to the class of its own words."""
    prompts = random_texts(4, seed=3)
    data.label_names = ["n0", "n1", "n2", "n3"]
    data.transforms = {"text": lambda text, rng: prompts[int(text.removeprefix("a n"))]}
    labels = np.array([2, 0, 3, 1, 1, -1])
    data.rows["image"] = prompts[labels]
    data.labels = {"image": labels}
    data.ids["image"] = np.arange(6)
    twin = net.model.clone(
        modalities=dict.fromkeys(("image", "text"), net.model.modalities["text"])
    )
    params = net.params | {f"{k}_image": net.params[f"{k}_text"] for k in ("encoder", "project")}
    both = type(net)(twin, params)
    found = zeroshot(both, data, dict(batch_size=4, templates=("a {}",)))
    assert found["dev/zeroshot/top1"] == 1
    assert found["dev/zeroshot/count"] == 5, "the unlabelled row is not counted"
    assert np.unique(embed(both, "text", prompts), axis=0).shape[0] == 4


def test_sounds_and_joint_representations_by_prompts(caplog):
    """Prompts of the toy model are one-hot; the joint representation leaves the prompts out."""
    data = toy_data(20, wrong_sounds=0.5)
    data.labels = dict.fromkeys(data.rows, data.targets["label"])
    data.label_names = [f"n{i}" for i in range(5)]
    data.rows["text"] = np.eye(5)[(data.targets["label"] + 2) % 5].astype(np.float32) * 1000
    data.ids["text"] = data.records["text"] = np.arange(20)
    data.transforms = {"text": lambda text, rng: np.eye(5, dtype=np.float32)[int(text[-1])]}
    net = toy_net(("image", "audio", "text"))
    cfg = dict(batch_size=4, templates=("{}",), prompt="text")
    for modality, top1 in (("", 1), ("image", 1), ("audio", 0.5), ("joint", 1)):
        found = zeroshot(net, data, cfg | dict(classify=modality))
        assert found["dev/zeroshot/top1"] == top1, modality
    assert not caplog.records
    found = zeroshot(net, data, cfg | dict(templates=("{}0",)))
    assert found["dev/zeroshot/top1"] == 0, "prompts that are all alike"
    assert "the prompts of 4 classes are embedded like another's" in caplog.text
    for wrong in ("text", "imgae"):
        with pytest.raises(UserError, match=r"config\.eval\.classify"):
            zeroshot(net, data, cfg | dict(classify=wrong))


def test_data_without_labels(net, data):
    with pytest.raises(UserError, match="needs labels"):
        zeroshot(net, data, dict(batch_size=4, templates=("a {}",)))
