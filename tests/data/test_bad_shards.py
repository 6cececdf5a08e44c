"""Tar shards that are damaged on purpose: nothing hangs, crashes or is lost without a word."""

import io
import json
import os
import pickle
import random
import tarfile

import pytest

from multimodal.data import tar_index
from multimodal.data.sources import build_source
from multimodal.data.tar_index import Shards
from multimodal.errors import BadRecord, UserError

END = bytes(1024)


def header(name, size, kind=b"0"):
    """A ustar header; `size` is a number (in base 256 where it is negative or huge) or bytes."""
    info = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    info[156:157] = kind
    info[124:136] = size if isinstance(size, bytes) else (size + (1 << 96)).to_bytes(13)[-12:]
    if not isinstance(size, bytes) and size >= 0:
        info[124:136] = b"\x80" + size.to_bytes(11)
    info[148:156] = b" " * 8
    info[148:156] = b"%06o\0 " % sum(info)
    return bytes(info)


def member(name, data=b"hello"):
    return header(name, len(data)) + data + bytes(-len(data) % 512)


def extended(key, value):
    """A pax header of one record."""
    record = f" {key}={value}\n".encode()
    size = next(n for n in range(9999) if len(str(n)) + len(record) == n)
    return header("pax", size, b"x") + str(size).encode() + record + bytes(-size % 512)


GOOD = member("a.png")
BAD = {  # name -> what follows a good member
    "negative size": header("b.png", -512) + END,
    "more negative": header("b.png", -1536) + END,
    "huge size": header("b.png", 2**80) + END,
    "size by pax": extended("size", -1536) + member("b.png") + END,
    "huge by pax": extended("size", 10**30) + member("b.png") + END,
    "sparse": header("b.png", 512, b"S") + bytes(512) + END,
    "sparse by pax": extended("GNU.sparse.map", "0,5,9,x") + member("b.png") + END,
    "names of names": (header("l", 5, b"L") + b"name\0" + bytes(507)) * 3000 + member("b") + END,
    "name of 8 GB": header("l", 2**33 - 1, b"L") + member("b.png") + END,
    "zeros inside": bytes(512) + member("b.png") + END,
    "two archives": END + member("b.png") + END,
    "link": header("b.png", 0, b"2") + END,
    "device": header("b.png", 0, b"3") + END,
    "absolute": header("/b.png", 0) + END,
    "upwards": header("a/../../b.png", 0) + END,
    "NUL in the name": extended("path", "b\0.png") + member("b.png") + END,
    "garbage": random.Random(0).randbytes(2048),
    "no end": b"",
}


@pytest.mark.parametrize("name", BAD)
def test_damage_is_noticed(tmp_path, name, caplog):
    path = tmp_path / "s.tar"
    path.write_bytes(GOOD + BAD[name])
    with pytest.raises(UserError) as e:
        Shards([path], "error")
    assert str(path) in str(e.value) and "\n" not in str(e.value)
    shards = Shards([path], "skip")
    assert shards.report and str(path) in caplog.text
    assert shards.read(shards.find("a.png")) == b"hello" and not shards.find("b.png")


