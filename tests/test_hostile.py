"""Files and values that somebody made on purpose, each refused in one line; one test a kind."""

import gzip
import io
import json
import os
import struct
import zipfile

import numpy as np
import pytest

from multimodal import npz
from multimodal.config import load_config, read_config
from multimodal.data.array_record_source import unpack
from multimodal.data.array_source import ArraySource
from multimodal.data.audio_codec import decode_audio
from multimodal.data.image_codec import decode_image
from multimodal.data.parquet_source import ParquetSource
from multimodal.data.pipeline import Pipeline
from multimodal.data.sources import build_source, texts_of
from multimodal.data.tokenizer import Tokenizer, train_tokenizer
from multimodal.data.transforms import build_transforms
from multimodal.data.video_codec import decode_video
from multimodal.errors import BadRecord, UserError
from multimodal.evals.registry import evaluator
from multimodal.interop import load_file
from multimodal.interop.files import read_config as read_hints
from multimodal.interop.weights import check_finite
from multimodal.nn.encoders import build_encoder
from multimodal.training.checkpoint import choose_step, read_scores
from multimodal.training.validate import validate

CALLS = ("os:system", "subprocess:Popen", "builtins:exec", "multimodal.config:load_config")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a red dog", "a blue cat"] * 9, {"vocab_size": 60})


@pytest.mark.parametrize("name", CALLS)
def test_an_import_path_leads_only_to_what_fits_its_place(name, tmp_path):
    """A stored config names parts; none of them may be a function that runs what it is given."""
    mark = tmp_path / "ran"
    with pytest.raises(UserError, match="must take .split"):
        build_source(name, f"touch {mark}")
    with pytest.raises(UserError, match="must take"):
        build_transforms({"text": dict(transform=name)}, train=False)
    with pytest.raises(UserError, match="must take"):
        evaluator(name)
    with pytest.raises(UserError, match="no class of the kind"):
        build_encoder(dict(encoder=name))
    assert not mark.exists()


def store(folder, config):
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)


@pytest.mark.parametrize("name", ["hostile:Source", "hostile: Source", "a.run.hostile:Source"])
@pytest.mark.parametrize("place", ["value", "list", "key", "pairs", "deep"])
def test_code_in_the_folder_of_a_run_is_not_imported(tmp_path, monkeypatch, name, place):
    run = tmp_path / "a" / "run"
    run.mkdir(parents=True)
    (run / "hostile.py").write_text("raise SystemExit(99)")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(run))
    said = dict(value=dict(source=name), list=dict(sources=[name]), key={name: {"weight": 1}})
    said |= dict(pairs={"label": [["fn", name]]}, deep={"a": [1, [{"b": [{name: 1}]}]]})
    store(run, dict(modalities={}, model={}, data=said[place]))
    with pytest.raises(UserError, match=f"{name!r}, code in the run's own folder|accept dots"):
        read_config(run)


def test_code_elsewhere_is_fine(tmp_path, monkeypatch):
    run = tmp_path / "runs" / "x"
    run.mkdir(parents=True)
    (tmp_path / "mine.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    said = dict(source="mine:Source", url="https://host/a", other="none.such:Thing")
    store(run, dict(modalities={}, model={}, data=said))
    assert read_config(run).data.source == "mine:Source"


@pytest.mark.parametrize(
    "text", ["{}", "[" * 100_000, "3", '{"modalities": 3, "model": {}}', "\ud800",
             '{"modalities": {"a": {}}, "model": {}}', '{"modalities": {}, "model": NaN}'],
)  # fmt: skip
def test_a_stored_config_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_text(text, errors="surrogatepass")
    with pytest.raises(UserError, match="not a config of train.py") as e:
        read_config(tmp_path)
    assert "\n" not in str(e.value)


def test_damaged_scores_do_not_count(tmp_path):
    for step, text in {1: '{"a": 0.5}', 2: "{", 3: "[]", 4: '{"a": NaN}', 5: '{"a": "x"}'}.items():
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        (tmp_path / "eval").mkdir(exist_ok=True)
        (tmp_path / "eval" / f"{step}.json").write_text(text)
    store(tmp_path, dict(modalities={}, model={}, eval=dict(best="a")))
    assert choose_step(tmp_path, "best") == 1 and read_scores(tmp_path, 2) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////wAA"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "x"}, "content": "x" * 10}] * 9}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"model": {"type": "BPE", "vocab": {"<|startoftext|>": 1, "a": 0}, "merges": []}},
        {"unk": "[NOPE]"},
    ],
)  # fmt: skip
def test_tokenizers_that_break_the_library(tmp_path, tokenizer, change):
    tokenizer.save(tmp_path / "t.json")
    spec = json.loads((tmp_path / "t.json").read_text())
    if "unk" in change:
        spec["model"]["unk_token"] = change["unk"]
    else:
        spec |= change
    (tmp_path / "t.json").write_text(json.dumps(spec))
    with pytest.raises(UserError) as e:
        Tokenizer.load(tmp_path / "t.json")
    assert "\n" not in str(e.value)


