"""Seconds from the command to the end of the first step, with compiled programs in the cache.

    python -m benchmarks.first_step [--rounds 3] [--config configs/emoji.py]

The program is run until its first step is on record, in a folder of its own each time: once to
fill the cache, then `rounds` times; between them a process that only imports jax, whose time is
taken off, since no program here can do anything about it. CPU seconds tell what the machine was
made to do, seconds how long one waits. Mark: 15 seconds beside `import jax` on two cores.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MARK = 15.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--config", default="configs/emoji.py")
    args = parser.parse_args()
    print(f"{'':12} {'seconds':>8} {'CPU':>6} {'compiling':>10} {'import jax':>11}  beside it")
    beside = []
    for turn in range(args.rounds + 1):
        jax_seconds, _ = timed([sys.executable, "-c", "import jax"])
        seconds, cpu, row = first_step(args.config)
        name = f"round {turn}" if turn else "filling"
        print(
            f"{name:12} {seconds:8.1f} {cpu:6.1f} {row['run/compile_s']:10.1f} "
            f"{jax_seconds:11.1f} {seconds - jax_seconds:10.1f}",
            flush=True,
        )
        beside += [seconds - jax_seconds] if turn else []
    if beside:
        median = statistics.median(beside)
        print(f"median {median:.1f} s beside import jax; mark: {MARK:.0f} s")


def first_step(config):
    """(seconds, CPU seconds, first line of the log) of a fresh run of one step's length."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "metrics.jsonl")
        command = [sys.executable, "train.py", "--config", config, "--workdir", folder]
        began, before = time.perf_counter(), used()
        process = subprocess.Popen(
            [*command, "--config.log_every=1"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while process.poll() is None and not (path.exists() and path.stat().st_size):
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        process.kill()
        _, errors = process.communicate()
        if not path.exists():
            sys.exit(errors.decode(errors="replace"))
        return seconds, used() - before, json.loads(path.read_text().splitlines()[0])


def timed(command):
    """(seconds, CPU seconds) of a command."""
    began, before = time.perf_counter(), used()
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ)
    return time.perf_counter() - began, used() - before


def used():
    """CPU seconds of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
