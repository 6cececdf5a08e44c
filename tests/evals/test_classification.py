"""Scores of classifiers against counts by hand, and errors that name the classifier."""

import numpy as np
import pytest

from multimodal.errors import UserError
from multimodal.evals.classification import (
    class_scores,
    classification,
    label_scores,
    predict,
    scores,
)
from tests.evals.toy import CLASSIFIERS, toy_data, toy_net

CFG = dict(batch_size=16)


def test_accuracy_of_each_classifier():
    data = toy_data(40, wrong_sounds=0.25)
    data.targets["label"][[0, 39]] = -1
    heard = {"heard": CLASSIFIERS["seen"] | {"of": "audio"}}
    found = classification(toy_net(classifiers=CLASSIFIERS | heard), data, CFG)
    assert found["dev/classify/both/accuracy"] == found["dev/classify/seen/accuracy"] == 1
    assert found["dev/classify/heard/accuracy"] == pytest.approx(29 / 38)
    assert found["dev/classify/mean_accuracy"] == pytest.approx((2 + 29 / 38) / 3)
    assert found["dev/classify/both/count"] == 38, "two records have no label"
    most = np.bincount(data.targets["label"][1:39]).max()
    assert found["dev/classify/both/majority"] == most / 38


def test_records_without_the_modality_of_a_classifier():
    data = toy_data(20)
    for part in (data.rows, data.ids, data.records):
        part["image"] = part["image"][:12]
    found = classification(toy_net(), data, CFG)
    assert found["dev/classify/seen/count"] == 12
    assert found["dev/classify/both/count"] == 20
    assert found["dev/classify/both/accuracy"] == 1, "by the sound, where there is no image"


def test_classes_weigh_alike_and_a_broken_model_is_never_right():
    found = class_scores(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 2]), 4)
    assert (found["accuracy"], found["mean_per_class"], found["majority"]) == (0.75, 0.5, 0.75)
    np.testing.assert_array_equal(predict(np.array([[0, 1.0], [np.nan, 1]])), [1, -1])


def test_several_labels_at_once():
    targets = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
    predicted = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]], bool)
    found = label_scores(predicted, targets)
    assert found["f1_micro"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert found["f1_macro"] == pytest.approx((1 + 2 / (2 + 2) + 0) / 3)
    assert found["exact"] == 0.5
    assert scores(np.where(predicted, 3.0, -2.0), targets, 3) == found


def test_what_does_not_fit_is_told():
    data = toy_data()
    with pytest.raises(UserError, match="no classifiers"):
        classification(toy_net(classifiers={}), data, CFG)
    one = CLASSIFIERS["both"]
    for change, message in (
        ({"target": "label_x"}, r"classifiers\.it: dev has no labels 'label_x'.*mean label"),
        ({"classes": 3}, "classes is 3, but dev has the class 4"),
        ({"multi": True}, "takes 5 labels at once, but 'label' of dev is one class"),
    ):
        with pytest.raises(UserError, match=message):
            classification(toy_net(classifiers={"it": one | change}), data, CFG)
    data.targets["label"][:] = -1
    with pytest.raises(UserError, match="no example of dev has 'label'"):
        classification(toy_net(), data, CFG)
