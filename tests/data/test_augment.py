"""Augmentations of whole examples: picture and text change together, the rest stays."""

import io

import numpy as np
import pytest
from PIL import Image

from multimodal.config import load_config
from multimodal.data.array_source import ArraySource
from multimodal.data.augment import Augment
from multimodal.data.pipeline import Pipeline
from multimodal.data.transforms import build_transforms
from multimodal.errors import BadRecord, UserError

COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}
TOWERS = {"image": {}, "text": {}}
SPEC = {"swap_colours": {"colours": COLOURS}}


def drawing(*names):
    """A white picture with a pixel of each of these colours, and one that is nearly red."""
    pixels = np.full((1, len(names) + 2, 3), 255, np.uint8)
    pixels[0, : len(names)] = [COLOURS[n] for n in names]
    pixels[0, -1] = (254, 0, 0)
    return pixels


def named(pixels):
    """The names of a drawing's colours."""
    by_value = {v: k for k, v in COLOURS.items()}
    return [by_value.get(tuple(p)) for p in pixels[0].tolist()]


@pytest.mark.parametrize("encoded", [False, True])
def test_colours_and_their_names_change_alike(encoded):
    augment, seen = Augment(SPEC, TOWERS), set()
    image = drawing("red", "blue", "red")
    if encoded:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        image = buffer.getvalue()
    example = {"image": image, "text": ["Red, blues, red; redder", "no colour"], "label": 1}
    for seed in range(100):
        new = augment(example, np.random.default_rng(seed))
        a, b, c, *rest = named(new["image"])
        assert a == c != b and rest == [None, None]
        assert new["text"] == [f"{a}, {b}s, {c}; redder", "no colour"]
        assert new["label"] == 1
        np.testing.assert_array_equal(new["image"][0, 3:], [[255, 255, 255], [254, 0, 0]])
        seen.add((a, b))
    assert len(seen) == 6
    if not encoded:  # what the source gave is still what it was
        np.testing.assert_array_equal(example["image"], drawing("red", "blue", "red"))


def test_labels_change_with_the_colours_that_name_their_classes():
    names = {"label": ["a red dot", "a green dot", "a blue dot", "none"], "label_other": ["x", "y"]}
    names["label_many"] = [f"{c} {k}" for k in (1, 2) for c in COLOURS]
    augment = Augment(SPEC, TOWERS, names)
    many = np.array([1, 0, 0, 0, 1, 1], np.uint8)  # red 1, green 2, blue 2
    example = {"image": drawing("red"), "text": "red green blue", "label_other": 1}
    example |= {"label": 0, "label_many": many}
    for seed in range(20):
        new = augment(example, np.random.default_rng(seed))
        red, green, blue = new["text"].split()
        assert names["label"][new["label"]] == f"a {red} dot" and new["label_other"] == 1
        there = {names["label_many"][i] for i in np.flatnonzero(new["label_many"])}
        assert there == {f"{red} 1", f"{green} 2", f"{blue} 2"}
        for label in (-1, 3):
            assert (
                augment(example | {"label": label}, np.random.default_rng(seed))["label"] == label
            )
    assert many.tolist() == [1, 0, 0, 0, 1, 1]
    for bad in (True, "x", None, 1.5):  # the pipeline says so
        assert augment(example | {"label": bad}, np.random.default_rng(0))["label"] is bad


def test_classes_that_colours_do_not_exchange():
    spec = SPEC["swap_colours"]
    pandas = {"label": ["a red panda", "a wolf"], "label_colour": ["Red", "GREEN", "blue"]}
    with pytest.raises(UserError, match="label has a class 'a red panda' and none 'a green panda'"):
        Augment(SPEC, TOWERS, pandas)
    augment = Augment({"swap_colours": {**spec, "labels": ["label_colour"]}}, TOWERS, pandas)
    example = {"image": drawing("red"), "text": "red", "label": 0, "label_colour": 0}
    new = augment(example, np.random.default_rng(3))
    assert new["label"] == 0 and new["text"] == pandas["label_colour"][new["label_colour"]].lower()
    with pytest.raises(UserError, match="differ in capitals alone"):
        Augment(SPEC, TOWERS, {"label": ["red", "Red", "green", "blue"]})
    with pytest.raises(UserError, match="no 'label_x' has named classes"):
        Augment({"swap_colours": {**spec, "labels": ["label_x"]}}, TOWERS, pandas)


