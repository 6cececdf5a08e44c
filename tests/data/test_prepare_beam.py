"""The pipeline of Apache Beam writes what prepare.py writes, on Beam's local runner."""

import sys

import pytest

from multimodal.data import prepare, prepare_beam
from multimodal.data.array_record_source import ArrayRecordSource
from multimodal.errors import UserError
from tests.data.test_array_records import config_of


@pytest.fixture(scope="module")
def write():
    pytest.importorskip("apache_beam", reason="apache-beam is not installed")
    return prepare_beam.in_pipeline(["--runner=DirectRunner"])


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_the_same_files_byte_by_byte(write, tmp_path):
    config = config_of(count=100, bad=3, labelled=True)
    config.data.max_bad_share = 0.05
    for name, how in (("here", None), ("beam", write)):
        about = prepare.convert(config, "train", tmp_path / name, files=7, write=how)
        assert about["examples"] == 97 and list(about["left_out"]) == [0, 1, 2]
    assert contents(tmp_path / "beam") == contents(tmp_path / "here")
    assert len(ArrayRecordSource("train", tmp_path / "beam")) == 97
    config.data.max_bad_share = 0.02
    with pytest.raises(UserError, match="3 of 100 records"):
        prepare.convert(config, "train", tmp_path / "beam", files=7, write=write)


def test_it_goes_on_where_either_was(write, tmp_path):
    prepare.convert(config_of(count=100), "train", tmp_path, files=4)
    files = sorted(tmp_path.glob("*.array_record"))
    before, stamps = contents(tmp_path), [f.stat().st_mtime_ns for f in files]
    files[1].unlink()
    (tmp_path / "train.json").unlink()
    prepare.convert(config_of(count=100), "train", tmp_path, files=4, write=write)
    again = [f.stat().st_mtime_ns for f in files]
    assert [a == b for a, b in zip(again, stamps)] == [True, False, True, True]
    assert contents(tmp_path) == before
    with pytest.raises(UserError, match="another source"):
        prepare.convert(config_of(count=99), "train", tmp_path, files=4, write=write)


def test_what_a_worker_cannot_do_is_one_line(write, tmp_path, capsys):
    job = ("jsonl_folder", {"jsonl": str(tmp_path / "none.jsonl")}, "train", str(tmp_path), 0, 1)
    with pytest.raises(UserError, match="^Beam: .*none.jsonl.*No such file") as caught:
        write([job], None)
    assert "\n" not in str(caught.value)
    command = ["--config=configs/emoji.py:smoke", f"--out={tmp_path}", "--typo"]
    assert prepare_beam.main([*command, "--", "--runner=DirectRunner"]) == 2
    assert capsys.readouterr().err == "error: unknown argument --typo\n"


def test_without_beam_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match="pip install apache-beam"):
        prepare_beam.in_pipeline()
