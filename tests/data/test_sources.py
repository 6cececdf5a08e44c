"""Sources: registry, JSONL, shards, Flickr8k; each error names its place."""

import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from multimodal.data import sources
from multimodal.data.image_codec import decode_image
from multimodal.data.sources import build_source
from multimodal.data.tar_index import Shards
from multimodal.errors import BadRecord, UserError


@pytest.fixture(scope="module")
def bad(shared):
    folder = shared / "data" / "bad_inputs"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/data/bad_inputs")
    files = json.loads((folder / "manifest.json").read_text())
    entries = next(v for v in files.values() if isinstance(v, list))
    return folder, {e["path"]: e["expect"] for e in entries}


def test_jsonl_by_manifest(bad):
    folder, expect = bad
    wrong = []
    for path in sorted((folder / "jsonl").iterdir()):
        wanted = expect[f"jsonl/{path.name}"]
        try:
            kwargs = dict(jsonl=str(path), folder=str(folder / "images"))
            source = build_source("jsonl_folder", "train", kwargs)
            decode_image(source[0]["image"])
            outcome = "accept"
        except UserError as e:
            outcome = "reject"
            assert str(path) in str(e) and "\n" not in str(e), str(e)
            if path.name not in ("empty.jsonl", "gz_named.jsonl"):
                line = 1 if path.name == "label_out_of_range.jsonl" else 2
                assert f"line {line}:" in str(e), str(e)
        if wanted not in (outcome, "either"):
            wrong.append((path.name, outcome))
    assert not wrong


@pytest.mark.parametrize("name, count", [("blank_lines", 2), ("crlf", 2), ("bom", 1)])
def test_jsonl_odd_but_good(bad, name, count):
    folder, _ = bad
    kwargs = dict(jsonl=str(folder / "jsonl" / f"{name}.jsonl"), folder=str(folder / "images"))
    assert len(build_source("jsonl_folder", "train", kwargs)) == count


def test_labels_are_checked_against_their_names(bad):
    folder, _ = bad
    kwargs = dict(jsonl=str(folder / "jsonl/label_out_of_range.jsonl"),
                  folder=str(folder / "images"), label_names=["dog", "cat"])  # fmt: skip
    with pytest.raises(UserError, match="line 1: .*9999 is outside the 2"):
        build_source("jsonl_folder", "train", kwargs)


@pytest.fixture
def folder(tmp_path, noise):
    (tmp_path / "x.png").write_bytes(noise[0]["image"])
    return tmp_path


