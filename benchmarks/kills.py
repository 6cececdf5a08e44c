"""Kill runs at random moments, and see that every one ends as if nothing had happened.

    python -m benchmarks.kills --kills 100 [--signal TERM] [--sources emoji,toy] [--processes 1,2]

For each source and number of processes a reference run is made, then one that is killed until the
kills are used up (one process of it, or the only one). Reports whether the final states are equal
to the bit, and how many steps a kill cost at most.
"""

import argparse
import io
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

from multimodal.data.sources import build_source
from tests import processes

STEPS, EVERY = 60, 5
COMMON = (
    "--config", "configs/emoji.py:smoke", f"--config.steps={STEPS}", f"--config.save_every={EVERY}",
    "--config.eval.names=()", "--config.eval.best=", "--config.data.eval_splits=()",
    "--config.eval.pictures=0",
    "--config.mesh.heartbeat=10",
)  # fmt: skip
TOY = "{'modalities': ('image', 'text'), 'examples': 64}"
EMOJI = "{'source': 'tfds', 'kwargs': {'name': 'emoji_names'}}"
PARTS = f"{{'a': {{'source': 'toy', 'kwargs': {TOY}, 'weight': 2}}, 'b': {EMOJI}}}"


def sources(folder):
    """name -> arguments that make a run read from it, with the files that it needs in a folder."""
    prepare = ["-m", "multimodal.data.prepare", "--config=configs/emoji.py:smoke"]
    prepare += ["--split=train", "--out", str(folder / "records"), "--files=4"]
    subprocess.run([sys.executable, *prepare], cwd=processes.ROOT, check=True)
    write_files(folder)

    def read(source, **kwargs):
        return [f"--config.data.source={source}", f"--config.data.kwargs={kwargs}"]

    table = str(folder / "table.parquet")
    return {
        "emoji": [],
        "toy": ["--config.data.source=toy", f"--config.data.kwargs={TOY}"],
        "array_record": read("array_record", folder=str(folder / "records")),
        "mixture": ["--config.data.source=mixture", f"--config.data.kwargs={{'parts': {PARTS}}}"],
        "workers": ["--config.data.workers=1"],
        "tar": read("tar", shards=str(folder / "*.tar")),
        "jsonl_folder": read("jsonl_folder", jsonl=str(folder / "rows.jsonl")),
        "parquet": read("parquet", files=table, columns={"image": "image", "text": "text"}),
        "records": read(
            "records", root=str(folder), rows="rows.jsonl", where={"split": "{split}"},
            modalities={"image": {"file": "{image}", "folder": "."}, "text": "{captions.0}"},
        ),
    }  # fmt: skip


def write_files(folder, examples=96):
    """The same pictures and names as two tar shards, files beside JSONL, and a Parquet table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source, rows = build_source("tfds", "train", {"name": "emoji_names"}), []
    with tarfile.open(folder / "a.tar", "w") as a, tarfile.open(folder / "b.tar", "w") as b:
        for i in range(examples):
            image, text = source[i]["image"], source[i]["text"][2]
            for suffix, value in (("png", image), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                member.size = len(value)
                (a if i % 2 else b).addfile(member, io.BytesIO(value))
            (folder / f"{i:04d}.png").write_bytes(image)
            row = {"id": str(i), "split": "train", "image": f"{i:04d}.png", "captions": [text]}
            rows.append(row | {"bytes": image})
    table = {"image": [r.pop("bytes") for r in rows], "text": [r["captions"][0] for r in rows]}
    pq.write_table(pa.table(table), folder / "table.parquet", row_group_size=40)
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


KINDS = "emoji,toy,array_record,mixture,workers,tar,jsonl_folder,parquet,records"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="of all runs together")
    parser.add_argument("--signal", default="KILL", choices=("KILL", "TERM"))
    parser.add_argument("--sources", default=KINDS)
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, failed = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as scratch:
        files = pathlib.Path(scratch, "files")
        files.mkdir()
        known = sources(files)
        cases = [(s, int(n)) for n in args.processes.split(",") for s in args.sources.split(",")]
        for i, (source, count) in enumerate(cases):
            kills = args.kills // len(cases) + (i < args.kills % len(cases))
            failed += not case(pathlib.Path(scratch, str(i)), source, known[source], count, kills,
                               args.signal, rng)  # fmt: skip
    sys.exit(1 if failed else 0)


def case(folder, source, extra, count, kills, sign, rng):
    """One source and number of processes; True where the states are equal."""
    command = (*COMMON, *extra, "--workdir")
    began = time.monotonic()
    finish(count, *command, folder / "whole")
    seconds, used, costs = time.monotonic() - began, 0, []
    workdir = folder / "killed"
    while used < kills:
        process = start(count, *command, workdir)
        try:
            process.communicate(timeout=rng.uniform(0.3, 1.0) * seconds)
            # It came through, as compiled programs are in the cache now: begin again, kill earlier.
            seconds, workdir = 0.8 * seconds, folder / f"killed_{len(list(folder.iterdir()))}"
            continue
        except subprocess.TimeoutExpired:
            for pid in rng.sample(processes.pids(workdir), 1) if processes.pids(workdir) else ():
                reached = newest_line(workdir)
                os.kill(pid, getattr(signal, f"SIG{sign}"))
                used += 1
        process.communicate()
        costs.append(max(0, reached - newest_checkpoint(workdir)))
    finish(count, *command, workdir)
    ours, theirs = (processes.fingerprints(w, STEPS) for w in (workdir, folder / "whole"))
    print(
        f"{source:13} {count} processes: {used} x SIG{sign}, at most {max(costs, default=0)} "
        f"logged steps lost (saved every {EVERY}); "
        f"{'equal to the bit' if ours == theirs else 'DIFFERENT'}",
        flush=True,
    )
    return ours == theirs


def start(count, *args):
    if count == 1:
        return processes.start("train.py", *args, devices=2)
    return processes.several(count, *args, devices=2 // count)


def finish(count, *args):
    process = start(count, *args)
    out, err = process.communicate()
    if process.returncode:
        sys.exit(f"exit code {process.returncode}: {(out + err)[-2000:]}")


def newest_line(workdir):
    """The step of the last line of the log."""
    path = workdir / "metrics.jsonl"
    found = re.findall(r'^\{"step": (\d+)', path.read_text(), re.M) if path.exists() else []
    return int(found[-1]) if found else 0


def newest_checkpoint(workdir):
    """The step of the last whole checkpoint."""
    found = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    return max(found, default=0)


if __name__ == "__main__":
    main()
