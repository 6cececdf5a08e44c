"""A step on a CPU finds the memory of the step before."""

import os
import platform
import subprocess
import sys

import pytest

# Pages faulted in by each run of a program whose products are 64 MiB each.
PROGRAM = """
import resource
import jax, jax.numpy as jnp
from multimodal.training.cpu_memory import keep_memory
keep_memory()
x = jnp.ones((4096, 8))
f = jax.jit(lambda x: jnp.cos(jnp.sin(x @ x.T) @ jnp.ones((4096, 4096))).sum())
for _ in range(20):  # with JAX 0.12 it takes some until all has its place
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    f(x).block_until_ready()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_pages_of_a_step_stay():
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True
    )
    first, *later = map(int, found.stdout.split())
    pages = 64 * 2**20 // 4096
    assert first > pages and min(later) < pages / 4, found.stdout
