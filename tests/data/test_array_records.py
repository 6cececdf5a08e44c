"""Mixtures, our ArrayRecord files and the command that writes them."""

import collections
import json
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest

from multimodal.config import load_config
from multimodal.data.array_record_source import ArrayRecordSource, pack, unpack
from multimodal.data.array_source import ArraySource
from multimodal.data.mixture_source import MixtureSource
from multimodal.data.pipeline import Pipeline
from multimodal.data.prepare import convert, main
from multimodal.data.sources import register
from multimodal.errors import BadRecord, UserError
from tests.processes import ROOT

EXAMPLE = {
    "id": 7, "label": 3, "label_many": np.array([0, 1], np.uint8), "text": ["a dog", "犬 \ud800"],
    "text_group": ["en", "ja"], "image": b"\xff\xd8 bytes", "array": np.arange(6.0).reshape(2, 3),
    "audio": (np.array([0.5, -0.5], np.float32), 16_000), "empty": b"",
}  # fmt: skip


@register("numbers_for_tests")
class Numbers(ArraySource):
    def __init__(self, split, count, start=0, bad=0, labelled=False):
        numbers = np.arange(start, start + count)
        more = {"label": numbers} if labelled else {}
        super().__init__(split, text=[str(n) for n in numbers], **more)
        self._bad = bad

    def __getitem__(self, index):
        if index < self._bad:
            raise BadRecord("made bad")
        return super().__getitem__(index)


class Several(ArraySource):
    def __init__(self, split):
        super().__init__(split, text=["a"], label_many=[np.array([0, 1], np.uint8)])


def parts(**weights):
    """A mixture of parts a, b, ... of 10, 20, ... numbers."""
    return {
        name: dict(source="numbers_for_tests", kwargs=dict(count=10 * i, start=1000 * i), weight=w)
        for i, (name, w) in enumerate(weights.items(), start=1)
    }


