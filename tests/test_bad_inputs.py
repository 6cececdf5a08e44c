"""The folder of bad inputs by its manifest, from every entry point that takes such a file.

Training, evaluation and conversion run as their commands do, in this process: a rejection is exit
code 2 with one line, or, for one record of several, a line in the log that names it.
"""

import json
import pathlib
import re
import shutil
import tarfile

import pytest

import multimodal
from multimodal.data import prepare
from multimodal.errors import UserError
from multimodal.interop import load_file
from multimodal.interop.export import main as export
from tests.commands import Commands

SMALL = ("--config.steps=1", "--config.eval.pictures=0", "--config.eval.best=",
         "--config.data.max_bad_share=0.9")  # fmt: skip


@pytest.fixture(scope="module")
def bad(shared):
    folder = shared / "data" / "bad_inputs"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/data/bad_inputs")
    return folder


def entries(folder, kind):
    """{path: what is expected} of the manifest's files of a kind."""
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    return {f["path"]: f["expect"] for f in files if f["kind"] == kind}


class Small(Commands):
    """Runs of one step."""

    def train(self, *args):
        return super().train(*SMALL, *args)

    def prepare(self, *args):
        return self.call(lambda: prepare.main([*map(str, args), "--processes=1", "--files=1"]))


@pytest.fixture
def commands(monkeypatch, capsys, caplog):
    return Small(monkeypatch, capsys, caplog)


def data_args(source, kwargs, split="train"):
    return (f"--config.data.source={source}", f"--config.data.kwargs={kwargs!r}",
            f"--config.data.train_split={split}", f"--config.data.eval_splits={split}")  # fmt: skip


CONFIG = {"image": "configs/emoji.py:clip,smoke", "audio": "configs/esc10.py:smoke",
          "video": "configs/grid.py:smoke"}  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two towers, image and text."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    from multimodal.config import load_config
    from multimodal.training.loop import train

    changes = ["steps=1", "eval.pictures=0", "eval.best=", "data.source=toy",
               "data.kwargs={'modalities': ('image', 'text'), 'examples': 16}",
               "data.eval_splits=val"]  # fmt: skip
    train(load_config(CONFIG["image"], changes), folder)
    return folder


def rows(bad, kind, folder):
    """All files of a kind under plain names in a folder, padded with good ones to a multiple of 8.

    Returns [(name, expected)] by record, with rows.jsonl beside them.
    """
    found = entries(bad, kind)
    good = next(p for p, expect in found.items() if expect == "accept")
    files = [*found.items()] + [(good, "accept")] * (-len(found) % 8)
    (folder / "rows.jsonl").write_text(
        "\n".join(
            json.dumps(
                dict(
                    id=f"{i:03d}",
                    split="train",
                    image=f"{i:03d}.bin",
                    captions=["a dog"],
                    sound="sound.bin",
                )
            )
            for i in range(len(files))
        )
    )
    for i, (path, _) in enumerate(files):
        shutil.copy(bad / path, folder / f"{i:03d}.bin")
    return files


def image_source(kind, folder):
    """(source, kwargs) of a kind over a folder of `rows`."""
    media = dict(image=dict(file="{image}"), text="{captions}")
    records = dict(root=str(folder), rows="rows.jsonl", modalities=media)
    records |= dict(where=dict(split="{split}"))
    jsonl = dict(jsonl=str(folder / "rows.jsonl"))
    if kind == "tar":
        with tarfile.open(folder / "all.tar", "w") as tar:
            for path in sorted(folder.glob("*.bin")):
                (folder / "text").write_text("a dog")
                tar.add(path, f"{path.stem}.jpg")
                tar.add(folder / "text", f"{path.stem}.txt")
        return "tar", dict(shards=str(folder / "all.tar"), max_missing_share=0.2)
    if kind == "jsonl_tar":
        image_source("tar", folder)
        jsonl |= dict(shards=str(folder / "all.tar"), max_missing_share=0.2)
        return "jsonl_tar", jsonl
    if kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        files = [p.read_bytes() for p in sorted(folder.glob("*.bin"))]
        pq.write_table(pa.table(dict(i=files, t=["a dog"] * len(files))), folder / "t.parquet")
        columns = dict(image="i", text="t")
        return "parquet", dict(files=str(folder / "t.parquet"), columns=columns)
    if kind == "mixture":
        return "mixture", dict(parts=dict(a=dict(source="jsonl_folder", kwargs=jsonl)))
    if kind == "array_record":  # copies files as they are: what is wrong with one shows on reading
        out = folder / "records"
        argv = ["--config", CONFIG["image"], "--out", str(out), "--split=train", "--processes=1"]
        assert prepare.main([*argv, "--files=1", *data_args("jsonl_folder", jsonl)]) in (0, None)
        return "array_record", dict(folder=str(out))
    return {"records": ("records", records), "jsonl_folder": ("jsonl_folder", jsonl)}[kind]


