"""The laws of the data: resume, hosts, epochs, determinism, bad records."""

import collections
import time

import numpy as np
import pytest

from multimodal.data.array_source import ArraySource
from multimodal.data.pipeline import Pipeline
from multimodal.data.transforms import build_transform, build_transforms
from multimodal.errors import BadRecord, UserError

MODALITIES = {
    "image": dict(transform="image", size=16, augment="random_resized_crop", flip=True),
    "text": dict(transform="text", max_length=8),
}


@pytest.fixture
def build(noise, tokenizer):
    def make(batch_size=4, seed=0, source=noise, train=True, **kwargs):
        transforms = build_transforms(MODALITIES, train, tokenizer)
        return Pipeline(source, transforms, batch_size, seed, train, **kwargs)

    return make


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_shapes_and_types(build):
    batch = build().batch(0)
    shapes = {k: (v.dtype.name, v.shape) for k, v in batch.items()}
    assert shapes == {
        "image": ("uint8", (4, 16, 16, 3)),
        "text": ("int32", (4, 8)),
        "id": ("int32", (4,)),
        "index": ("int32", (4,)),
    }


@pytest.mark.parametrize("start", [0, 1, 5, 12, 1000])
def test_resume_law(build, start):
    fresh = build()
    with build(threads=3).iterate(start) as batches:
        for step in range(start, start + 8):
            assert_equal(next(batches), fresh.batch(step))


def test_after_the_first_batch_others_are_made_when_asked_for(build, monkeypatch):
    pipeline, made = build(), []
    monkeypatch.setattr(pipeline, "batch", made.append)
    with pipeline.iterate(5) as batches:
        next(batches)
    assert made == [5]
    made.clear()
    with pipeline.iterate(5) as batches:
        next(batches)
        batches.prepare()
        end = time.monotonic() + 30
        while len(made) <= pipeline.threads + 1 and time.monotonic() < end:
            time.sleep(0.001)
        assert len(made) == pipeline.threads + 2
        next(batches)
        next(batches)
    assert sorted(made)[:4] == [5, 6, 7, 8]


@pytest.mark.parametrize("count", [2, 4])
def test_host_law(build, count):
    whole = build(batch_size=8)
    parts = [build(batch_size=8, process_index=i, process_count=count) for i in range(count)]
    for step in (0, 2, 7):
        slices = [p.batch(step) for p in parts]
        joined = {k: np.concatenate([s[k] for s in slices]) for k in slices[0]}
        assert_equal(joined, whole.batch(step))


def test_epoch_sees_each_example_once(build):
    pipeline = build(batch_size=4)
    seen = np.concatenate([pipeline.batch(s)["index"] for s in range(23)])  # Four epochs of 23.
    epochs = seen.reshape(4, 23)
    for epoch in epochs:
        assert sorted(epoch) == list(range(23))
    assert len({tuple(e) for e in epochs}) == 4
    assert pipeline.steps_per_epoch == 6


def test_evaluation_order_has_no_randomness(build):
    pipeline = build(batch_size=23, train=False)
    np.testing.assert_array_equal(pipeline.batch(0)["index"], np.arange(23))
    assert_equal(pipeline.batch(0), pipeline.batch(5))


def test_seed_changes_order_and_augmentation(build):
    a, b = build(seed=0, batch_size=23).batch(0), build(seed=1, batch_size=23).batch(0)
    assert (a["index"] != b["index"]).any()
    a, b = (x["image"][np.argsort(x["index"])] for x in (a, b))
    assert (a != b).any()


def test_augmentation_changes_by_epoch(build):
    pipeline = build(batch_size=23)
    a, b = pipeline.batch(0), pipeline.batch(1)
    first, second = (x["image"][np.argsort(x["index"])] for x in (a, b))
    assert sum((x != y).any() for x, y in zip(first, second, strict=True)) > 20
    texts = np.stack([x["text"][np.argsort(x["index"])] for x in (a, b)])
    assert (texts[0] != texts[1]).any()


@pytest.mark.parametrize("augment", ["none", "pad_crop", "random_resized_crop"])
def test_cache_changes_nothing(noise, tokenizer, augment):
    modalities = {**MODALITIES, "image": dict(MODALITIES["image"], augment=augment)}
    transforms = build_transforms(modalities, True, tokenizer)
    pipelines = [Pipeline(noise, transforms, 8, 0, cache_bytes=n) for n in (0, 5000, 1 << 30)]
    for step in (0, 3, 3, 9):
        batches = [p.batch(step) for p in pipelines]
        assert_equal(batches[0], batches[1])
        assert_equal(batches[0], batches[2])


def broken(noise, bad):
    rows = [noise[i] for i in range(len(noise))]
    images = [b"broken" if i in bad else r["image"] for i, r in enumerate(rows)]
    return ArraySource("train", image=images, text=[r["text"] for r in rows])