@pytest.mark.parametrize(
    ("weights", "counts"),
    [({"a": 1, "b": 1}, (20, 20)), ({"a": 3.0, "b": 1.0}, (60, 20)), ({"a": 1, "b": 3}, (10, 30))],
)
def test_proportions_are_exact_and_nothing_is_left_out(weights, counts):
    mixed = MixtureSource("train", parts(**weights))
    assert len(mixed) == sum(counts)
    seen = collections.Counter(mixed[i]["text"] for i in range(len(mixed)))
    by_part = [sum(n for t, n in seen.items() if int(t) // 1000 == k) for k in (1, 2)]
    assert tuple(by_part) == counts and len(seen) == 30
    texts = {mixed[i]["id"]: set() for i in range(len(mixed))}
    for i in range(len(mixed)):
        texts[mixed[i]["id"]].add(mixed[i]["text"])
    assert all(len(t) == 1 for t in texts.values()) and len(texts) == 30
    assert sorted(mixed.texts("text")) == sorted(seen)
    assert pickle.loads(pickle.dumps(mixed))[3] == mixed[3]


def test_what_a_part_lacks_is_missing():
    given = parts(a=1) | {
        "b": dict(source="numbers_for_tests", kwargs=dict(count=5, labelled=True)),
        "c": dict(source="toy", kwargs=dict(modalities=("image",), examples=4)),
    }  # the classes of c have names, those of b are only numbers
    mixed = MixtureSource("train", given)
    assert mixed.optional == ("image", "text")
    labels = [mixed[i]["label"] for i in range(len(mixed))]
    assert len(mixed) == 30 and labels[:10] == [-1] * 10 and labels[10:15] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "given",
    [{}, {"a": dict(kwargs={})}, {"a": dict(source="toy", weight=0)}, {"a": dict(source="tay")}],
)
def test_parts_that_do_not_work(given):
    with pytest.raises(UserError):
        MixtureSource("train", given)


def test_credit_and_bad_first_records():
    given = parts(a=1) | {"b": dict(source="numbers_for_tests", kwargs=dict(count=5, bad=2))}
    given["c"] = dict(source="tfds", kwargs=dict(name="emoji_names"), split="unseen_glyph")
    mixed = MixtureSource("train", given)
    assert "Twemoji" in mixed.credit and mixed.optional == ("image",)


def test_several_labels_at_once_must_be_in_every_part():
    several = "tests.data.test_array_records:Several"
    with pytest.raises(UserError, match="parts.a lacks 'label_many'"):
        MixtureSource("train", parts(a=1) | {"b": dict(source=several)})


def test_a_record_comes_back():
    found = unpack(pack(EXAMPLE))
    assert found.keys() == EXAMPLE.keys()
    for key in ("id", "label", "text", "text_group", "image", "empty"):
        assert found[key] == EXAMPLE[key]
    for key in ("label_many", "array"):
        np.testing.assert_array_equal(found[key], EXAMPLE[key])
        assert found[key].dtype == EXAMPLE[key].dtype
    np.testing.assert_array_equal(found["audio"][0], EXAMPLE["audio"][0])
    assert found["audio"][1] == 16_000


def test_any_other_record_is_bad():
    rng, record = random.Random(0), pack(EXAMPLE)
    for cut in range(len(record)):
        with pytest.raises(BadRecord):
            unpack(record[:cut])
    for _ in range(500):
        damaged = bytearray(record)
        damaged[rng.randrange(len(record))] ^= 1 << rng.randrange(8)
        try:
            unpack(bytes(damaged))
        except BadRecord:
            continue


def config_of(**kwargs):
    config = load_config("configs/emoji.py:smoke")
    config.data.source, config.data.kwargs = "numbers_for_tests", kwargs
    return config


def test_conversion_keeps_every_example(tmp_path):
    about = convert(config_of(count=100, labelled=True), "train", tmp_path, files=7)
    assert about["examples"] == 100 and len(about["files"]) == 7
    made, source = ArrayRecordSource("train", tmp_path), Numbers("train", 100, labelled=True)
    assert [made[i] for i in range(100)] == [
        {k: v.item() if isinstance(v, np.generic) else v for k, v in source[i].items()}
        for i in range(100)
    ]
    assert pickle.loads(pickle.dumps(made))[99] == made[99]


def test_conversion_goes_on_where_it_was(tmp_path):
    convert(config_of(count=100), "train", tmp_path, files=4)
    files = sorted(tmp_path.glob("*.array_record"))
    stamps = [f.stat().st_mtime_ns for f in files]
    files[1].unlink()
    (tmp_path / "train.json").unlink()
    convert(config_of(count=100), "train", tmp_path, files=4)
    again = [f.stat().st_mtime_ns for f in files]
    assert [a == b for a, b in zip(again, stamps)] == [True, False, True, True]
    assert len(ArrayRecordSource("train", tmp_path)) == 100
    with pytest.raises(UserError, match="another source"):
        convert(config_of(count=99), "train", tmp_path, files=4)


def test_bad_records_are_left_out_counted_and_limited(tmp_path):
    config = config_of(count=100, bad=3)
    config.data.max_bad_share = 0.05
    about = convert(config, "train", tmp_path, files=4)
    assert about["examples"] == 97 and list(about["left_out"]) == [0, 1, 2]
    config.data.max_bad_share = 0.02
    with pytest.raises(UserError, match="3 of 100 records"):
        convert(config, "train", tmp_path / "other", files=4)


def test_command_in_several_processes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "multimodal.data.prepare",
        "--config",
        "configs/emoji.py:smoke",
    ]
    command += ["--config.data.source=toy", "--out", str(tmp_path), "--files=3", "--processes=2"]
    command += ["--config.data.kwargs={'modalities': ('image', 'text'), 'examples': 32}"]
    done = subprocess.run([*command, "--split=train"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "train: 32 examples in 3 files, 0 left out\n"
    assert {"image", "text", "id"} <= ArrayRecordSource("train", tmp_path)[31].keys()


def test_command_with_bad_arguments(capsys):
    assert main(["--config", "configs/emoji.py", "--out", "x", "--typo"]) == 2
    assert capsys.readouterr().err == "error: unknown argument --typo\n"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    convert(config_of(count=200), "train", folder, files=1)
    return folder


def readable(source):
    """Numbers of the records that can be read, each of which must be the right one."""
    good = set()
    for i in range(len(source)):
        try:
            assert source[i] == {"id": i, "text": str(i)}
            good.add(i)
        except BadRecord:
            continue
    return good


def test_two_hundred_flips_are_counted_exactly(records, tmp_path):
    """One flipped bit costs the record that it lies in, or the file where it lies in its index;
    never another value, never a crash; the pipeline counts what it cannot read.
    """
    file = next(records.glob("*.array_record")).name
    about = (records / "train.json").read_text()
    content, rng, lost = (records / file).read_bytes(), random.Random(0), []
    (tmp_path / "train.json").write_text(about)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (tmp_path / file).write_bytes(bytes(damaged))
        try:
            source = ArrayRecordSource("train", tmp_path)
        except UserError:
            continue
        lost.append(200 - len(readable(source)))
    assert collections.Counter(lost)[1] > 20 and set(lost) <= {0, 1, 200}
    pipeline = Pipeline(source, {}, 50, 0, max_bad_share=1.0)
    for step in range(4):
        pipeline.batch(step)
    assert len(pipeline.bad) == lost[-1]


def test_files_that_are_missing_or_cut(tmp_path):
    convert(config_of(count=100), "train", tmp_path, files=4)
    files = sorted(tmp_path.glob("*.array_record"))
    files[0].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-10])
    with pytest.raises(UserError, match="is missing; prepare it again"):
        ArrayRecordSource("train", tmp_path)
    source = ArrayRecordSource("train", tmp_path, on_bad="skip")
    assert len(source) == 50 and source.report == {"missing_file": 1, "damaged_file": 1}
    assert source[0]["id"] == 25 and source[49]["id"] == 99
    with pytest.raises(UserError, match="no split 'trian'; there are train"):
        ArrayRecordSource("trian", tmp_path)


@pytest.mark.parametrize("change", [{"files": [{"name": "../x", "examples": 1, "bytes": 1}]}, 3])
def test_an_index_that_lies(change, tmp_path):
    about = {"files": [], "optional": [], "targets": {}}
    text = json.dumps(about | change if isinstance(change, dict) else change)
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(UserError, match="leaves the folder|not what prepare.py writes"):
        ArrayRecordSource("train", tmp_path)
