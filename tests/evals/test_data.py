"""Reading a split: one row a caption, lazily decoded images, records that cannot be read."""

import numpy as np
import pytest

from multimodal.errors import BadRecord, UserError
from multimodal.evals.data import from_source
from multimodal.evals.retrieval import retrieval
from tests.evals.conftest import random_images, random_texts

IMAGES = random_images(10)


class Source:
    """10 records of two captions; record 4's image cannot be decoded, record 7 has no image."""

    name, label_names = "toy:dev", ["a", "b"]

    def __len__(self):
        return 10

    def __getitem__(self, i):
        record = {"id": i * 5, "text": [f"{i} 0", f"{i} 1"], "text_group": ["en", "de"]}
        return record | {"label": i % 2} | ({} if i == 7 else {"image": bytes([i])})


def read_image(value, rng):
    if value[0] == 4:
        raise BadRecord("no image")
    return IMAGES[value[0]]


def read_text(value, rng):
    record, caption = map(int, value.split())
    return random_texts(1, seed=2 * record + caption)[0]


TRANSFORMS = {"image": read_image, "text": read_text}


def test_rows_follow_the_records():
    data = from_source(Source(), TRANSFORMS, "dev", max_bad_share=0.2)
    assert len(data.rows["text"]) == 20
    assert len(data.rows["image"]) == 9
    np.testing.assert_array_equal(data.ids["text"], np.repeat(np.arange(10) * 5, 2))
    assert 35 not in data.ids["image"]
    assert list(data.groups["text"][:4]) == ["en", "de", "en", "de"]
    assert "image" not in data.groups
    np.testing.assert_array_equal(data.labels["image"], [0, 1, 0, 1, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(data.rows["image"][np.array([8, 0])], IMAGES[[9, 0]])
    assert data.rows["text"].value(3) == "1 1"
    np.testing.assert_array_equal(data.usable("image"), np.ones(9, bool))


def test_a_row_that_cannot_be_decoded_is_left_out(net, caplog):
    data = from_source(Source(), TRANSFORMS, "dev", max_bad_share=0.2)
    metrics = retrieval(net, data, dict(batch_size=4))
    assert metrics["dev/image_to_text/count"] == 8
    assert metrics["dev/text_to_image/targets"] == 8
    assert metrics["dev/text_to_image/count"] == 16, "texts of images that are not there"
    assert "row 4 left out" in caplog.text


def test_too_many_bad_rows(net):
    data = from_source(Source(), TRANSFORMS, "dev", max_bad_share=0.05)
    with pytest.raises(UserError, match="max_bad_share"):
        retrieval(net, data, dict(batch_size=4))


def test_a_modality_that_no_record_has():
    with pytest.raises(UserError, match="no example has the modality audio"):
        from_source(Source(), TRANSFORMS | {"audio": read_text}, "dev")