def test_a_pattern_that_never_ends_costs_its_caption(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "t.json")
    spec = json.loads((tmp_path / "t.json").read_text())
    rule = {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""}
    (tmp_path / "t.json").write_text(json.dumps(spec | {"normalizer": rule}))
    slow = Tokenizer.load(tmp_path / "t.json")
    assert slow.encode_batch(["a red dog"], 8).any()
    with pytest.raises(BadRecord, match="cannot be cut into tokens"):
        slow.encode_batch(["x" * 20_000], 8)


def test_a_list_of_merges_that_is_damaged(tmp_path):
    path = tmp_path / "merges.txt.gz"
    for data in (gzip.compress(b"")[:10] + b"\xff" * 50, gzip.compress(bytes(1 << 26))):
        path.write_bytes(data)
        with pytest.raises(UserError, match="not CLIP's"):
            Tokenizer.load(path)


EXAMPLES = [
    {"id": "x"}, {"id": None}, {"id": 1.5}, {"id": True}, {"id": 2**70}, {"id": -1},
    {"text": 5}, {"text": None}, {"text": [1]}, {"text": {}}, {"text": [["a"]]}, {"text": b"a"},
    {"label": "x"}, {"label": None}, {"label": [[1], [1, 2]]}, {"label": 2**40}, {"label": -5},
    {"label": 10}, {"label": True}, {"label": np.zeros(3)},
]  # fmt: skip


@pytest.mark.parametrize("wrong", EXAMPLES, ids=str)
def test_a_record_of_the_wrong_kind_is_replaced(tokenizer, wrong):
    class Source(ArraySource):
        def __getitem__(self, index):
            return {"id": index, "text": "a dog", "label": 3} | (wrong if index == 2 else {})

    source = Source("train", text=["a dog"] * 4)
    assert list(texts_of(source, "text"))[:2] == ["a dog", "a dog"]
    transforms = build_transforms({"text": dict(transform="text", max_length=8)}, True, tokenizer)
    pipeline = Pipeline(source, transforms, 4, 0, max_bad_share=0.5, classes={"label": 10})
    batch = pipeline.batch(0)
    assert list(pipeline.bad) == [2] and len(batch["id"]) == 4 and 2 not in batch["index"]


def test_one_bad_record_does_not_stop_the_training_of_a_tokenizer():
    class Source(ArraySource):
        def __getitem__(self, index):
            if index == 1:
                raise BadRecord("made bad")
            return super().__getitem__(index)

    assert list(texts_of(Source("train", text=["a", "b", ["c", 3]]), "text")) == ["a", "c"]


def test_tables_of_wrong_columns_and_damaged_groups(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {
        "number": list(range(8)), "pairs": [[[1], [1, 2]]] * 8, "struct": [{"a": 1}] * 8,
        "broken": pa.StringArray.from_buffers(
            8, pa.py_buffer(np.arange(9, dtype=np.int32) * 2), pa.py_buffer(b"\xff\xfe" * 8)),
    }  # fmt: skip
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=4)
    for column in columns:
        source = ParquetSource("train", str(path), {"text": column})
        assert list(texts_of(source, "text")) == []
        if column in ("pairs", "broken"):
            with pytest.raises(BadRecord):
                source[0]
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(bytes(content))
    assert list(texts_of(ParquetSource("train", str(path), {"text": "number"}), "text")) == []


@pytest.mark.parametrize(
    "head",
    [b'{"a":' + b"[" * 50_000, json.dumps({"a": {"array": ["<f4", [2**70]]}}).encode(),
     json.dumps({"a": {"array": ["<f4", [-1, -1]]}}).encode(), b'{"a": {"json": ' + b"9" * 6000],
)  # fmt: skip
def test_records_that_nothing_wrote(head):
    with pytest.raises(BadRecord):
        unpack(struct.pack("<I", len(head)) + head + bytes(4))


