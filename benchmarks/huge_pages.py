"""What huge pages for malloc are worth on a CPU: seconds of a step with and without them.

    python -m benchmarks.huge_pages [--rounds 8] [--steps 3] [--config configs/emoji.py]

Two processes hold the compiled step of a config and take turns, A B A B, so that other work on the
machine slows both alike. CPU seconds count a process's own work, system seconds the kernel's part
of it, most of which is page faults.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TUNABLE = "glibc.malloc.hugetlb=1"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--config", default="configs/emoji.py")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.config)
        return
    sides = {"plain": start(args, ""), "huge pages": start(args, TUNABLE)}
    times = {name: [] for name in sides}
    for turn in range(-1, args.rounds):  # the first turn warms up
        for name, process in sides.items():
            process.stdin.write(f"{args.steps}\n")
            process.stdin.flush()
            line = [float(word) for word in process.stdout.readline().split()]
            if turn >= 0:
                times[name].append(line)
                print(
                    f"round {turn + 1} {name:12} {line[0]:6.2f} s, CPU {line[1]:5.2f} s", flush=True
                )
    for process in sides.values():
        process.stdin.close()
        process.wait()
    for name, rows in times.items():
        wall, cpu, system, memory = (statistics.median(column) for column in zip(*rows))
        print(
            f"{name:12} a step: {wall:6.2f} s, CPU {cpu:5.2f} s, of which system {system:5.2f} s; "
            f"memory {memory:.2f} GiB"
        )
    for at, what in enumerate(("seconds", "CPU seconds")):
        ratios = [b[at] / a[at] for a, b in zip(times["plain"], times["huge pages"])]
        print(f"huge pages / plain, {what}: median {statistics.median(ratios):.2f}")


def start(args, tunable):
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.huge_pages", "--worker", "--config", args.config],
        cwd=ROOT,
        env=os.environ | {"GLIBC_TUNABLES": tunable, "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def work(spec):
    """For each number of steps read: do them, and print seconds, CPU and system seconds a step, and
    the memory high-water mark.
    """
    import jax

    from multimodal.cli import mark_flags_as_parsed, use_compilation_cache
    from multimodal.config import load_config
    from multimodal.training import inputs, setup
    from multimodal.training.clock import peak_memory
    from multimodal.training.sharding import make_mesh, to_global
    from multimodal.training.step import make_step

    mark_flags_as_parsed()
    use_compilation_cache()
    config, mesh = load_config(spec), make_mesh()
    inputs.settle(config)
    source = inputs.get_source(config, config.data.train_split)
    tokenizer = inputs.get_tokenizer(config, None, source)
    goals = setup.get_objectives(config, tokenizer)
    with jax.set_mesh(mesh):
        batch = to_global(inputs.get_pipeline(config, source, tokenizer).batch(0), mesh)
        model, tx, state = setup.build_state(config, mesh)
        step = jax.jit(make_step(config, model, goals, tx), donate_argnums=0)
        for line in sys.stdin:
            count, began, before = int(line), time.perf_counter(), os.times()
            for _ in range(count):
                state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            after, wall = os.times(), time.perf_counter() - began
            system = after.system - before.system
            cpu = after.user - before.user + system
            print(wall / count, cpu / count, system / count, peak_memory()[0] / 2**30, flush=True)


if __name__ == "__main__":
    main()
