"""classes.json: written from the training data, read for the classifiers that it fits."""

import json

from configs import common
from multimodal.config import load_config
from multimodal.data.class_names import read_class_names, write_class_names
from multimodal.training.inputs import get_source

CLASSIFIERS = {
    "shape": common.classifier(8),
    "more": common.classifier(9),
    "other": common.classifier(8, target="label_other"),
}


def config():
    c = load_config("configs/grid.py:smoke")
    with c.unlocked():
        c.model.classifiers = CLASSIFIERS
    return c


def test_names_come_from_the_training_data(tmp_path):
    c = config()
    write_class_names(tmp_path, c, get_source(c, c.data.train_split))
    names = json.loads((tmp_path / "classes.json").read_text())
    assert list(names) == ["label"] and len(names["label"]) == 8
    assert read_class_names(tmp_path, config()) == {"shape": names["label"]}


def test_without_names_there_is_no_file(tmp_path):
    write_class_names(tmp_path, config(), [])
    assert not list(tmp_path.iterdir()) and read_class_names(tmp_path, config()) == {}


def test_a_damaged_file_has_none(tmp_path):
    for text in ("", "[1]", "{}", '{"label": 3}', '{"label": ["a"]}', "[" * 100_000):
        (tmp_path / "classes.json").write_text(text)
        assert read_class_names(tmp_path, config()) == {}
