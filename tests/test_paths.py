"""Data, tokenizers and weights by URL are what they are on disk; a store that fails says so."""

import http.server
import json
import pathlib
import pickle
import re
import subprocess
import sys
import tarfile
import threading

import fsspec
import numpy as np
import pytest

from multimodal import paths
from multimodal.config import load_config
from multimodal.data.array_record_source import ArrayRecordSource
from multimodal.data.prepare import convert, main
from multimodal.data.sources import build_source
from multimodal.data.tokenizer import Tokenizer, train_tokenizer
from multimodal.errors import BadRecord, Unhealthy, UserError
from tests.data.conftest import png
from tests.processes import ROOT

KWARGS = "--config.data.kwargs={'modalities': ('text',), 'examples': 4}"
STORE = fsspec.filesystem("memory")
RECORDS = dict(
    rows="rows.jsonl",
    where=dict(split="{split}"),
    labels=dict(label=dict(field="n", names="names.txt")),
    optional=("file",),
    modalities=dict(
        image=dict(tar="pics-*.tar", member="{id}.png"),
        file=dict(file="{id}.bin", folder="files"),
        array=dict(npz="arrays.npz", row="{n}"),
        text="{id}",
    ),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a file of each kind; one of three rows has no file."""
    root = tmp_path_factory.mktemp("set")
    (root / "files").mkdir()
    rows = [dict(id=i, n=n, split="train", captions=[f"a {i}"]) for n, i in enumerate("abc")]
    rows = [row | dict(image=f"{row['id']}.png") for row in rows]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "names.txt").write_text("x\ny\nz\n")
    for n, i in enumerate("abc"):
        (root / f"{i}.png").write_bytes(png(np.full((4, 6, 3), 10 * n, np.uint8)))
    for i in "ab":
        (root / "files" / f"{i}.bin").write_bytes(i.encode() * 5)
    with tarfile.open(root / "pics-0.tar", "w") as tar:
        for i in "abc":
            tar.add(root / f"{i}.png", f"{i}.png")
    np.savez(root / "arrays.npz", images=np.arange(12).reshape(3, 2, 2))
    train_tokenizer(["a b c d"] * 3, {"vocab_size": 40}).save(root / "tokenizer.json")
    return root


@pytest.fixture(scope="module")
def stores(root):
    """URLs of the same folder: in memory, and where aiohttp is there by HTTP."""
    STORE.put(f"{root}/", "/set/", recursive=True)
    urls = ["memory://set"]
    server = None
    try:
        fsspec.filesystem("http")
    except ImportError:
        pass
    else:
        handler = type("Ranges", (Ranges,), {"root": root})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls.append(f"http://127.0.0.1:{server.server_port}")
    yield urls
    if server:
        server.shutdown()


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A server of files and folders that answers ranges of bytes, as stores do."""

    served = 0  # bytes

    def __init__(self, *args):
        super().__init__(*args, directory=str(self.root))

    def do_GET(self):
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked:
            super().do_GET()
            return
        path = pathlib.Path(self.translate_path(self.path))
        first, last = int(asked[1]), min(int(asked[2]), path.stat().st_size - 1)
        data = path.read_bytes()[first : last + 1]
        Ranges.served += len(data)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def sources(root):
    """Every source that reads files, over a folder or URL."""
    yield "records", dict(RECORDS, root=root)
    yield "jsonl_tar", dict(folder=root)
    yield "jsonl_folder", dict(jsonl=f"{root}/captions.jsonl")


def every(name, kwargs):
    source = build_source(name, "train", kwargs)
    return [pickle.loads(pickle.dumps(source))[i] for i in range(len(source))]


def test_sources_by_url_are_those_of_the_folder(root, stores):
    for url in stores:
        for (name, here), (_, there) in zip(sources(str(root)), sources(url)):
            np.testing.assert_equal(every(name, there), every(name, here))


def test_parquet_by_url(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for n in (0, 1):
        table = pa.table({"t": [f"{n} {i}" for i in range(9)]})
        pq.write_table(table, tmp_path / f"train-{n}.parquet", row_group_size=4)
    STORE.put(f"{tmp_path}/", "/tables/", recursive=True)
    args = dict(columns=dict(text="t"))
    here = every("parquet", args | dict(files=f"{tmp_path}/{{split}}-*.parquet"))
    assert every("parquet", args | dict(files="memory://tables/{split}-*.parquet")) == here


def test_a_member_is_read_as_a_range(root, stores):
    if len(stores) < 2:
        pytest.skip("aiohttp, for HTTP, is not installed")
    source = build_source("records", "train", dict(RECORDS, root=stores[1]))
    before = Ranges.served
    assert source[1]["image"] == (root / "b.png").read_bytes()
    assert Ranges.served - before == (root / "b.png").stat().st_size


def test_tokenizers_by_url(root, stores):
    ids = Tokenizer.load(root / "tokenizer.json").encode_batch(["a d"], 6)
    for url in stores:
        there = Tokenizer.load(f"{url}/tokenizer.json")
        np.testing.assert_array_equal(there.encode_batch(["a d"], 6), ids)


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "memory://x", "a\0b", "..\\x", "x::file:///etc"]
)
def test_no_name_leads_out_of_a_remote_folder(name):
    with pytest.raises(UserError, match="outside"):
        paths.inside("memory://set", name, "here")
    assert paths.join("https://h/a", "%2e%2e/b?c#d") == "https://h/a/%252e%252e/b%3Fc%23d"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("memory://nowhere", "no file rows.jsonl|cannot read"),
        ("nope://x", "cannot use nope://"),
        ("file://", "give the path itself"),
        ("local://", "give the path itself"),
    ],
)
def test_what_is_not_there_is_one_line(url, why):
    with pytest.raises(UserError, match=why):
        build_source("jsonl_folder", "train", dict(jsonl=f"{url}/rows.jsonl"))