def write(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return dict(jsonl=str(path))


def test_label_becomes_text(folder):
    kwargs = write(folder, {"image": "x.png", "label": 1})
    kwargs |= dict(label_names=["dog", "cat"], template="a drawing of a {}")
    example = build_source("jsonl_folder", "train", kwargs)[0]
    assert example["text"] == ["a drawing of a cat"] and example["label"] == 1


def test_equal_ids_are_positives_and_splits_filter(folder):
    rows = [dict(id=i, image="x.png", captions=["a"], split=s) for i, s in zip("abac", "ttte")]
    for told in ({}, dict(split_field="split")):
        kwargs = write(folder, *rows) | told
        source = build_source("jsonl_folder", "t", kwargs)
        assert [source[i]["id"] for i in range(len(source))] == [0, 1, 0]
        assert len(build_source("jsonl_folder", "e", kwargs)) == 1
        with pytest.raises(UserError, match="no examples in split 'v'; there are e, t"):
            build_source("jsonl_folder", "v", kwargs)
    write(folder, *rows, dict(image="x.png", captions=["a"]))
    with pytest.raises(UserError, match="line 5: field 'split'"):
        build_source("jsonl_folder", "t", kwargs)


def test_no_split_takes_the_rows_of_another_without_a_word(folder, noise):
    make_shards(folder, noise)
    table = write(folder, *(dict(id=str(i), image="x.png", captions=["a"]) for i in range(5)))
    (folder / "dev.jsonl").write_text((folder / "rows.jsonl").read_text().splitlines()[0])
    with tarfile.open(folder / "b-0.tar", "w") as tar:
        for i in range(2):
            (folder / f"{i}.txt").write_text("a")
            tar.add(folder / "x.png", f"{i}.png")
            tar.add(folder / f"{i}.txt", f"{i}.txt")
    by_name, all_rows = dict(jsonl=str(folder / "{split}.jsonl")), dict(split_field="")
    for name, kwargs, told, every in (
        ("jsonl_folder", table, by_name, all_rows),
        ("jsonl_tar", table | dict(shards=str(folder / "a-*.tar")), by_name, all_rows),
        ("tar", dict(shards=str(folder / "b-*.tar")), None, dict(any_split=True)),
    ):
        count = len(build_source(name, "train", kwargs))
        with pytest.raises(UserError, match="nothing tells the splits apart.*{split}"):
            build_source(name, "dev", kwargs)
        assert len(build_source(name, "dev", kwargs | every)) == count  # asked for in words
        if told:
            assert len(build_source(name, "dev", kwargs | told)) == 1
    assert len(build_source("tar", "b", dict(shards=str(folder / "{split}-*.tar")))) == 2


def test_no_path_leaves_the_folder(folder):
    (folder / "inner").mkdir()
    (folder / "inner" / "link.png").symlink_to(folder / "x.png")
    for name in ("../x.png", str(folder / "x.png"), "link.png", "a\0b"):
        kwargs = write(folder, dict(image=name, captions=["a"])) | dict(
            folder=str(folder / "inner")
        )
        with pytest.raises(UserError, match="line 1"):
            build_source("jsonl_folder", "train", kwargs)


SHARDS = {  # name -> (samples in 'skip' mode or None, a reason in the report)
    "ok.tar": (6, None),
    "truncated.tar": (3, "truncated"),
    "corrupt_header.tar": (3, "damaged_header"),
    "empty.tar": (None, None),
    "zero_bytes.tar": (None, "unreadable_shard"),
    "missing_pair.tar": (4, "missing_text"),
    "bad_member.tar": (2, "missing_image"),
    "duplicate_keys.tar": (2, "duplicate_member"),
    "unordered.tar": (2, None),
    "path_traversal.tar": (None, "unsafe_member"),
    "gz_named.tar": (None, "unreadable_shard"),
}


@pytest.mark.parametrize("name", SHARDS)
def test_shards_skip_and_count(bad, name):
    folder, expect = bad
    count, reason = SHARDS[name]
    kwargs = dict(shards=str(folder / "shards" / name), on_bad="skip", max_missing_share=1.0)
    if count is None:
        with pytest.raises(UserError, match="no examples"):
            build_source("tar", "train", kwargs)
        return
    source = build_source("tar", "train", kwargs)
    assert len(source) == count
    assert decode_image(source[0]["image"]).shape[2] == 3 and source[0]["text"][0]
    assert any(key.startswith(reason) for key in source.report) if reason else not source.report


@pytest.mark.parametrize("on_bad", ["skip", "error"])
def test_data_of_damaged_shards_alone_is_an_error(bad, on_bad):
    folder, expect = bad
    for name in SHARDS:
        path = str(folder / "shards" / name)
        if expect[f"shards/{name}"] == "reject":
            with pytest.raises(UserError) as e:
                build_source("tar", "train", dict(shards=path, on_bad=on_bad))
            assert name in str(e.value)


def test_shards_never_extract(bad, tmp_path, monkeypatch):
    folder, _ = bad
    monkeypatch.chdir(tmp_path)
    shards = Shards([folder / "shards" / "path_traversal.tar"], on_bad="skip")
    assert shards.report["unsafe_member"] == 3 and not shards.samples
    assert not list(tmp_path.iterdir()) and not (tmp_path.parent / "evil.txt").exists()


def make_shards(folder, noise, missing=()):
    with tarfile.open(folder / "a-0.tar", "w") as tar:
        for i in range(10):
            if i not in missing:
                path = folder / "member.png"
                path.write_bytes(noise[i]["image"])
                tar.add(path, f"{i}.png")
    rows = [dict(id=str(i), split="train", captions=[f"c{i}", "d"]) for i in range(10)]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return dict(folder=str(folder))


def test_missing_members_are_counted(tmp_path, noise, caplog):
    kwargs = make_shards(tmp_path, noise, missing={2, 5})
    with pytest.raises(UserError, match="max_missing_share"):
        build_source("jsonl_tar", "train", kwargs)
    source = build_source("jsonl_tar", "train", kwargs | dict(max_missing_share=0.5))
    assert source.report == {"missing_image": 2} and len(source) == 8
    assert "no image for id '2'" in caplog.text


def test_shard_cut_after_indexing(tmp_path, noise):
    source = build_source("jsonl_tar", "train", make_shards(tmp_path, noise))
    path = tmp_path / "a-0.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadRecord, match=r"a-0\.tar: truncated"):
        source[9]


def test_flickr8k(shared):
    folder = shared / "data" / "flickr8k_128"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/data/flickr8k_128")
    train, dev = (build_source("jsonl_tar", s, dict(folder=str(folder))) for s in ("train", "dev"))
    assert (len(train), len(dev)) == (6000, 1000) and not train.report
    example = train[1234]
    assert decode_image(example["image"]).shape == (128, 128, 3) and len(example["text"]) == 5
    copy = pickle.loads(pickle.dumps(train))
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(copy.__getitem__, range(0, 6000, 7)))
    assert got == [train[i] for i in range(0, 6000, 7)]


class Mine:
    name = "mine"

    def __init__(self, split, size=3):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"id": index, "text": "a"}


def test_own_source_by_name_and_by_path(monkeypatch):
    monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))
    sources.register("mine")(Mine)
    assert len(build_source("mine", "train", {"size": 5})) == 5
    path = "multimodal.data.array_source:ArraySource"
    assert len(build_source(path, "train", {"text": ["a", "b"]})) == 2
    with pytest.raises(UserError, match="no examples"):
        build_source("mine", "train", {"size": 0})
    with pytest.raises(UserError, match="did you mean size"):
        build_source("mine", "train", {"sizes": 0})


@pytest.mark.parametrize(
    "name", ["tdfs", "no.such.module:Class", "multimodal.data.sources:Nothing"]
)
def test_unknown_source(name):
    with pytest.raises(UserError, match="config.data.source"):
        build_source(name, "train")
