"""The emoji set: its splits, its preparation, and TFDS sets in general."""

import io
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from multimodal.data.builders import emoji_names
from multimodal.data.image_codec import decode_image
from multimodal.data.sources import build_source
from multimodal.errors import UserError

PREPARE = """
import sys
from multimodal.data.builders.preparing import own_builder
own_builder('emoji_names', sys.argv[1])
"""


@pytest.fixture(scope="module")
def splits():
    return emoji_names.assign_splits(emoji_names.load_records())


def test_sizes(splits):
    sizes = {name: len(rows) for name, rows in splits.items()}
    assert sum(sizes.values()) == 3953 and sizes["unseen_combination"] == 242
    assert len({r["emoji"] for rows in splits.values() for r in rows}) == 3953
    bases = {r["base"] for rows in splits.values() for r in rows}
    held = {r["base"] for r in splits["unseen_glyph"]}
    assert abs(len(held) / len(bases) - 0.05) < 0.005


def test_unseen_glyphs_are_held_out_entirely(splits):
    others = splits["train"] + splits["unseen_combination"]
    for key in ("base", "drawing"):
        assert not {r[key] for r in splits["unseen_glyph"]} & {r[key] for r in others}


def test_parts_of_unseen_combinations_occur_in_train(splits):
    train = splits["train"]
    pairs = {(r["base"], r["tones"]) for r in train}
    bases_of = {}
    for r in train:
        bases_of.setdefault(r["tones"], set()).add(r["base"])
    for r in splits["unseen_combination"]:
        assert r["tones"] and (r["base"], r["tones"]) not in pairs
        assert any(base == r["base"] for base, _ in pairs)
        assert bases_of[r["tones"]] - {r["base"]}
    assert not {r["drawing"] for r in splits["unseen_combination"]} & {r["drawing"] for r in train}


def test_split_tones():
    assert emoji_names.split_tones("👍🏽") == ("👍", ("🏽",))
    assert emoji_names.split_tones("🏽") == ("🏽", ())
    assert emoji_names.split_tones("👩🏻‍🤝‍👨🏿") == ("👩‍🤝‍👨", ("🏻", "🏿"))


def test_source(emoji_source, splits):
    source = emoji_source("unseen_combination")
    assert len(source) == 242
    for i in (0, 100, 241):
        example, record = source[i], splits["unseen_combination"][i]
        assert example["text"] == record["names"] and example["id"] == record["id"]
        assert example["text_group"] == list(emoji_names.languages())
        assert not any(":" in t[:1] or "_" in t for t in example["text"])
        assert decode_image(example["image"]).shape == (72, 72, 3)
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(copy.__getitem__, range(242))) == [source[i] for i in range(242)]


def test_equal_drawings_share_an_id(splits):
    ids = {}
    for r in (r for rows in splits.values() for r in rows):
        assert ids.setdefault(r["drawing"], r["id"]) == r["id"]
    assert len(set(ids.values())) == len(ids)


def test_wrong_split_and_feature(emoji_dir, emoji_source):
    with pytest.raises(UserError, match="did you mean train"):
        emoji_source("trian")
    with pytest.raises(UserError, match="did you mean names"):
        kwargs = dict(name="emoji_names", data_dir=emoji_dir, text_field="name")
        build_source("tfds", "train", kwargs)


def test_prepared_folder_needs_no_builder(emoji_dir, emoji_source):
    emoji_source("train")
    folder = os.path.join(emoji_dir, "emoji_names", "1.0.0")
    assert build_source("tfds", "unseen_glyph", dict(name=folder))[0]["text"]


def test_parquet_is_refused(emoji_dir, emoji_source, monkeypatch, tmp_path):
    emoji_source("train")
    folder = os.path.join(emoji_dir, "emoji_names", "1.0.0")
    for file in os.listdir(folder):
        data = pathlib.Path(folder, file).read_bytes()
        if file == "dataset_info.json":
            data = data.replace(b"array_record", b"parquet")
        (tmp_path / file).write_bytes(data)
    with pytest.raises(UserError, match="rows missing"):
        build_source("tfds", "train", dict(name=str(tmp_path)))


def test_unprepared_unknown_and_tensorflow_builders(tmp_path):
    with pytest.raises(UserError, match="not prepared"):
        build_source("tfds", "train", dict(name="cifar10", data_dir=str(tmp_path)))
    with pytest.raises(UserError, match="did you mean emoji_names"):
        build_source("tfds", "train", dict(name="emoji_nmaes", data_dir=str(tmp_path)))
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="tfds-tensorflow"):
            build_source("tfds", "train", dict(name="coco_captions", data_dir=str(tmp_path)))


class Labelled(tfds.core.GeneratorBasedBuilder):
    """A set as the catalogue has many: images, class labels, file names as ids."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = pathlib.Path(__file__).parent

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["hot_dog", "cat"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(6):
            out = io.BytesIO()
            Image.new("RGB", (5, 4), (i, 0, 0)).save(out, "PNG")
            yield i, {"id": f"{i}.png", "image": out.getvalue(), "label": i % 2}


def test_labels_of_a_catalogue_set_become_text(tmp_path):
    builder = Labelled(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    kwargs = dict(name="labelled", data_dir=str(tmp_path), template="photo: {}")
    source = build_source("tfds", "train[:4]", kwargs)
    assert [source[i]["id"] for i in range(4)] == [0, 1, 2, 3]
    assert source.label_names == ["hot dog", "cat"]
    for i in range(4):
        assert source[i]["text"] == [f"photo: {source.label_names[source[i]['label']]}"]
        assert decode_image(source[i]["image"]).shape == (4, 5, 3)


def start(folder):
    return subprocess.Popen([sys.executable, "-c", PREPARE, str(folder)])


@pytest.mark.slow
def test_preparing_survives_a_kill_and_a_second_process(tmp_path):
    killed = start(tmp_path)
    deadline = time.time() + 30
    while (
        not any(f.name.startswith(".prep") for f in tmp_path.iterdir()) and time.time() < deadline
    ):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "emoji_names" / "1.0.0").exists()
    both = [start(tmp_path) for _ in range(2)]
    assert [p.wait(timeout=120) for p in both] == [0, 0]
    source = build_source("tfds", "train", dict(name="emoji_names", data_dir=str(tmp_path)))
    assert len(source) == 3530 and np.unique([source[i]["id"] for i in (0, 5, 9)]).size == 3
    assert len([f for f in tmp_path.iterdir() if f.name.startswith(".prep")]) <= 1
