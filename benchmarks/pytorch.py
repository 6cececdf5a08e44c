"""Samples a second of our training step and of the same step in PyTorch, on one machine.

    python -m benchmarks.pytorch [--models albef b32] [--compile]      this machine's CPU, float32
    python -m benchmarks.pytorch --device gpu [--models b16 l14]       one GPU, bfloat16
    python -m benchmarks.pytorch --device gpu --alone                  ours only, without PyTorch
    ... --device gpu --sides "ours, unrolled" torch.compile            these only, in turns

`albef` is the default job (configs/emoji.py), the others CLIP at its sizes (configs/clip.py:SIZE).
Processes hold the compiled step and PyTorch's (pytorch_model.py: same weights, batch and
objectives) and take turns, A B A B, so that other work on the machine slows both alike. The first
losses must agree. MFU is of the highest rate at which matrix products ran in one of our processes.

On a CPU all sides take turns; `memory kept` is PyTorch with what cpu_memory.py does for us. On a
GPU every setting of both runs by itself first, then the fastest of ours and of PyTorch's take
turns. Ours also has accuracies, the gradient's norm and the check for steps that must not count.
Needs JAX, Flax, Optax and ml_collections, PyTorch but for --alone, and for `albef` the data stack.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Of each device: a model's config and what is changed in it.
MODELS = {
    "cpu": {
        "albef": ("configs/emoji.py", []),
        "b32": ("configs/clip.py:b32", ["batch_size=16", "model.dtype=float32"]),
    },
    "gpu": {
        "b32": ("configs/clip.py:b32", ["batch_size=512"]),
        "b16": ("configs/clip.py:b16", ["batch_size=256"]),
        "l14": ("configs/clip.py:l14", ["batch_size=64"]),
        "albef": ("configs/emoji.py", ["model.dtype=bfloat16"]),
    },
}
DEFAULT = {"cpu": ("albef", "b32"), "gpu": ("b16", "l14")}
# Sizes for a look at whether all of it runs.
TINY = ["batch_size=8"] + [
    f"{stack}.{k}={v}"
    for stack in ("modalities.image", "modalities.text", "model.fusion")
    for k, v in {"width": 64, "depth": 2, "heads": 2, "mlp_dim": 128}.items()
]
# Sleep rather than spin in PyTorch's thread pool: spinning would count as its CPU time, and take
# ours. Two processes share a GPU: JAX must not take its memory beforehand.
ENVIRONMENT = {
    "cpu": {"OMP_WAIT_POLICY": "PASSIVE", "JAX_PLATFORMS": "cpu"},
    "gpu": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"},
}
# What multimodal/training/cpu_memory.py does for us, for PyTorch.
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
OURS = ("ours", "ours, unrolled", "ours, unrolled, xla")
THEIRS = ("torch", "torch.compile", "torch.compile, cudnn", "torch.compile, autotuned")
DRAWN = ("itm", "mlm")  # losses that depend on random draws


def main():
    args = parse_arguments()
    needed = ("jax", "flax", "optax", "ml_collections") + ("torch",) * (not args.alone)
    for package in needed:
        if importlib.util.find_spec(package) is None:
            sys.exit(f"error: benchmarks.pytorch needs {package}: pip install {package}")
    if args.worker:
        from benchmarks.pytorch_sides import work

        work(*args.worker)
        return
    failed = []
    for name in args.models or DEFAULT[args.device]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                (on_cpu if args.device == "cpu" else on_gpu)(Case(name, folder, args))
            except SideFailed as e:
                failed.append(name)
                print(f"error: {name}: {e or 'a side ended early, see above'}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=MODELS, default="cpu")
    parser.add_argument("--models", nargs="+", metavar="MODEL")
    parser.add_argument("--batch", type=int, help="examples a step, instead of the model's")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, help="steps a turn (a CPU: 2, a GPU: 20)")
    parser.add_argument("--compile", action="store_true", help="a CPU: torch.compile as well")
    parser.add_argument(
        "--sides", nargs="+", metavar="SIDE", help="a GPU: these in turns, one of ours first"
    )
    parser.add_argument("--alone", action="store_true", help="a GPU: ours only")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on this machine's CPU")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return args
    if (args.alone or args.sides) and args.device == "cpu":
        parser.error("--alone and --sides are for --device gpu")
    for side in set(args.sides or ()) - {*OURS, *THEIRS}:
        parser.error(f"--sides {side!r}: there are {', '.join(map(repr, (*OURS, *THEIRS)))}")
    if args.sides and args.sides[0] not in OURS:
        parser.error(
            f"--sides {args.sides[0]!r} ...: one of ours comes first, PyTorch starts from it"
        )
    if args.alone and set(args.sides or ()) & set(THEIRS):
        parser.error("--alone is without PyTorch, --sides names it")
    for name in set(args.models or ()) - set(MODELS[args.device]):
        known = ", ".join(MODELS[args.device])
        parser.error(f"--models {name}: on a {args.device} there are {known}")
    return args


class SideFailed(Exception):
    """A side's process ended early, or is not the same step; the message says what."""


