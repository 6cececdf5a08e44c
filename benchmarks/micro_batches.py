"""Memory and time of a train step whose batch goes in 8 parts, beside the same batch in one.

    python -m benchmarks.micro_batches [--config configs/emoji.py] [--parts 8] [KEY=VALUE ...]

Memory is what the compiler says: temporaries of the step, beside state and batch. Times are of
steps in turns (A B A B), each after the last has ended. Marks: a fifth of the memory, 1.35 of the
time.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from multimodal.cli import mark_flags_as_parsed
from multimodal.config import load_config
from multimodal.training import setup
from multimodal.training.sharding import axes_of, make_mesh
from multimodal.training.step import lower_step, make_step

MEMORY, TIME = 1 / 5, 1.35


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/emoji.py")
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    mark_flags_as_parsed()
    runs = {k: Run(args.config, [*args.overrides, f"micro_batches={k}"]) for k in (1, args.parts)}
    one, many = runs.values()
    times = {k: [] for k in runs}
    for _ in range(args.rounds):
        for k, run in runs.items():
            times[k].append(run.step())
    ratios = [b / a for a, b in zip(*times.values())]
    for k, run in runs.items():
        print(
            f"{k} parts: {run.memory / 2**20:8.1f} MiB, {statistics.median(times[k]):6.3f} s "
            f"a step, loss {run.loss:.6f}"
        )
    print(
        f"memory {many.memory / one.memory:.3f} (mark {MEMORY}), "
        f"time {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}; mark {TIME})"
    )


class Run:
    """A compiled step with a state and a batch of random rows."""

    def __init__(self, name, overrides):
        config = load_config(name, overrides)
        mesh = make_mesh(**axes_of(config), devices=jax.devices()[:1])
        with jax.set_mesh(mesh):
            model, tx, self.state = setup.build_state(config, mesh)
            step = make_step(config, model, setup.get_objectives(config, None), tx)
            self.batch = random_batch(setup.batch_shapes(config, mesh))
            compiled = lower_step(step, self.state, self.batch).compile()
        self.compiled, self.memory = compiled, compiled.memory_analysis().temp_size_in_bytes

    def step(self):
        """Seconds of one step."""
        began = time.perf_counter()
        self.state, metrics = self.compiled(self.state, self.batch)
        self.loss = float(jax.block_until_ready(metrics)["train/loss"])
        return time.perf_counter() - began


def random_batch(shapes):
    """Arrays of these shapes: numbers that any vocabulary and range has, an id for each row."""
    rng, rows = np.random.default_rng(0), {}
    for name, x in shapes.items():
        if name in ("id", "index"):
            values = np.arange(*x.shape)
        elif np.issubdtype(x.dtype, np.integer):
            values = rng.integers(1, 100 if x.ndim > 1 else 2, x.shape)
        else:
            values = rng.normal(size=x.shape)
        rows[name] = jax.device_put(values.astype(x.dtype), x.sharding)
    return rows


if __name__ == "__main__":
    main()
