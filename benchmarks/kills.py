"""Kill runs at random moments, and see that every one ends as if nothing had happened.

    python -m benchmarks.kills --kills 100 [--signal TERM] [--sources emoji,toy] [--processes 1,2]

For each source and number of processes a reference run is made, then one that is killed until the
kills are used up (one process of it, or the only one). Reports whether the final states are equal
to the bit, and how many steps a kill cost at most.
"""

import argparse
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

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
    """name -> arguments that make a run read from it."""
    kwargs = "--config.data.kwargs="
    return {
        "emoji": [],
        "toy": ["--config.data.source=toy", kwargs + TOY],
        "array_record": ["--config.data.source=array_record", f"{kwargs}{{'folder': '{folder}'}}"],
        "mixture": ["--config.data.source=mixture", f"{kwargs}{{'parts': {PARTS}}}"],
        "workers": ["--config.data.workers=1"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="of all runs together")
    parser.add_argument("--signal", default="KILL", choices=("KILL", "TERM"))
    parser.add_argument("--sources", default="emoji,toy,array_record,mixture,workers")
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, failed = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch, "records")
        prepare = ["-m", "multimodal.data.prepare", "--config=configs/emoji.py:smoke"]
        prepare += ["--split=train", "--out", str(folder), "--files=4"]
        subprocess.run([sys.executable, *prepare], cwd=processes.ROOT, check=True)
        known = sources(folder)
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
