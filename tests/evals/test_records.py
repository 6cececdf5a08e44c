"""Whole records: what is missing is marked, noise is a function of the record, labels follow."""

import numpy as np
import pytest

from configs import common
from multimodal.errors import UserError
from multimodal.evals.data import from_source, load_eval_data
from multimodal.evals.records import HELD_BYTES, Records, features, noise_of, subsets
from tests.evals.test_data import IMAGES, TRANSFORMS, Source, read_text
from tests.evals.toy import toy_data, toy_net


class Labelled(Source):
    """As Source, with two more kinds of labels; record 2 cannot be read."""

    targets = {"label_sex": ["f", "m"]}

    def __getitem__(self, i):
        from multimodal.errors import BadRecord

        if i == 2:
            raise BadRecord("broken")
        several = np.array([i % 2, 1, 0], np.uint8)
        return super().__getitem__(i) | {"label_sex": i % 3 - 1, "label_topics": several}


@pytest.fixture
def labelled():
    return from_source(Labelled(), TRANSFORMS, "dev", max_bad_share=0.3)


def test_labels_by_record(labelled):
    assert labelled.target_names == {"label": ["a", "b"], "label_sex": ["f", "m"]}
    np.testing.assert_array_equal(labelled.targets["label_sex"][:5], [-1, 0, -1, -1, 0])
    assert labelled.targets["label_topics"].shape == (10, 3)
    np.testing.assert_array_equal(labelled.targets["label_topics"][2], [-1, -1, -1])
    np.testing.assert_array_equal(labelled.records["image"], [0, 1, 3, 4, 5, 6, 8, 9])
    np.testing.assert_array_equal(labelled.records["text"][:4], [0, 0, 1, 1])
    for m in ("image", "text"):
        of_rows = labelled.targets["label"][labelled.records[m]]
        np.testing.assert_array_equal(of_rows, labelled.labels[m])


@pytest.mark.parametrize("hold", [False, True])
def test_a_batch_marks_what_a_record_lacks(labelled, hold):
    records = Records(labelled, ("image", "text"), hold=hold)
    np.testing.assert_array_equal(records.numbers, [0, 1, 3, 4, 5, 6, 7, 8, 9])
    np.testing.assert_array_equal(records.ids, 5 * records.numbers)
    batch = records.take(np.array([6, 0, 5]))
    np.testing.assert_array_equal(batch["image_present"], [False, True, True])
    np.testing.assert_array_equal(batch["image"], [0 * IMAGES[0], IMAGES[0], IMAGES[6]])
    first = [read_text(f"{i} 0", None) for i in (7, 0, 6)]
    np.testing.assert_array_equal(batch["text"], first, "the first of two captions")
    records.take(np.arange(9))
    np.testing.assert_array_equal(records.numbers[~records.usable()], [4])
    assert 7 not in records.complete() and len(records.complete()) == 8
    hidden = records.take(np.array([0]), hide=("text",))
    assert not hidden["text_present"][0] and not hidden["text"].any()
    assert HELD_BYTES > 0


def test_noise_depends_on_the_record_alone():
    net, data = toy_net(), toy_data()
    records = Records(data, ("image", "audio"))
    noise = noise_of(net, data, {"image": 0.5, "audio": 0.5})
    several = records.take(np.array([1, 2, 3]), noise=noise)
    alone = Records(data, ("audio", "image"), [3]).take(np.array([0]), noise=noise)
    clean = records.take(np.array([3]))
    for m in ("image", "audio"):
        np.testing.assert_array_equal(several[m][2], alone[m][0])
        assert (several[m][2] != clean[m][0]).any()
        zero = records.take(np.array([3]), noise=noise_of(net, data, {m: 0.0}))
        np.testing.assert_array_equal(zero[m], clean[m])
    np.testing.assert_array_equal(records.take(np.array([3]))["image"], clean["image"])


def test_subsets_of_three():
    expected = ["a", "b", "c", "ab", "ac", "bc", "abc"]
    assert ["".join(s) for s in subsets(("a", "b", "c"))] == expected


def test_features_are_computed_once_for_a_split():
    net, data = toy_net(), toy_data()
    found = features(net, data, 16)
    assert found.pooled.keys() == {"image", "audio", "joint"}
    np.testing.assert_allclose(found.pooled["image"], data.rows["image"])
    assert features(net, data, 16) is found
    assert features(type(net)(net.model, {"other": 1}), data, 16) is not found


def test_the_training_split_is_read_when_it_is_asked_for():
    c = common.base()
    c.modalities.image = common.image_tower(size=16)
    c.data.source, c.data.kwargs = "toy", dict(modalities=("image",), size=16, examples=24)
    c.data.eval_splits = ("dev", "other")
    c.eval.train_examples = 10
    dev, other = load_eval_data(c, None)
    assert len(dev.ids["image"]) == 24 and dev.target_names["label"][0] == "red disc"
    train = dev.train()
    assert len(train.ids["image"]) == 10 and train.name == "train"
    assert other.train() is train
    c.data.train_split = ""
    with pytest.raises(UserError, match="train_split"):
        load_eval_data(c, None)[0].train()
