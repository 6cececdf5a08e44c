"""The `records` source: its parts on small files, with every error in one line."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from multimodal.data.sources import build_source
from multimodal.errors import UserError
from tests.data.conftest import png

ROWS = [
    dict(id="a", split="train", kind="dog", n=0, name=dict(en="a dog", de="ein Hund"), tags=["x"]),
    dict(id="b", split="train", kind="cat", n=1, name=dict(en="a cat"), tags=["x", "y"]),
    dict(id="c", split="train", kind="dog", n=1, name=dict(en="dog", de="Hund"), tags=[]),
    dict(id="d", split="val", kind="elk", n=5, name=dict(en="an elk"), tags=["z"], ok=True),
]


@pytest.fixture
def root(tmp_path):
    """A set with rows, a shard of pictures (c has none), a folder of files and arrays."""
    root = tmp_path / "set [1]"  # Brackets mean something in patterns.
    (root / "files").mkdir(parents=True)
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    with tarfile.open(root / "pics-0.tar", "w") as tar:
        for i, name in enumerate("abd"):
            data = png(np.full((4, 6, 3), 10 * i, np.uint8))
            info = tarfile.TarInfo(f"./{name}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (root / "files" / "a.bin").write_bytes(b"1")
    (tmp_path / "secret.bin").write_bytes(b"secret")
    (root / "files" / "b.bin").symlink_to(tmp_path / "secret.bin")
    np.savez(root / "one.npz", images=np.arange(8, dtype=np.uint8).reshape(2, 2, 2), index=[7, 1])
    np.savez(root / "two.npz", images=np.zeros((1, 2, 2), np.uint8), index=[5])
    return root


PICTURE = dict(tar="pics-*.tar", member="{id}.png")
BASE = dict(rows="rows.jsonl", where=dict(split="{split}"), modalities=dict(text="{name.en}"))


def build(root, split="train", **kwargs):
    return build_source("records", split, dict(BASE, root=str(root)) | kwargs)


def every(source):
    return [source[i] for i in range(len(source))]


def test_texts(root):
    assert [e["text"] for e in every(build(root))] == [["a dog"], ["a cat"], ["dog"]]
    both = build(root, modalities=dict(text=["{kind} {n:02d}", "{name.de}", "tag {tags}"]))
    assert [e["text"] for e in every(both)] == [
        ["dog 00", "ein Hund", "tag x"], ["cat 01", "tag x", "tag y"], ["dog 01", "Hund"]
    ]  # fmt: skip
    assert list(both.texts("text"))[:4] == ["dog 00", "ein Hund", "tag x", "cat 01"]
    grouped = build(root, modalities=dict(text=dict(text=dict(en="{name.en}", de="{name.de}"))))
    assert [e["text_group"] for e in every(grouped)] == [["de", "en"], ["en"], ["de", "en"]]


def test_labels(root):
    labels = dict(
        label="kind",
        label_n="n",
        label_named=dict(field="kind", names=("dog", "cow")),
        label_number=dict(field="n", names_field="kind"),
        label_tags=dict(field="tags", multi=True),
        label_ok="ok",
    )
    with pytest.raises(UserError, match="several names in 'kind'"):
        build(root, labels=labels)
    source = build(root, labels=labels | dict(label_number=dict(field="n", names=("p", "q"))))
    assert source.label_names == ["cat", "dog", "elk"]  # of all rows, whatever the split
    assert source.targets["label_n"] == ["0", "1", "2", "3", "4", "5"]
    assert source.targets["label_ok"] == ["true"] and source.targets["label_tags"] == list("xyz")
    found = [{k: v for k, v in e.items() if k.startswith("label")} for e in every(source)]
    assert [f["label"] for f in found] == [1, 0, 1] and [f["label_n"] for f in found] == [0, 1, 1]
    assert [f["label_named"] for f in found] == [0, -1, 0]
    assert [f["label_tags"].tolist() for f in found] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert {f["label_ok"] for f in found} == {-1} and found[0]["label_tags"].dtype == np.uint8
    assert build(root, "val", labels=dict(label_n=dict(field="n", names=["a"])))[0]["label_n"] == -1


def counts(row):
    """A label that a fork computes."""
    return {f"over {k}" for k in range(row["n"])}


counts.names = ("over 0", "over 1", "over 5")


def fails(row):
    return row["nmae"]


def length(row):
    return len(row["kind"]) % 2


def test_labels_made_by_a_function(root):
    here = "tests.data.test_records"
    labels = dict(label=f"{here}:length", label_n=dict(fn=f"{here}:counts", multi=True))
    labels["label"] = dict(fn=labels["label"], names=("even", "odd"))
    source = build(root, labels=labels)
    assert source.targets == {"label": ["even", "odd"], "label_n": list(counts.names)}
    assert [e["label"] for e in every(source)] == [1, 1, 1]
    assert [e["label_n"].tolist() for e in every(source)] == [[0, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert build(root, "val", labels=labels)[0]["label_n"].tolist() == [1, 1, 0]


def test_ids_are_the_same_in_every_split(root):
    assert [e["id"] for e in every(build(root, id="{kind}"))] == [0, 1, 0]
    assert [e["id"] for e in every(build(root))] == [0, 1, 2] and build(root, "val")[0]["id"] == 3


def test_missing_members(root, caplog):
    values = dict(image=PICTURE, text="{name.en}")
    with pytest.raises(UserError, match="1 of 3 examples lack a modality"):
        build(root, modalities=values)
    assert "no image for line 3 of" in caplog.text
    dropped = build(root, modalities=values, max_missing_share=0.5)
    assert len(dropped) == 2 and dropped.report == {"missing_image": 1, "dropped": 1}
    lacking = build(root, modalities=values, optional=("image",))
    assert ["image" in e for e in every(lacking)] == [True, True, False]
    assert lacking.report == {"missing_image": 1} and lacking.optional == ("image",)
    with pytest.raises(UserError, match="1 of 3"):  # Nothing would be left of it.
        build(root, modalities=dict(image=PICTURE), optional=("image",))


def test_arrays(root):
    values = dict(image=dict(npz="*.npz", index="index", row="{n}"))
    source = build(root, modalities=values, max_missing_share=0.5)
    assert source.report["missing_image"] == 1
    np.testing.assert_array_equal(source[0]["image"], [[4, 5], [6, 7]])
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[1]["image"], source[1]["image"])
    assert not build(root, "val", modalities=values)[0]["image"].any()
    plain = build(root, modalities=dict(image=dict(npz="one.npz", row="{n}")))
    np.testing.assert_array_equal(plain[0]["image"], [[0, 1], [2, 3]])


def test_arrays_that_do_not_fit(root, shared):
    with pytest.raises(UserError, match="did you mean images"):
        build(root, modalities=dict(image=dict(npz="one.npz", array="imagse", row="{n}")))
    folder = shared / "data" / "bad_inputs" / "checkpoints"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/data/bad_inputs")
    for path in folder.glob("*.npz"):
        (root / path.name).write_bytes(path.read_bytes())
        with np.load(path) if path.name != "truncated.npz" else io.BytesIO() as file:
            names = list(getattr(file, "files", ("images",)))
        with pytest.raises(UserError, match=path.name) as e:
            spec = dict(npz=path.name, array=names[0], index=names[-1], row="{n}")
            build(root, modalities=dict(image=spec))
        assert "\n" not in str(e.value)


def test_tiles(root):
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    (root / "files" / "d.png").write_bytes(png(pixels))
    spec = dict(file="{id}.png", folder="files", tiles=(2, 3))
    video = build(root, "val", modalities=dict(video=spec | dict(channels=1)))[0]["video"]
    assert video.shape == (6, 2, 2, 1) and video.dtype == np.uint8
    np.testing.assert_array_equal(video[4, ..., 0], pixels[2:4, 2:4])
    parts = build(root, "val", modalities=dict(image=spec | dict(tile="{k}")), expand=dict(k=6))
    assert len(parts) == 6 and parts[4]["image"].shape == (2, 2, 3)
    np.testing.assert_array_equal(parts[4]["image"][..., 0], pixels[2:4, 2:4])
    with pytest.raises(UserError, match="line 4: .*'6' is none of the tiles 0 to 5"):
        build(root, "val", modalities=dict(image=spec | dict(tile="{k}")), expand=dict(k=7))
    with pytest.raises(UserError, match="no 3x1 tiles"):
        build(root, "val", modalities=dict(image=spec | dict(tiles=(3, 1))))[0]


def test_files_never_lead_out_of_their_folder(root):
    spec = dict(folder="files", file="{id}.bin")
    with pytest.raises(UserError, match="rows.jsonl, line 2: .*outside"):
        build(root, modalities=dict(image=spec))  # a link
    for name in ("../secret.bin", str(root.parent / "secret.bin"), "a\0b", "\ud800"):
        (root / "rows.jsonl").write_text(json.dumps(dict(id=name, split="train", name="x")))
        for values in (dict(file="{id}", folder="files"), dict(tar="{id}", member="x")):
            with pytest.raises(UserError) as e:
                build(root, modalities=dict(image=values))
            assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="outside"):
        build(root, rows="../secret.bin")
    for spec in (dict(npz="../*", row="{id}"), dict(file="{id}", folder="..")):
        with pytest.raises(UserError, match="outside"):
            build(root, modalities=dict(image=spec))


def test_splits_and_conditions(root):
    splits = dict(dogs=dict(kind="dog"), numbers=dict(n=(1, 5)), all=dict())
    kwargs = dict(where=None, splits=splits)
    assert [len(build(root, s, **kwargs)) for s in splits] == [2, 3, 4]
    assert len(build(root, "dogs", splits=splits, where=dict(n=1))) == 1
    kwargs = dict(
        where=None,
        splits=dict(x=dict(v=("p", "q"))),
        expand=dict(v=("p", "q", "r"), k=2),
        modalities=dict(text="{id}{v}{k}"),
    )
    pairs = build(root, "x", **kwargs)
    saved = build(root, "x", **json.loads(json.dumps(kwargs, sort_keys=True)))
    assert every(pairs) == every(saved)  # as a config does that is written and read again
    texts = [e["text"][0] for e in every(pairs)]
    assert len(texts) == 16 and texts[:4] == ["ap0", "aq0", "ap1", "aq1"]
    (root / "rows_x.jsonl").write_text(json.dumps(ROWS[0]))
    assert len(build(root, "x", where=None, rows="rows_{split}.jsonl")) == 1


@pytest.mark.parametrize("kwargs, message", [
    (dict(rows="rwos.jsonl"), "no file rwos.jsonl"),
    (dict(rows="{id}.jsonl"), "only {split}"),
    (dict(root="nowhere"), "no file rows.jsonl in"),
    (dict(where=None), "nothing tells the splits apart"),
    (dict(split="val", where=dict(kind="dog")), "nothing tells the splits apart"),
    (dict(where=dict(spilt="train")), "did you mean split"),
    (dict(where=dict(kind="horse")), "none of 4 rows has kind in .'horse'.; there are kind: cat"),
    (dict(splits=dict(trian={})), "no split 'train' .did you mean trian"),
    (dict(modalities={}), "modalities: it is empty"),
    (dict(modalities=dict(text="{nmae.en}")), "did you mean name.en"),
    (dict(modalities=dict(text="name")), "fields stand in braces"),
    (dict(modalities=dict(text="{name")), "no template"),
    (dict(modalities=dict(text=[])), "no template of a text"),
    (dict(modalities=dict(text=3)), "must have one of the keys text, tar, file, npz"),
    (dict(modalities=dict(text="{name}")), "a text or a number is needed"),
    (dict(modalities=dict(text="{kind:d}")), "kind:d"),
    (dict(modalities=dict(image=dict(tar="x*.tar", member="{id}"))), "no file x.*tar"),
    (dict(modalities=dict(image=dict(tar="pics-*.tar"))), "needs 'member'"),
    (dict(modalities=dict(image=PICTURE | dict(tyles=(1, 1)))), "did you mean tiles"),
    (dict(modalities=dict(image=PICTURE | dict(tiles=(0, 1)))), "tiles=.0, 1."),
    (dict(modalities=dict(image=PICTURE | dict(member="{tags}.png"))), "has 2 values in one row"),
    (dict(optional=("image",)), "optional modality 'image' is not among"),
    (dict(labels=dict(target="kind")), "must be 'label' or 'label_...'"),
    (dict(labels=dict(label="knid")), "did you mean kind"),
    (dict(labels=dict(label="tags")), "set multi=True"),
    (dict(labels=dict(label=dict(field="kind", names=["Dog"]))), "no row's 'kind' is among"),
    (dict(labels=dict(label=dict(field="kind", name=["a"]))), "did you mean names"),
    (dict(labels=dict(label=dict(field="kind", names=["a", "a"]))), "twice"),
    (dict(labels=dict(label=dict(field="kind", names="none.txt"))), "cannot read"),
    (dict(labels=dict(label=dict(fn="os:system"))), "must take .row, ...."),
    (dict(labels=dict(label=dict(fn="a:b", field="kind"))), "give one of them"),
    (dict(labels=dict(label=dict(fn="tests.data.test_records:counts"))), "set multi=True"),
    (dict(labels=dict(label=dict(fn="tests.data.test_records:fails"))), "fails with KeyError"),
    (dict(id="{idd}"), "did you mean id"),
    (dict(expand=dict(kind=["a"])), "the rows have a field of that name"),
    (dict(expand=dict(k=0)), "give a list of values or a number"),
    (dict(rosw="x"), "did you mean rows"),
])  # fmt: skip
def test_errors_are_one_line_that_says_where(root, kwargs, message):
    with pytest.raises(UserError, match=message) as e:
        build(kwargs.pop("root", root), **kwargs)
    assert "\n" not in str(e.value)


def test_damaged_shards(root):
    with open(root / "pics-1.tar", "wb") as f:
        f.write(b"no tar" * 200)
    values = dict(image=PICTURE)
    with pytest.raises(UserError, match="pics-1.tar"):
        build(root, "val", modalities=values, on_bad="error")
    source = build(root, "val", modalities=values)
    assert source.report == {"unreadable_shard": 1}
    assert Image.open(io.BytesIO(source[0]["image"])).size == (6, 4)