def test_values_that_are_no_media():
    for value in (10**12, None, "abc", [1, 2], {}, 1.5):
        with pytest.raises(BadRecord):
            decode_video(value, 4)
        with pytest.raises(BadRecord):
            decode_image(value) if value is not None else decode_image(b"")
    for value in ((np.zeros(4), "a"), (np.zeros(4), None), (np.zeros(4), 8000, 3), {}, "x"):
        with pytest.raises(BadRecord):
            decode_audio(value, 8000)


def test_a_wav_of_millions_of_chunks():
    chunks = b"".join(struct.pack("<II", i, 0) for i in range(300_000))
    with pytest.raises(BadRecord, match="no chunk"):
        decode_audio(b"RIFF\0\0\0\0WAVE" + chunks, 8000)


@pytest.mark.parametrize("data", [b"<svg/>", b"%!PS-Adobe", b"\0\0\1\0", b"II*\0", b"P6 9 9 255"])
def test_what_is_no_picture_is_told_by_its_first_bytes(data):
    with pytest.raises(BadRecord, match="is no JPEG, PNG.*starts with b") as e:
        decode_image(data)
    assert "0x7" not in str(e.value)


def test_an_npz_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "_ALLOWED", 1 << 20)
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros(30_000_000, np.uint8))
    with pytest.raises(UserError, match="would unpack to 0.0 GB"):
        load_file(tmp_path / "w.npz")


def test_damaged_npz_files(tmp_path):
    np.savez_compressed(tmp_path / "good.npz", a=np.arange(500.0))
    content, path = (tmp_path / "good.npz").read_bytes(), tmp_path / "w.npz"
    for at in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[at] ^= 255
        path.write_bytes(bytes(damaged))
        try:
            load_file(path)
        except UserError as e:
            assert "\n" not in str(e)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"hello")
    with pytest.raises(UserError, match="no array of numbers"):
        load_file(path)


def safetensors_file(dtype, size=64):
    head = json.dumps({"a": {"dtype": dtype, "shape": [size], "data_offsets": [0, 64]}}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(64)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E8M0", "Q7"])
def test_weights_of_unknown_types(tmp_path, dtype):
    (tmp_path / "w.safetensors").write_bytes(safetensors_file(dtype))
    with pytest.raises(UserError, match="w.safetensors: ") as e:
        load_file(tmp_path / "w.safetensors")
    assert "\n" not in str(e.value)


def test_weights_that_are_not_finite():
    with pytest.raises(UserError, match="1 of 2 weights are not finite, such as b"):
        check_finite({"a": np.zeros(2), "b": np.array([np.nan])}, "w.npz")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", "{"])
def test_a_config_beside_weights_that_is_none(tmp_path, text):
    (tmp_path / "model.safetensors").write_bytes(safetensors_file("U8"))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json: "):
        read_hints(tmp_path)


def test_a_picture_cut_anywhere_is_refused():
    from PIL import Image

    for kind in ("PNG", "GIF", "BMP", "WEBP"):
        file = io.BytesIO()
        Image.frombytes("RGB", (40, 30), os.urandom(3600)).save(file, kind)
        for tenth in range(10):
            with pytest.raises(BadRecord):
                decode_image(file.getvalue()[: len(file.getvalue()) * tenth // 10])


def test_a_tfds_folder_imports_nothing_of_its_own(tmp_path, monkeypatch):
    build_source("tfds", "unseen_glyph", dict(name="emoji_names", data_dir=str(tmp_path / "data")))
    folder = next((tmp_path / "data").rglob("features.json")).parent
    good = (folder / "features.json").read_text()
    assert len(build_source("tfds", "unseen_glyph", dict(name=str(folder))))
    (tmp_path / "hostile.py").write_text("raise SystemExit(99)")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    assert own in good
    bad = good.replace(own, "hostile.X")
    escaped = bad.replace("ClassName", "Cl\\u0061ssName")
    legacy = '{"type": "hostile.X", "content": {}}'
    for text in (bad, escaped, legacy, "[", "{}", ""):
        (folder / "features.json").write_text(text)
        with pytest.raises(UserError, match="cannot load the TFDS set") as e:
            build_source("tfds", "unseen_glyph", dict(name=str(folder)))
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("key", ["optim.lr.peak", "optim.weight_decay", "data.max_bad_share"])
def test_numbers_of_a_config_are_finite(key):
    config = load_config("configs/emoji.py:smoke", [f"{key}=1e999"])
    with pytest.raises(UserError, match=f"config.{key} is inf: give a finite number"):
        validate(config)
