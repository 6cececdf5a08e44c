"""Samples a second of our training step and of the same step in PyTorch, on this machine's CPU.

    python -m benchmarks.pytorch [--rounds 8] [--steps 2] [--models albef b32] [--compile]

`albef` is the default job (configs/emoji.py, batch 256), `b32` CLIP B/32 (configs/clip.py:b32,
batch 16), both float32. Two processes hold the compiled step and PyTorch's (pytorch_model.py: same
weights, batch and objectives) and take turns, A B A B, so that other work on the machine slows
both alike. `memory kept` is PyTorch with what cpu_memory.py does for us. The first losses must
agree: those without draws to 1e-4, the others roughly. Ours also has accuracies, the gradient's
norm and the check for steps that must not count. Needs `pip install torch`.
"""

import argparse
import importlib.util
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
MODELS = {
    "albef": ("configs/emoji.py", []),
    "b32": ("configs/clip.py:b32", ["batch_size=16", "model.dtype=float32"]),
}
# Sleep rather than spin in PyTorch's thread pool: spinning would count as its CPU time, and take
# ours.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "JAX_PLATFORMS": "cpu"}
# What multimodal/training/cpu_memory.py does for us, for PyTorch.
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
DRAWN = ("itm", "mlm")  # losses that depend on random draws
TOLERANCE = {True: 0.05, False: 1e-4}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--compile", action="store_true", help="torch.compile as a third side")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        sys.exit("error: benchmarks.pytorch needs PyTorch: pip install torch")
    if args.worker:
        work(*args.worker)
        return
    for name in args.models:
        compare(name, args)


def compare(name, args):
    """Print the ratios of one model."""
    sides = ["ours", "torch", "torch, memory kept"] + ["torch.compile, memory kept"] * args.compile
    with tempfile.TemporaryDirectory() as folder:
        turns = {side: Side(side, name, folder) for side in sides}  # ours writes what torch reads
        for side in sides[1:]:
            agree(turns["ours"].losses, turns[side].losses)
        times = {side: [] for side in sides}
        for turn in range(-1, args.rounds):  # the first turn warms up
            for side, process in turns.items():
                row = process.turn(args.steps)
                if turn >= 0:
                    times[side].append(row)
        for process in turns.values():
            process.close()
    batch = turns["ours"].batch
    for side, rows in times.items():
        wall, cpu, system, memory = zip(*rows)
        print(
            f"{name} {side:26}: {batch / min(wall):7.1f} samples/s at best, median "
            f"{statistics.median(wall):.3f} s a step, CPU {statistics.median(cpu):.3f} s, of which "
            f"system {statistics.median(system):.3f} s; memory {max(memory):.2f} GiB"
        )
    for side in sides[1:]:
        for at, what in enumerate(("seconds", "CPU seconds")):
            theirs, ours = ([row[at] for row in times[k]] for k in (side, "ours"))
            ratios = [a / b for a, b in zip(theirs, ours)]
            print(
                f"{name} ours / {side}, speed by {what}: median {statistics.median(ratios):.2f}, "
                f"best to best {min(theirs) / min(ours):.2f}, turns {min(ratios):.2f} to "
                f"{max(ratios):.2f}",
                flush=True,
            )


def agree(ours, theirs):
    """Exit unless the first losses are the same, so far as they can be."""
    for key, value in ours.items():
        print(f"first {key} loss: ours {value:.6f}, PyTorch {theirs[key]:.6f}")
        if abs(theirs[key] - value) > TOLERANCE[key in DRAWN] * abs(value):
            sys.exit("error: the losses differ: not the same model")