def check_named(files, log, pattern):
    """The records that the log names are those to be rejected, and perhaps some of 'either'."""
    named = {int(n) for n in re.findall(pattern, log)}
    wanted = {i for i, (_, expect) in enumerate(files) if expect == "reject"}
    free = {i for i, (_, expect) in enumerate(files) if expect == "either"}
    assert named - free == wanted, [files[i] for i in (named - free) ^ wanted]


SOURCES = ("jsonl_folder", "records", "parquet", "mixture", "tar", "jsonl_tar", "array_record")
SOME = [s if s == "jsonl_folder" else pytest.param(s, marks=pytest.mark.slow) for s in SOURCES]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_pictures_in_training(bad, commands, tmp_path, kind):
    files = rows(bad, "image", tmp_path)
    source, kwargs = image_source(kind, tmp_path)
    if "tar" in kind:  # leaves empty members out before there is a record of them
        files = [f for f in files if (bad / f[0]).stat().st_size]
    size = len(files) // 8 * 8
    args = ("--config", CONFIG["image"], *data_args(source, kwargs), "--config.steps=2")
    args += (f"--config.batch_size={size}", "--workdir", tmp_path / "run")
    code, err, log = commands.train(*args, "--config.eval.names=()")
    assert code == 0, err
    check_named(files, log, r"record (\d+) replaced: ")


@pytest.mark.parametrize("kind", SOME)
def test_pictures_in_evaluation(bad, commands, workdir, tmp_path, kind):
    files = rows(bad, "image", tmp_path)
    source, kwargs = image_source(kind, tmp_path)
    if "tar" in kind:
        files = [f for f in files if (bad / f[0]).stat().st_size]
    args = data_args(source, kwargs)[1:]
    args += ("--workdir", workdir, "--data", source, "--config.data.max_bad_share=0.9")
    code, err, log = commands.eval(*args)
    assert code == 0, err
    check_named(files, log, r"image: row (\d+) left out")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["audio", "video"])
def test_sounds_and_films_in_training_and_evaluation(bad, commands, tmp_path, kind):
    pytest.importorskip("av" if kind == "video" else "soundfile")
    files = rows(bad, kind, tmp_path)
    media = dict(text="{captions}") | {kind: dict(file="{image}")}
    if kind == "video":  # its config wants a sound as well
        media["audio"] = dict(file="{sound}")
        sounds = entries(bad, "audio").items()
        shutil.copy(bad / next(p for p, e in sounds if e == "accept"), tmp_path / "sound.bin")
    labels = dict(label=dict(field="split", names=["train"]))
    kwargs = dict(root=str(tmp_path), rows="rows.jsonl", modalities=media, labels=labels)
    kwargs["where"] = dict(split="{split}")
    data = data_args("records", kwargs)
    args = ("--config", CONFIG[kind], *data, f"--config.batch_size={len(files)}")
    code, err, log = commands.train(*args, "--workdir", tmp_path / "run")
    assert code == 0, err
    check_named(files, log, r"record (\d+) replaced: ")
    check_named(files, log, r"(?:row|record) (\d+) left out of the evaluation")
    code, err, log = commands.eval(
        "--workdir", tmp_path / "run", *data[1:], "--config.data.max_bad_share=0.9"
    )
    assert code == 0, err
    check_named(files, log, r"(?:row|record) (\d+) left out of the evaluation")


def test_pictures_in_the_api(bad, workdir):
    loaded, wrong = multimodal.load(workdir), []
    for path, expect in entries(bad, "image").items():
        outcomes = set()
        for value in (str(bad / path), (bad / path).read_bytes(), bad / path):
            try:
                assert loaded.embed_images([value]).shape[0] == 1
                outcomes.add("accept")
            except UserError as e:
                assert str(e).startswith("image 0 of 1: ") and "\n" not in str(e)
                outcomes.add("reject")
        wrong += [(path, outcomes)] if outcomes != {expect} and expect != "either" else []
    assert not wrong


def outcome_of(code, err, path):
    """Accepted or rejected; a few good records that make no batch were accepted."""
    if "does not fit the" in err:
        return "accept"
    assert code == 0 or pathlib.Path(path).name in err, err
    return "reject" if code else "accept"


