"""Seconds to trace and compile the train step of a large model beside a small one.

    python -m benchmarks.compile_time [--large configs/clip.py:h14] [--small configs/clip.py:b16]

Layers are scanned, so that one of them is compiled whatever the depth. Each round compiles both,
without any cache; nothing is run and no array is made. Mark: 1.5 times the small one.
"""

import argparse
import statistics
import time

import jax

from multimodal.cli import mark_flags_as_parsed
from multimodal.config import load_config
from multimodal.planning.compiling import lower_for

MARK = 1.5


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", default="configs/clip.py:h14")
    parser.add_argument("--small", default="configs/clip.py:b16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    mark_flags_as_parsed()
    jax.config.update("jax_enable_compilation_cache", False)
    ratios = []
    for _ in range(args.rounds):
        (small, a), (large, b) = (seconds(c, args.batch) for c in (args.small, args.large))
        ratios.append((large + b) / (small + a))
        print(
            f"{args.small}: traced in {small:.1f} s, compiled in {a:.1f} s; "
            f"{args.large}: {large:.1f} s, {b:.1f} s; ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.2f}; mark: {MARK}")


def seconds(config, batch):
    """(tracing and lowering, compiling) of a config's step on one device here."""
    config = load_config(config, [f"batch_size={batch}"])
    jax.clear_caches()
    began = time.perf_counter()
    lowered = lower_for(config, jax.devices()[:1])
    traced = time.perf_counter()
    lowered.compile()
    return traced - began, time.perf_counter() - traced


if __name__ == "__main__":
    main()
