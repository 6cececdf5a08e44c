"""Parquet tables and Hugging Face data sets."""

import io
import pathlib
import pickle
import random
import re

import pytest
from PIL import Image

from multimodal.data.parquet_source import HuggingFaceSource, ParquetSource
from multimodal.data.sources import build_source
from multimodal.errors import BadRecord, UserError


def png(shade):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def parquet(folder, rows=25):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for part in (0, 1):
        numbers = list(range(part * rows, (part + 1) * rows))
        table = pa.table(
            {
                "picture": [{"bytes": png(n), "path": f"{n}.png"} for n in numbers],
                "caption": [f"number {n}" if n % 2 else None for n in numbers],
                "class": numbers,
            }
        )
        pq.write_table(table, folder / f"train-{part}.parquet", row_group_size=10)
    return str(folder / "{split}-*.parquet")


COLUMNS = {"image": "picture", "text": "caption", "label": "class"}


def test_parquet(tmp_path):
    files = parquet(tmp_path)
    source = ParquetSource("train", files, COLUMNS)
    assert len(source) == 50
    for copy in (source, pickle.loads(pickle.dumps(source))):
        for i in random.Random(0).sample(range(50), 50):
            wanted = {"id": i, "image": png(i), "label": i}
            assert copy[i] == wanted | ({"text": f"number {i}"} if i % 2 else {})
    assert list(source.texts("text")) == [f"number {i}" for i in range(1, 50, 2)]
    with pytest.raises(UserError, match="no column 'caption_'"):
        ParquetSource("train", files, COLUMNS | {"text": "caption_"})
    with pytest.raises(UserError, match="no Parquet files match"):
        ParquetSource("val", files, COLUMNS)


def test_splits_of_a_parquet_table(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    kinds = ["train", "dev", "train", "dev", "train"]
    table = pa.table({"t": list("abcde"), "split": kinds, "n": range(5)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    pq.write_table(table.drop(["split"]), tmp_path / "b.parquet")

    def texts(name, split, **kwargs):
        files = str(tmp_path / f"{name}.parquet")
        source = build_source("parquet", split, dict(files=files, columns=dict(text="t")) | kwargs)
        found = [source[i]["text"] for i in range(len(source))]
        assert list(source.texts("text")) == found
        return "".join(found)

    assert texts("a", "train") == "ace" and texts("a", "dev") == "bd"
    assert texts("a", "3", split_field="n") == "d" and texts("b", "train") == "abcde"
    assert texts("a", "dev", split_field="") == texts("{split}", "a") == "abcde"
    for name, kwargs, why in (("a", {}, "'test'; there are dev, train"), ("b", {}, "tells the spl"),
                              ("b", dict(split_field="m"), "no column 'm'")):  # fmt: skip
        with pytest.raises(UserError, match=why):
            texts(name, "test", **kwargs)


def test_a_path_in_a_table_is_never_followed(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (tmp_path / "secret.png").write_bytes(png(1))
    row = {"bytes": None, "path": str(tmp_path / "secret.png")}
    pq.write_table(pa.table({"picture": [row]}), tmp_path / "train.parquet")
    source = ParquetSource("train", str(tmp_path / "train.parquet"), {"image": "picture"})
    with pytest.raises(BadRecord, match="a path and no bytes"):
        source[0]


def test_damaged_parquet(tmp_path):
    files = parquet(tmp_path)
    path = pathlib.Path(files.replace("{split}-*", "train-0"))
    content = bytearray(path.read_bytes())
    content[200] ^= 255
    path.write_bytes(bytes(content))
    source, bad = ParquetSource("train", files, COLUMNS), 0
    for i in range(50):
        try:
            source[i]
        except BadRecord:
            bad += 1
    assert bad in (0, 10)
    path.write_bytes(bytes(content[:300]))
    with pytest.raises(UserError, match="not a Parquet file"):
        ParquetSource("train", files, COLUMNS)


def test_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra huggingface is not installed")
    features = datasets.Features(
        picture=datasets.Image(),
        caption=datasets.Value("string"),
        **{"class": datasets.Value("int32")},
    )
    rows = {
        "picture": [{"bytes": png(n), "path": None} for n in range(5)],
        "caption": [f"number {n}" for n in range(5)],
        "class": list(range(5)),
    }
    made = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=made).save_to_disk(str(tmp_path / "set"))
    source = HuggingFaceSource("train", str(tmp_path / "set"), COLUMNS)
    assert source[3] == {"id": 3, "image": png(3), "text": "number 3", "label": 3}
    with pytest.raises(UserError, match="no split 'val'"):
        HuggingFaceSource("val", str(tmp_path / "set"), COLUMNS)
    made.save_to_disk(str(tmp_path / "one"))
    assert len(HuggingFaceSource("train", str(tmp_path / "one"), COLUMNS)) == 5
    with pytest.raises(UserError, match="nothing tells the splits apart"):
        HuggingFaceSource("val", str(tmp_path / "one"), COLUMNS)
    named = datasets.Dataset.from_dict({"t": ["a"]}, split="val")
    named.save_to_disk(str(tmp_path / "named"))
    assert len(HuggingFaceSource("val", str(tmp_path / "named"), {"text": "t"})) == 1
    with pytest.raises(UserError, match="no split .train.; it has val"):
        HuggingFaceSource("train", str(tmp_path / "named"), {"text": "t"})
    made.add_column("split", ["val", *["train"] * 4]).save_to_disk(str(tmp_path / "told"))
    assert len(HuggingFaceSource("val", str(tmp_path / "told"), COLUMNS)) == 1
    assert len(HuggingFaceSource("one", str(tmp_path / "{split}"), COLUMNS)) == 5


@pytest.mark.parametrize("lost, says", [(1, "the split .*1 of 200 rows"), (10, "10 of 200 rows")])
def test_rows_whose_split_cannot_be_read_are_told(tmp_path, caplog, lost, says):
    """Up to a hundredth of them; more is an error, as nobody knows what they belong to."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = [b"train", b"dev"] * 100
    values[:lost] = [b"\xff"] * lost
    table = pa.table({"caption": ["a"] * 200, "split": pa.array(values, pa.binary())})
    pq.write_table(table, tmp_path / "t.parquet")
    kwargs = dict(files=str(tmp_path / "t.parquet"), columns=dict(text="caption"))
    if lost > 2:
        with pytest.raises(UserError, match=says):
            build_source("parquet", "train", kwargs)
        return
    assert len(build_source("parquet", "train", kwargs)) == 99
    assert len(build_source("parquet", "dev", kwargs)) == 100
    assert re.search(says, caplog.text)