@pytest.mark.parametrize(
    "command", ["prepare", *(pytest.param(c, marks=pytest.mark.slow) for c in ("train", "eval"))]
)
@pytest.mark.parametrize("kind", ["jsonl", "shard"])
def test_tables_and_shards(bad, commands, workdir, tmp_path, kind, command):
    wrong = []
    for n, (path, expect) in enumerate(entries(bad, kind).items()):
        kwargs = dict(jsonl=str(bad / path), folder=str(bad / "images"))
        kwargs = dict(shards=str(bad / path)) if kind == "shard" else kwargs
        source = "tar" if kind == "shard" else "jsonl_folder"
        data = data_args(source, kwargs)
        config = ("--config", CONFIG["image"])
        if command == "train":
            if expect == "accept":
                continue  # too few records for a batch; test_pictures_in_training trains
            found = commands.train(*config, *data, "--workdir", tmp_path / str(n))
        elif command == "eval":
            found = commands.eval("--workdir", workdir, "--data", source, *data[1:])
        else:
            out = ("--out", tmp_path / str(n), "--split", "train")
            found = commands.prepare(*config, *out, *data)
        if expect not in (outcome_of(*found[:2], path), "either"):
            wrong.append((path, found[1][-300:]))
        assert not (tmp_path / str(n) / "config.json").exists() or expect != "reject"
    assert not wrong


@pytest.mark.parametrize("kind, key", [("npz", "init.path"), ("text", "tokenizer.path")])
def test_weights_and_tokenizers(bad, commands, tmp_path, kind, key):
    for path in entries(bad, kind):
        if path.endswith("captions.jsonl"):
            continue
        args = ("--config", CONFIG["image"], "--config.data.source=toy", "--workdir", tmp_path)
        args += ("--config.data.kwargs={'modalities': ('image', 'text'), 'examples': 16}",)
        code, err, _ = commands.train(*args, "--config.data.eval_splits=val",
                                      f"--config.{key}={bad / path}")  # fmt: skip
        assert code == 2 and pathlib.Path(path).name in err, (path, err)
        assert not list(tmp_path.glob("checkpoints/[0-9]*"))


def test_weights_that_hold_objects_never_run(bad):
    for path in entries(bad, "npz"):
        try:
            load_file(bad / path)
        except UserError as e:
            assert pathlib.Path(path).name in str(e) and "\n" not in str(e)


def test_configs(bad, commands, tmp_path):
    for path in entries(bad, "config"):
        code, err, _ = commands.train("--config", bad / path, "--workdir", tmp_path / "run")
        assert code == 2 and "Python file" in err and pathlib.Path(path).name in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_odd_captions(bad, commands, workdir, tmp_path):
    lines = (bad / "text" / "captions.jsonl").read_text().splitlines()
    captions = [next(v for v in reversed(json.loads(x).values()) if v is not None) for x in lines]
    captions = [c if isinstance(c, str) else c[0] for c in captions]
    made = [dict(image="ok.jpg", captions=[c], id=str(i)) for i, c in enumerate(captions)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, made)))
    kwargs = dict(jsonl=str(tmp_path / "rows.jsonl"), folder=str(bad / "images"))
    data = data_args("jsonl_folder", kwargs)
    code, err, _ = commands.eval("--workdir", workdir, "--data", "jsonl_folder", *data[1:])
    assert code == 0, err
    args = (
        "--config",
        CONFIG["image"],
        *data,
        "--config.eval.names=()",
        "--workdir",
        tmp_path / "r",
    )
    code, err, _ = commands.train(*args, f"--config.batch_size={len(captions) // 8 * 8}")
    assert code == 0, err
    assert multimodal.load(workdir).embed_texts(captions).shape[0] == len(captions)


def test_a_damaged_checkpoint_folder_from_every_entry_point(commands, workdir, tmp_path, capsys):
    run = tmp_path / "run"
    for name, content in {
        "config.json": b"{}",
        "tokenizer.json": b"\xff",
        "checkpoints": None,
    }.items():
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(workdir, run)
        if content is None:
            for path in (run / "checkpoints").rglob("*"):
                if path.is_file():
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            (run / name).write_bytes(content)
        assert commands.eval("--workdir", run)[0] == 2
        assert export(["--workdir", str(run), "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        with pytest.raises(UserError):
            multimodal.load(run)
        args = ("--config", CONFIG["image"], "--config.data.source=toy", "--workdir", run)
        args += ("--config.data.kwargs={'modalities': ('image', 'text'), 'examples': 16}",)
        assert commands.train(*args, "--config.data.eval_splits=val")[0] == 2