def test_an_example_without_one_of_them_stays():
    augment = Augment(SPEC, TOWERS)
    for example in ({"text": "red"}, {"image": drawing("red")}):
        assert augment(example, np.random.default_rng(0)) is example


def test_batches_are_functions_of_seed_and_step_and_evaluation_stays_as_it_is(tokenizer):
    texts = ["red", "green", "blue"] * 4
    source = ArraySource("x", image=[drawing(t) for t in texts], text=texts)
    cfg = {
        "image": dict(transform="image", size=(1, 3)),
        "text": dict(transform="text", max_length=4),
    }

    def pipeline(train, augment, **kwargs):
        transforms = build_transforms(cfg, train, tokenizer)
        return Pipeline(source, transforms, 4, 0, train, augment=augment, **kwargs)

    augment = Augment(SPEC, cfg)
    one, two = pipeline(True, augment), pipeline(True, augment, cache_bytes=0)
    later = [one.batch(step) for step in range(3, 9)]
    for step, batch in zip(range(3, 9), later):
        for key, value in two.batch(step).items():
            np.testing.assert_array_equal(value, batch[key])
    ids = {t: tokenizer.encode_batch([t], 4)[0].tolist() for t in COLOURS}
    for batch in later:
        for image, text in zip(batch["image"], batch["text"]):
            assert ids[named(image)[0]] == text.tolist()
    plain, kept = pipeline(False, None).batch(0), pipeline(False, augment).batch(0)
    np.testing.assert_array_equal(plain["image"], kept["image"])


def test_from_a_config_by_import_path_and_command_line():
    fn = "tests.data.test_augment:blank"
    c = load_config("configs/emoji.py", [f"data.augment.mine={{'fn': '{fn}', 'to': 'x'}}"])
    augment = Augment(c.data.augment, c.modalities)
    assert augment({"text": "red"}, None) == {"text": "x"}
    nlvr = load_config("configs/nlvr.py", ["data.augment={}"])
    assert not nlvr.data.augment and load_config("configs/nlvr.py").data.augment


def blank(modalities, classes, to):
    """An augmentation of a fork."""
    return lambda example, rng: {**example, "text": to}


def test_pictures_are_read_as_the_tower_reads_them():
    tower = {"background": (211, 211, 211), "max_pixels": 4}
    augment = Augment(SPEC, {"image": tower, "text": {}})
    clear = np.zeros((1, 4, 4), np.uint8)
    new = augment({"image": clear, "text": "red"}, np.random.default_rng(0))
    assert set(new["image"].ravel().tolist()) == {211}
    buffer = io.BytesIO()
    Image.new("RGB", (5, 1)).save(buffer, "PNG")
    with pytest.raises(BadRecord, match="pixels"):
        augment({"image": buffer.getvalue(), "text": "red"}, np.random.default_rng(0))


@pytest.mark.parametrize(
    "spec, words",
    [
        ({"swap_colours": 3}, "give a dict"),
        ({"swap_colours": {"colours": 3}}, "a dict of lower-case names"),
        ({"swap_colours": {"colours": {"Red": (1, 2, 3), "b": (1, 2, 4)}}}, "lower-case names"),
        ({"swap_colors": {}}, "swap_colors.*did you mean swap_colours"),
        ({"swap_colours": {}}, "swap_colours: .*colours"),
        ({"swap_colours": {"colours": COLOURS, "image": "video"}}, "no modality 'video'"),
        ({"swap_colours": {"colours": {"red": (1, 2, 3)}}}, "two different colours"),
        ({"swap_colours": {"colours": {"red": (1, 2, 3), "r": (1, 2, 3)}}}, "two different"),
        ({"swap_colours": {"colours": {"red": (1, 2), "r": (1, 2, 300)}}}, "three numbers"),
        ({"swap_colours": {"colours": COLOURS, "colour": 1}}, "colour"),
        ({"os:system": {}}, "must take .modalities"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(spec, words):
    with pytest.raises(UserError, match=words):
        Augment(spec, TOWERS)