def test_mutated_shards_never_crash(tmp_path):
    whole, rng, path = GOOD + member("a.txt") + member("c.png") + END, random.Random(0), None
    for n in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3, 10))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path = tmp_path / "s.tar"
        path.write_bytes(data[: len(data) * n // 300] if n % 2 else data)
        shards = Shards([path], "skip")
        for sample in shards.samples.values():
            assert all(len(shards.read(m)) == m.size for m in sample.values())


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    paths = [tmp_path / n for n in ("pipe.tar", "folder.tar", "missing.tar")]
    assert Shards(paths, "skip").report == {"unreadable_shard": 3}


def shard(path, key, extra=b""):
    path.write_bytes(member(f"{key}.png", b"P" * 600 + extra) + member(f"{key}.txt") + END)


def test_a_shard_that_vanishes_costs_its_records(tmp_path):
    shard(tmp_path / "a.tar", "a")
    shards = Shards([tmp_path / "a.tar"])
    (tmp_path / "a.tar").unlink()
    with pytest.raises(BadRecord, match="a.tar"):
        shards.read(shards.find("a.png"))


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "_OPEN_FILES", 3)
    for i in range(20):
        shard(tmp_path / f"{i:02d}.tar", i, bytes([i]))
    shards = Shards(sorted(tmp_path.glob("*.tar")))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for copy in (shards, pickle.loads(pickle.dumps(shards))):
        for i in (*range(20), 3, 3, 19, 0):
            assert copy.read(copy.find(f"{i}.png"))[-1] == i
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 6


def test_a_large_part_that_is_lost_is_an_error_however_few_its_reasons(tmp_path):
    """One reason can cost the rest of a shard: bytes count as well as samples."""
    many = b"".join(member(f"{i}.png") + member(f"{i}.txt") for i in range(400))
    (tmp_path / "a.tar").write_bytes(many + header("x", -512) + many.replace(b".png", b".gif"))
    with pytest.raises(UserError, match=r"50\.\d% of all.*a\.tar: not a whole"):
        build_source("tar", "train", dict(shards=str(tmp_path / "a.tar")))


def test_bad_json_in_a_shard_costs_its_sample(tmp_path, caplog):
    texts = [b'{"caption": "a"}', b"{", b'{"caption": 3}', b"[" * 5000, b'{"caption": ["b"]}']
    parts = [member(f"{i}.png") + member(f"{i}.json", t) for i, t in enumerate(texts)]
    (tmp_path / "a.tar").write_bytes(b"".join(parts) + END)
    kwargs = dict(shards=str(tmp_path / "a.tar"), text_extension="json", max_missing_share=1.0)
    source = build_source("tar", "train", kwargs)
    assert [source[i]["text"] for i in range(2)] == [["a"], ["b"]] and len(source) == 2
    assert source.report == {"bad_text": 3} and "has no 'caption'" in caplog.text


def thousand(folder, noise):
    """1,000 shards of two pictures each, and their captions; returns path of the 500th."""
    rows = []
    for i in range(1000):
        with tarfile.open(folder / f"s-{i:04d}.tar", "w") as tar:
            for k in range(2):
                key, data = f"{i:04d}{k}", noise[i % 23]["image"]
                info = tarfile.TarInfo(f"{key}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                rows.append(dict(id=key, split="train", captions=[f"a dog {i}"]))
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "s-0500.tar"


@pytest.mark.parametrize("damage", ["cut", "garbage", "missing"])
def test_one_damaged_shard_of_a_thousand(tmp_path, noise, damage, caplog):
    middle = thousand(tmp_path, noise)
    content = middle.read_bytes()
    middle.unlink()
    if damage != "missing":
        middle.write_bytes(content[:700] if damage == "cut" else bytes(reversed(content)))
    source = build_source("jsonl_tar", "train", dict(folder=str(tmp_path)))
    assert len(source) == 1998 and source.report["missing_image"] == 2
    assert ("s-0500.tar" if damage != "missing" else "no image for id '05000'") in caplog.text


@pytest.mark.slow
def test_training_goes_on_beside_a_damaged_shard(tmp_path, noise, caplog):
    from multimodal.config import load_config
    from multimodal.training.loop import train

    middle = thousand(tmp_path, noise)
    middle.write_bytes(random.Random(0).randbytes(3000))
    changes = ["steps=2", "eval.pictures=0", "eval.best=", "eval.names=()",
               "data.eval_splits=train", "data.source=jsonl_tar",
               f"data.kwargs={dict(folder=str(tmp_path))!r}"]  # fmt: skip
    train(load_config("configs/emoji.py:clip,smoke", changes), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
    assert f"{middle}: not a whole" in caplog.text
    assert "{'unreadable_shard': 1, 'missing_image': 2}" in caplog.text


def test_missing_shards_weigh_as_much_as_others(tmp_path):
    """Half of ten shards gone is half of the data, though nobody knows their size."""
    names = [str(tmp_path / f"{i}.tar") for i in range(10)]
    for i, name in enumerate(names[::2]):
        data = b"".join(member(f"{i}-{j}.{e}") for j in range(9) for e in ("png", "txt"))
        (tmp_path / name).write_bytes(data + END)
    with pytest.raises(UserError, match="50.0% of all"):
        build_source("tar", "train", dict(shards=names, max_missing_share=0.4))
    assert Shards(names, "skip").lost_share == 0.5


def test_a_file_that_another_thread_lets_go_of_is_still_read(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(member("a.png", b"first") + END)
    shards = Shards([str(tmp_path / "a.tar")])
    (place,) = shards.samples["a"].values()
    real = os.pread

    def late(*args):
        shards._restart()  # all files are let go of between finding this one and reading it
        return real(*args)

    monkeypatch.setattr(tar_index.os, "pread", late)
    assert shards.read(place) == b"first"
