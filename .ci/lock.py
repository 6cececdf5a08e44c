#!/usr/bin/env python3
"""Resolve every dependency anew and write constraints.txt and [tool.uv] constraint-dependencies.

Run it after changing a dependency or to take newer versions; it needs `uv` on the PATH. One
universal resolution covers Python 3.11 and later on all platforms, and all extras. It holds no
download address. torch and triton are resolved along, so that the NVIDIA libraries suit both jax
and torch, but not pinned: which torch (CPU or CUDA) is right depends on the machine.
"""

import json
import pathlib
import re
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^constraint-dependencies = \[\n.*?^\]\n", re.MULTILINE | re.DOTALL)
UNPINNED = ("torch", "triton")


def main():
    pyproject = ROOT / "pyproject.toml"
    text = pyproject.read_text()
    with tempfile.TemporaryDirectory() as folder:
        # uv would obey the old pins: resolve from a copy without them.
        copy = pathlib.Path(folder, "pyproject.toml")
        copy.write_text(BLOCK.sub("", text))
        command = [
            *("uv", "pip", "compile", "--quiet", "--universal", "--python-version=3.11"),
            *("--all-extras", "--no-emit-index-url", "--no-emit-find-links"),
            *("--no-header", "--no-annotate"),
            *(f"--no-emit-package={name}" for name in UNPINNED),
            str(copy),
        ]
        pins = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    pins = "".join(f"{line}\n" for line in pins.splitlines() if line and not line.startswith("#"))
    (ROOT / "constraints.txt").write_text(pins)
    block = "".join(f"  {json.dumps(line)},\n" for line in pins.splitlines())
    pyproject.write_text(BLOCK.sub(lambda _: f"constraint-dependencies = [\n{block}]\n", text))
    print(f"{len(pins.splitlines())} pins written to constraints.txt and pyproject.toml")


if __name__ == "__main__":
    main()
