"""Compile a config's train step for TPUs that are not there: the child process of a plan.

`python -m multimodal.planning.compiling FOLDER PARENT` reads FOLDER/config.json and target.txt and
writes FOLDER/compiled.json and, where the compiler gives it, FOLDER/step.hlo. A process of its own,
because libtpu ends the process where it cannot go on; it ends with the process PARENT.
"""

import ctypes
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

from multimodal.config import read_config, save_config
from multimodal.errors import UserError
from multimodal.planning.targets import parse_target

# Nothing may ask the network, look for a TPU or wait for another compilation to end.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
# How versions of libtpu say that memory does not do. "Temporaries" are all of it: a program of one
# argument of 4 GiB, without temporaries, is said to need 4.00G for them.
OUT_OF_MEMORY = (
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
    re.compile(r"temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"),
)
COMMAND = ("-m", __spec__.name)  # this file, as a program of its own
# What the compiler writes down, where it is asked to, when it has laid out memory: its sums, and
# the program if all of it fits. What takes the minutes, generating code, comes after that.
DUMP = "--xla_dump_to={} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_step"
LAID_OUT = "*jit_step*after_optimizations_after_buffer_assignment.txt"
SUMS = "*jit_step*memory-usage-report.txt"
HBM_SUM = re.compile(r"\(color=0\)\s+Total bytes: (\d+)")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def require_libtpu():
    """Raise UserError where the package that holds the TPU compiler is missing."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "--plan: compiling for a TPU needs the package libtpu, which is not installed here: "
            "pip install -e '.[tpu]'"
        )


def compile_for(config, target, folder=None, memory_alone=False) -> dict:
    """What compiling the config's step for a TPU target gave, from a child process.

    Args:
      folder: where step.hlo is kept; None keeps it nowhere.
      memory_alone: end the compiler before it generates code, most of its work.
    Returns: {'status': 'ok', 'memory': bytes a device by XLA's names, 'seconds', 'hlo': text or
      '', 'why': why there is no text}, of memory alone {'status': 'laid out', 'total': bytes
      without the program's code, 'seconds'}; or {'status': 'oom'} and, where the compiler tells,
      'limit' and 'total', bytes.
    Raises: UserError with one line for anything else, a crash included.
    """
    with tempfile.TemporaryDirectory() as scratch:
        dumps = pathlib.Path(scratch, "dumps")
        folder = pathlib.Path(folder or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compiled.json").unlink(missing_ok=True)
        (folder / "target.txt").write_text(target.name + "\n", encoding="utf-8")
        save_config(config, folder)
        command = [sys.executable, *COMMAND, str(folder), str(os.getpid())]
        env = os.environ | ENVIRONMENT
        if memory_alone:
            env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {DUMP.format(dumps)}".strip()
        began = time.perf_counter()
        code, said, total = _run(command, env, dumps)
        if total is not None:
            seconds = time.perf_counter() - began
            return {"status": "laid out", "total": total, "seconds": seconds}
        if not (folder / "compiled.json").exists():
            raise UserError(
                f"--plan: the TPU compiler gave up on {target.name} "
                f"({_ending(code)}): {_last_words(said)}"
            )
        result = json.loads((folder / "compiled.json").read_text(encoding="utf-8"))
        if result["status"] == "error":
            raise UserError(f"--plan: {target.name}: {result['why']}")
        hlo = folder / "step.hlo"
        there = result["status"] == "ok" and not result["why"]
        return result | {"hlo": hlo.read_text(encoding="utf-8") if there else ""}


def _run(command, env, dumps):
    """(exit code, stderr, None) of the child, or (.., bytes) as soon as memory is laid out."""
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=said) as child,
    ):
        total = None
        try:
            while child.poll() is None and total is None:
                time.sleep(0.2)
                total = laid_out(dumps)
        finally:
            child.kill()
        code = child.wait()
        said.seek(0)
        return code, said.read(), total


def laid_out(dumps):
    """Bytes of a device's memory that the compiler found to do; None: it has not, or did not."""
    sums = next(dumps.glob(SUMS), None)
    if sums is None or not any(dumps.glob(LAID_OUT)):
        return None
    found = HBM_SUM.search(sums.read_text(encoding="utf-8"))
    return float(found.group(1)) if found else None


def _ending(code):
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _last_words(stderr):
    """The line of a crashed child that says most."""
    lines = [" ".join(line.split()) for line in stderr.splitlines() if line.strip()]
    telling = [
        x for x in lines if re.search(r"check fail|error|invalid|unsupported|fatal", x, re.I)
    ]
    return ([*lines, "it said nothing"][:1] if not telling else telling[-1:])[0][:300]


def main(folder, parent):
    """The child: writes compiled.json whatever Python can catch."""
    folder = pathlib.Path(folder)
    _end_with(int(parent))
    try:
        result = _compile(read_config(folder), folder)
    except (UserError, ModuleNotFoundError) as e:
        result = {"status": "error", "why": str(e)}
    except Exception as e:  # what libtpu raises is not documented
        result = failure(e)
    (folder / "compiled.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _end_with(parent):
    """Have the kernel kill this process when its parent ends: the compiler runs for minutes."""
    if sys.platform.startswith("linux"):  # as is every machine that libtpu runs on
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def failure(e) -> dict:
    """What an exception of the compiler comes to, as in compile_for."""
    text = " ".join(str(e).split())
    for pattern in OUT_OF_MEMORY:
        if found := pattern.search(text):
            used, used_unit, limit, limit_unit = found.groups()
            sizes = {"total": float(used) * UNITS[used_unit]}
            return {"status": "oom", "limit": float(limit) * UNITS[limit_unit]} | sizes
    if "out of memory" in text.lower():
        return {"status": "oom"}
    return {"status": "error", "why": f"{type(e).__name__}: {text[:400]}"}


def _compile(config, folder):
    began = time.perf_counter()
    target = parse_target((folder / "target.txt").read_text(encoding="utf-8"))
    from multimodal.training.xla_flags import compiler_options

    options = compiler_options("tpu", target.chip.name)
    compiled = lower_for(config, topology_devices(target)).compile(compiler_options=options)
    stats = compiled.memory_analysis()
    names = ("argument", "output", "alias", "temp", "generated_code")
    memory = {n: getattr(stats, f"{n}_size_in_bytes") for n in names}
    memory["peak"] = getattr(stats, "peak_memory_in_bytes", 0)
    result = {"status": "ok", "memory": memory, "options": options}
    try:
        (folder / "step.hlo").write_text(compiled.as_text(), encoding="utf-8")
        why = ""
    except Exception as e:  # not every version of libtpu gives the text of every program
        why = f"the compiler gives no text of this program ({type(e).__name__}: {str(e)[:120]})"
    return result | {"why": why, "seconds": time.perf_counter() - began}


def topology_devices(target):
    """libtpu's devices of a TPU target. Raises UserError where it refuses it."""
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if target.chip.megacore else {}
    if target.slices > 1:
        options["num_slices"] = target.slices
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=target.topology, **options
        )
    except Exception as e:  # as above
        raise UserError(f"libtpu has no such topology: {' '.join(str(e).split())[:300]}") from None
    return description.devices


def lower_for(config, devices):
    """The real train step, lowered for devices of any kind, from shapes alone."""
    import jax

    from multimodal.training import setup
    from multimodal.training.sharding import axes_of, check_batch, make_mesh
    from multimodal.training.step import lower_step, make_step

    mesh = make_mesh(**axes_of(config), devices=devices)
    check_batch(config.batch_size, mesh, config.micro_batches)
    model, tx, state = setup.state_shapes(config, mesh)
    goals = setup.get_objectives(config, None)
    with jax.set_mesh(mesh):
        step = make_step(config, model, goals, tx)
        return lower_step(step, state, setup.batch_shapes(config, mesh))


if __name__ == "__main__":
    from multimodal.cli import mark_flags_as_parsed

    mark_flags_as_parsed()
    main(*sys.argv[1:])