class Case:
    """One model at one size, and how to time it.

    first: what our first side told at its start; rate: FLOP/s of matrix products, the best found.
    """

    first, rate = None, 0.0

    def __init__(self, name, folder, args):
        self.name, self.folder, self.args = name, folder, args
        self.config, overrides = MODELS[args.device][name]
        size = [f"batch_size={args.batch}"] if args.batch else []
        self.overrides = [*overrides, *(TINY if args.tiny else []), *size]
        self.steps = args.steps or {"cpu": 2, "gpu": 20}[args.device]
        self.environment = ENVIRONMENT["cpu" if args.tiny else args.device]

    def time(self, sides, rounds):
        """{side: [row of a turn]} of sides that take turns. Raises SideFailed."""
        turns, times = {}, {side: [] for side in sides}
        try:
            for side in sides:  # one after the other: the next would disturb what is tuned
                turns[side] = Side(side, self)
                self._check(side, turns[side].read())  # ours comes first: torch reads its file
            if sides[0] in OURS:
                self.rate = max(self.rate, turns[sides[0]].ask("rate")["rate"])
            for turn in range(-1, rounds):  # the first turn warms up
                for side, process in turns.items():
                    row = process.ask(self.steps)
                    if turn >= 0:
                        times[side].append(row)
        finally:
            for process in turns.values():
                process.close()
        for side, rows in times.items():
            print(self.line(side, rows), flush=True)
        return times

    def _check(self, side, ready):
        """Raise SideFailed unless a side's first losses are ours."""
        first = self.first or ready
        for key, value in first["losses"].items():
            other = ready["losses"][key]
            print(f"{self.name} {side:25}: first {key} loss {other:.6f}")
            allowed = 0.05 if key in DRAWN else 1e-2 if first["dtype"] == "bfloat16" else 1e-4
            if not abs(other - value) <= allowed * abs(value):  # not of NaN, either
                raise SideFailed(f"{side}: the losses are not finite, or differ from the first's")
        self.first = first

    def line(self, side, rows):
        """What one side reached."""
        wall, cpu, system, memory = zip(*rows)
        return (
            f"{self.name} {side:25}: {self.first['batch'] / min(wall):8.1f} samples/s at best, "
            f"median {1e3 * statistics.median(wall):.1f} ms a step, MFU "
            f"{self.first['flops'] / min(wall) / self.rate:.1%} of the {self.rate / 1e12:.3g} "
            "TFLOP/s of products here; "
            f"CPU {statistics.median(cpu):.3f} s a step, of which system "
            f"{statistics.median(system):.3f}; memory {max(memory):.2f} GiB"
        )

    def ratios(self, times, ours, theirs):
        """Print how many times as fast one side is as another."""
        for at, what in enumerate(("seconds", "CPU seconds")[: 1 + (self.args.device == "cpu")]):
            a, b = ([row[at] for row in times[side]] for side in (theirs, ours))
            each = [x / y for x, y in zip(a, b)]
            print(
                f"{self.name} {ours} / {theirs}, speed by {what}: median "
                f"{statistics.median(each):.2f}, best to best {min(a) / min(b):.2f}, turns "
                f"{min(each):.2f} to {max(each):.2f}",
                flush=True,
            )


def on_cpu(case):
    """All sides in turns."""
    compiled = ["torch.compile, memory kept"] * case.args.compile
    sides = ["ours", "torch", "torch, memory kept", *compiled]
    times = case.time(sides, case.args.rounds)
    for side in sides[1:]:
        case.ratios(times, "ours", side)


def on_gpu(case):
    """Every setting by itself, then the fastest of both in turns; --sides: these in turns."""
    if case.args.sides:
        ours, *others = case.args.sides
        times = case.time(case.args.sides, case.args.rounds)
        for other in others:
            case.ratios(times, ours, other)
        return
    ours, alone = fastest(case, OURS)
    if case.args.alone:
        return
    theirs, other = fastest(case, THEIRS)
    try:
        times = case.time([ours, theirs], case.args.rounds)
    except SideFailed as e:
        print(f"{case.name}: not in turns ({e or 'see above'}); each by itself:", flush=True)
        times = {ours: alone, theirs: other}
    case.ratios(times, ours, theirs)


def fastest(case, sides):
    """(the side of the fastest turn, its rows), each by itself; what does not run is left out."""
    found, why = {}, None
    for side in sides:
        try:
            found |= case.time([side], 2)
        except SideFailed as e:
            why = e
            print(f"{case.name} {side}: left out: {e or 'does not run, see above'}", flush=True)
    if not found:
        raise SideFailed(str(why or ""))
    best = min(found, key=lambda side: min(found[side]))
    return best, found[best]


class Side:
    """A process that holds a step and runs it on request."""

    def __init__(self, side, case):
        device = "cpu" if case.args.tiny else case.args.device
        what = {"config": case.config, "overrides": case.overrides, "device": device}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.pytorch", "--worker", side, json.dumps(what)]
            + [case.folder]
            + ["--alone"] * case.args.alone,
            cwd=ROOT,
            env=os.environ | case.environment | (KEEP if "kept" in side else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what):
        """To a number of steps: seconds, CPU and system seconds a step, and the memory high-water
        mark in GiB; to `rate`: FLOP/s of matrix products.
        """
        try:
            self.process.stdin.write(f"{what}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise SideFailed from None
        return self.read()

    def read(self):
        """The next reply; the first tells of the start."""
        line = self.process.stdout.readline()
        if not line:
            raise SideFailed
        reply = json.loads(line)
        if "failed" in reply:
            raise SideFailed(reply["failed"])
        return reply

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:  # it compiles, say
            self.process.kill()
            self.process.wait()


if __name__ == "__main__":
    main()