class Side:
    """A process that holds a step and runs it on request."""

    def __init__(self, side, name, folder):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.pytorch", "--worker", side, name, folder],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | (KEEP if "kept" in side else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ready = self._read()
        self.losses, self.batch = ready["losses"], ready["batch"]

    def turn(self, steps):
        """Seconds, CPU and system seconds a step, and the memory high-water mark in GiB."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit("error: a side ended early, see above")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def work(side, name, folder):
    """One side: print its first losses, then for each number read run so many steps."""
    path = pathlib.Path(folder, "inputs.npz")
    step, batch = ours(name, path) if side == "ours" else theirs(path, "compile" in side)
    print(json.dumps({"losses": step(), "batch": batch}), flush=True)
    for line in sys.stdin:
        count, began, before = int(line), time.perf_counter(), os.times()
        for _ in range(count):
            step()
        after, wall = os.times(), time.perf_counter() - began
        system = after.system - before.system
        row = [wall, after.user - before.user + system, system]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps([x / count for x in row] + [memory]), flush=True)


def ours(name, path):
    """(step() -> losses, batch size), compiled as train.py does; weights and batch go to path."""
    import jax

    from multimodal.cli import mark_flags_as_parsed, use_compilation_cache
    from multimodal.config import load_config
    from multimodal.training import setup
    from multimodal.training.cpu_memory import keep_memory
    from multimodal.training.sharding import make_mesh
    from multimodal.training.step import lower_step, make_step
    from multimodal.training.xla_flags import compiler_options

    mark_flags_as_parsed()
    use_compilation_cache()
    keep_memory()
    config, mesh = load_config(*MODELS[name]), make_mesh()
    setup.settle(config)
    batch, tokenizer = first_batch(config, mesh)
    goals = setup.get_objectives(config, tokenizer)
    with jax.set_mesh(mesh):
        model, tx, state = setup.build_state(config, mesh)
        step = make_step(config, model, goals, tx)
        compiled = lower_step(step, state, batch).compile(compiler_options=compiler_options("cpu"))
    save(path, config, state.params, batch)

    def run():
        nonlocal state
        state, metrics = jax.block_until_ready(compiled(state, batch))
        return {k: float(metrics[f"{k}/loss"]) for k in config.objectives}

    return run, config.batch_size


def first_batch(config, mesh):
    """(the batch of step 0, tokenizer) of the emoji; random rows where the data is not at hand."""
    import numpy as np

    from multimodal.training import setup
    from multimodal.training.sharding import to_global

    if config.data.source == "tfds":
        source = setup.get_source(config, config.data.train_split)
        tokenizer = setup.get_tokenizer(config, None, source)
        return to_global(setup.get_pipeline(config, source, tokenizer).batch(0), mesh), tokenizer
    rng, rows = np.random.default_rng(0), setup.batch_shapes(config, mesh)
    size, tower = config.batch_size, config.modalities.text
    text = rng.integers(tower.eot_id + 1, tower.vocab_size, rows["text"].shape)
    text[np.arange(size), rng.integers(5, tower.max_length, size)] = tower.eot_id
    image = rng.integers(0, 256, rows["image"].shape)
    values = {"image": image, "text": text, "id": np.arange(size), "index": np.arange(size)}
    return to_global({k: v.astype(rows[k].dtype) for k, v in values.items()}, mesh), None


def save(path, config, params, batch):
    """Write what the PyTorch side starts from; scanned blocks one by one."""
    import numpy as np
    from flax.traverse_util import flatten_dict

    arrays = {}
    for key, value in flatten_dict(params, sep="/").items():
        value = np.asarray(value)
        if "/blocks/" in key:
            for i, layer in enumerate(value):
                arrays["params/" + key.replace("/blocks/", f"/block_{i}/")] = layer
        else:
            arrays[f"params/{key}"] = value
    arrays |= {f"batch/{k}": np.asarray(batch[k]) for k in ("image", "text", "id")}
    np.savez(path, config=json.dumps(config.to_dict()), **arrays)


def theirs(path, compiled):
    """(step() -> losses, batch size) in PyTorch."""
    import numpy as np

    from benchmarks.pytorch_model import Trainer

    with np.load(path) as z:
        arrays = {k: z[k] for k in z.files}
    config = json.loads(str(arrays.pop("config")))

    def part(prefix):
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    trainer = Trainer(config, part("params/"), part("batch/"), compiled)
    return trainer.step, config["batch_size"]


if __name__ == "__main__":
    main()