def test_a_store_without_its_package_says_which(monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match="s3:// needs .*Install s3fs"):
        Tokenizer.load("s3://bucket/tokenizer.json")


def test_a_store_that_fails_is_asked_again_and_never_a_bad_record(root, stores, monkeypatch):
    source = build_source("records", "train", dict(RECORDS, root="memory://set"))
    good, real, left = source[0], type(STORE).cat_file, [2]

    def fails(self, *args, **kwargs):
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionResetError("reset")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(paths, "_WAITS", (0, 0))
    monkeypatch.setattr(type(STORE), "cat_file", fails)
    np.testing.assert_equal(source[0], good)
    left[0] = 10**9
    with pytest.raises(Unhealthy, match="memory:///set/pics-0.tar.*reset.*the same command"):
        source[0]
    with pytest.raises(UserError, match="reset"):
        build_source("records", "train", dict(RECORDS, root="memory://set"))


def test_a_member_that_is_gone_is_a_bad_record(root, stores):
    STORE.put(f"{root}/", "/gone/", recursive=True)
    source = build_source("records", "train", dict(RECORDS, root="memory://gone"))
    STORE.pipe_file("/gone/pics-0.tar", (root / "pics-0.tar").read_bytes()[:600])
    with pytest.raises(BadRecord, match="truncated"):
        source[0]
    STORE.rm("/gone/files/b.bin")
    with pytest.raises(BadRecord, match="No such file"):
        source._readers["file"].read("memory://gone/files/b.bin")


def test_prepare_from_and_to_urls(root, stores, tmp_path):
    config = load_config("configs/emoji.py:smoke")
    config.data.source, config.data.kwargs = "records", dict(RECORDS, root="memory://set")
    about = convert(config, "train", "memory://made", files=2)
    assert convert(config, "train", "memory://made", files=2) == about  # from the notes
    with pytest.raises(UserError, match="must lie on a local disk, not at memory://made"):
        ArrayRecordSource("train", "memory://made")
    STORE.get("/made/", f"{tmp_path}/", recursive=True)
    found = ArrayRecordSource("train", tmp_path)
    np.testing.assert_equal(
        [found[i] for i in range(len(found))], every("records", dict(RECORDS, root=str(root)))
    )


def test_commands_by_url(root, capsys):
    command = ["--config", "configs/emoji.py:smoke", "--out", "nope://x"]
    assert main([*command, "--processes=1", "--split=val", "--config.data.source=toy", KWARGS]) == 2
    assert "cannot use nope://" in capsys.readouterr().err
    command = [sys.executable, "train.py", "--config", "configs/emoji.py:smoke"]
    done = subprocess.run(
        [*command, "--workdir", "gs://b/run"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "--workdir must lie on a local disk" in done.stderr
    assert not pathlib.Path(ROOT, "gs:").exists()


def test_local_paths_do_not_load_fsspec():
    code = "import sys; from multimodal import paths; paths.read('README.md'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "multimodal.paths" in done.stdout and "fsspec" not in done.stdout.split()