def test_bad_records_are_replaced_and_named(build, noise, caplog):
    source = broken(noise, {3, 7})
    pipeline = build(source=source, max_bad_share=0.1)
    fresh = build(source=source, max_bad_share=0.1)
    counts = collections.Counter(np.concatenate([pipeline.batch(s)["index"] for s in range(6)]))
    assert set(pipeline.bad) == {3, 7} and not {3, 7} & set(counts)
    assert "record 3 replaced" in caplog.text and "record 7 replaced" in caplog.text
    for step in (5, 0):  # What was met before makes no difference.
        assert_equal(fresh.batch(step), pipeline.batch(step))


@pytest.mark.parametrize("bad, share", [({3}, 0.0), (set(range(23)), 1.0), ({1, 2, 3, 4}, 0.1)])
def test_too_many_bad_records(build, noise, bad, share):
    pipeline = build(source=broken(noise, bad), max_bad_share=share)
    with pytest.raises(UserError, match="unreadable"):
        for step in range(6):
            pipeline.batch(step)


def test_error_reaches_the_consumer(build, noise):
    with (
        build(source=broken(noise, set(range(23))), max_bad_share=0).iterate() as batches,
        pytest.raises(UserError),
    ):
        next(batches)


def test_missing_modality_is_a_mask(tokenizer, noise):
    rows = [noise[i] for i in range(6)]
    images = [None if i % 2 else r["image"] for i, r in enumerate(rows)]
    fields = dict(image=images, text=[r["text"] for r in rows])
    transforms = build_transforms(MODALITIES, True, tokenizer)
    batch = Pipeline(ArraySource("x", optional=("image",), **fields), transforms, 6, 0).batch(0)
    np.testing.assert_array_equal(batch["image_present"], batch["index"] % 2 == 0)
    assert not batch["image"][~batch["image_present"]].any()
    with pytest.raises(UserError, match="has no image"):
        Pipeline(ArraySource("x", **fields), transforms, 6, 0).batch(0)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_labels_are_passed_on(tokenizer, cache_bytes):
    fields = dict(
        text=[f"dog {i}" for i in range(5)],
        label=[3, -1, 0, 1, 2],
        label_word=np.arange(5, dtype=np.int64),
        label_many=np.eye(5, 3, dtype=np.uint8),
        labelled=list("abcde"),
    )
    transforms = build_transforms({"text": MODALITIES["text"]}, True, tokenizer)
    source = ArraySource("x", label_names=["a", "b", "c", "d"], **fields)
    assert source.targets == dict(label=["a", "b", "c", "d"], label_word=None, label_many=None)
    batch = Pipeline(source, transforms, 5, 0, cache_bytes=cache_bytes).batch(0)
    assert set(batch) == {"id", "index", "text", "label", "label_word", "label_many"}
    order = batch["index"]
    for key, kind in (("label", np.int32), ("label_word", np.int32), ("label_many", np.uint8)):
        np.testing.assert_array_equal(batch[key], np.asarray(fields[key])[order])
        assert batch[key].dtype == kind


@pytest.mark.parametrize("label", [0.5, True, [1, 0], "dog", np.zeros((2, 2), np.uint8)])
def test_what_is_no_label(tokenizer, label):
    transforms = build_transforms({"text": MODALITIES["text"]}, True, tokenizer)
    source = ArraySource("x", text=["dog"], label_x=[label])
    with pytest.raises(UserError, match="label_x must be an integer or a uint8 vector"):
        Pipeline(source, transforms, 1, 0).batch(0)


@pytest.mark.parametrize("kwargs", [dict(batch_size=24), dict(batch_size=0)])
def test_batch_size_must_fit(build, kwargs):
    with pytest.raises(UserError, match="23 examples"):
        build(**kwargs)


def test_batch_must_divide_over_processes(build):
    with pytest.raises(UserError, match="does not divide"):
        build(batch_size=5, process_count=2)


def test_closed_iterator_stops(build):
    batches = build().iterate()
    next(batches)
    batches.close()
    batches.close()
    assert list(batches) == []


VALUES = {"image": dict(size=8), "audio": dict(sample_rate=8000, seconds=0.1),
          "video": dict(size=8, frames=2)}  # fmt: skip


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("value", ["a.file", ["a.file"]])
def test_a_text_is_no_picture_sound_or_film(kind, value):
    """It ends a run at once: a record that is bad is replaced, and so would be every other."""
    transforms = {kind: build_transform(kind, VALUES[kind], train=True)}
    source = ArraySource("train", **{kind: [value] * 4})
    with pytest.raises(UserError, match=rf"{kind} transform.*'a\.file'.*dict\(file=") as e:
        Pipeline(source, transforms, 2, 0).batch(0)
    assert not isinstance(e.value, BadRecord)
