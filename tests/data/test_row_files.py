"""Rows of tables and of JSON Lines: the same rows are the same, and damage is told by its line."""

import csv
import json

import pytest

from multimodal.data.row_files import read_rows
from multimodal.data.sources import build_source
from multimodal.errors import UserError

ROWS = [
    {"image": "x.png", "caption": 'a "red" circle, large', "split": "train", "label": "dog"},
    {"image": "x.png", "caption": "two\nlines; ünïcode\tand tabs", "split": "dev", "label": "1"},
    {"image": "x.png", "caption": "plain", "split": "train", "label": "cat"},
]


@pytest.fixture
def folder(tmp_path, noise):
    (tmp_path / "x.png").write_bytes(noise[0]["image"])
    return tmp_path


def write(folder, rows, end, encoding="utf-8"):
    """The rows as a file of a kind; empty values are left out of JSON."""
    path = folder / f"rows.{end}"
    with open(path, "w", newline="", encoding=encoding) as f:
        if end == "jsonl":
            f.writelines(json.dumps({k: v for k, v in r.items() if v}) + "\n" for r in rows)
        else:
            table = csv.DictWriter(f, list(rows[0]), delimiter="\t" if end == "tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    return str(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["csv", "tsv", "CSV"])
def test_a_table_is_its_rows(folder, end, encoding):
    rows = [*ROWS, {**ROWS[2], "caption": "", "label": "7"}]
    found = read_rows(write(folder, rows, end, encoding))
    assert [r for _, r in found] == [{k: v for k, v in r.items() if v} for r in rows]
    assert [n for n, _ in found] == [2, 3, 5, 6]  # a field may hold a line's end


def test_a_source_is_the_same_from_any_kind_of_file(folder):
    def every(source, split, kwargs):
        found = build_source(source, split, kwargs)
        return [found[i] for i in range(len(found))]

    media = dict(image=dict(file="{image}"), text="{caption}")
    labels = dict(label=dict(field="label", names=["cat", "dog"]))
    for split, labelled in (("train", [1, 0]), ("dev", [1])):
        seen = []
        for end in ("jsonl", "csv", "tsv"):
            path = write(folder, ROWS, end)
            seen += [every("jsonl_folder", split, dict(jsonl=path, label_names=["cat", "dog"]))]
            kwargs = dict(root=str(folder), rows=f"rows.{end}", modalities=media, labels=labels)
            records = every("records", split, kwargs | dict(where=dict(split="{split}")))
            assert [r["label"] for r in records] == labelled
            assert [r["text"] for r in records] == [r["text"] for r in seen[-1]]
        assert seen[0] == seen[1] == seen[2] and [r["label"] for r in seen[0]] == labelled


def test_classes_that_are_numbers_are_those_of_any_kind_of_file(folder):
    rows = [dict(ROWS[0], label=i) for i in (1, 2, 10, 11)]
    for end in ("jsonl", "csv"):
        write(folder, rows, end)
        kwargs = dict(rows=f"rows.{end}", splits=dict(train={}), labels=dict(label="label"))
        found = build_source(
            "records", "train", dict(root=str(folder), modalities=dict(text="{caption}"), **kwargs)
        )
        assert [found[i]["label"] for i in range(4)] == [1, 2, 10, 11]
        assert found.label_names == [str(i) for i in range(12)]


@pytest.mark.parametrize("content, why", [
    (b"a,b\n1,2\n1,2,3\n", "line 3: has 3 fields, but the header 2 .a, b"),
    (b"a,b\n\n'x,y'\n1\n", "line 4: has 1 fields"),
    (b'a,b\n"x\ny",1\n"x"y,1\n', "line 4: not valid CSV"),
    (b'a,b\n1,2\n"x,3\n4,5\n', "line 3: not valid CSV"),
    (b"a,b\n1,2\n1," + b"x" * 200_000, "line 3: not valid CSV .field larger than field limit"),
    (b"a,b\n1,2\n\xff,2\n", "line 3: not UTF-8"),
    (b"a,a\n1,2\n", "line 1: the header names 'a' twice"),
    (b"a,\n1,2\n", "line 1: a column has no name"),
    (b"image;caption\n1;2\n", "line 1: the header is one field, 'image;caption'"),
    (b"\x1f\x8b\x08", "is gzip"),
    (b"a,b\n", "no records"),
    (b"", "no records"),
])  # fmt: skip
def test_a_damaged_table_is_one_line(tmp_path, content, why):
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(UserError, match=why) as e:
        read_rows(str(tmp_path / "rows.csv"))
    assert "\n" not in str(e.value) and "rows.csv" in str(e.value) and len(str(e.value)) < 500


def test_one_caption_or_several(folder, monkeypatch):
    path = folder / "rows.jsonl"

    def texts(row, **kwargs):
        path.write_text(json.dumps({"image": "x.png"} | row))
        return build_source("jsonl_folder", "train", dict(jsonl=str(path)) | kwargs)[0]["text"]

    assert (
        texts({"caption": "a"}) == texts({"caption": ["a"]}) == texts({"captions": ["a"]}) == ["a"]
    )
    assert texts({"captions": "a"}, text_field="captions") == texts({"t": "a"}, text_field="t")
    hint = "a single one is called 'caption'"
    for row, why in (({"captions": "a"}, hint), ({}, "it is missing"),
                     ({"caption": ""}, "a text, or a"), ({"caption": 3}, "it is 3")):  # fmt: skip
        with pytest.raises(UserError, match=f"line 1: .*{why}"):
            texts(row)
    texts({"caption": "a"})
    monkeypatch.chdir(folder.parent)
    kwargs = dict(jsonl="rows.jsonl", folder=folder.name)
    assert build_source("jsonl_folder", "train", kwargs)[0]["text"] == ["a"]
    with pytest.raises(UserError, match="neither here nor in"):
        build_source("jsonl_folder", "train", kwargs | dict(jsonl="row.jsonl"))
