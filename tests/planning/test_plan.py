"""Plans: by formula anywhere, by the TPU compiler where libtpu is; bad input is one line."""

import importlib.util
import json
import re
import subprocess
import sys

import jax
import pytest

from multimodal.config import load_config
from multimodal.errors import UserError
from multimodal.planning import advice, compiling, memory
from multimodal.planning.plan import make_plan
from multimodal.planning.report import render
from multimodal.planning.targets import parse_target
from multimodal.training.xla_flags import FLAGS, compiler_options
from tests import processes

SMOKE = ("--config", "configs/clip.py:smoke")
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is not installed: extra 'tpu'")


def config(*overrides):
    return load_config("configs/clip.py:smoke", overrides)


def test_state_is_counted_to_the_byte():
    c = config("ema.decay=0.9", "queue.size=64", "data.source=nowhere")
    one = memory.state_bytes(c, 1)
    assert one["ema"] == one["parameters"]
    assert one["optimizer"] == pytest.approx(2 * one["parameters"], rel=1e-3)
    assert one["queue"] == 2 * 64 * 16 * 4 + 64 * 4 + 4
    assert memory.state_bytes(c, 8)["batch"] == one["batch"] / 8
    with c.unlocked():
        c.mesh.fsdp = 4
    assert memory.state_bytes(c, 8)["parameters"] < 0.6 * one["parameters"]


@pytest.mark.slow
def test_remat_and_micro_batches_keep_less():
    base = ("modalities.image.depth=3", "batch_size=32", "modalities.image.width=64")
    plain = memory.activation_bytes(config(*base), 1)
    full, some = (
        memory.activation_bytes(config(*base, f"modalities.image.remat={r}"), 1)
        for r in ("full", "attention")
    )
    assert full < some < plain
    assert memory.activation_bytes(config(*base, "micro_batches=4"), 1) < plain / 3
    assert memory.activation_bytes(config(*base), 8) < plain / 6


def test_rows_that_examples_share_are_the_batchs():
    # 88: no axis but the batch's is a multiple of it.
    rows = ("modalities.text.max_length=64", "model.dtype=bfloat16", "batch_size=88")
    xla, shared = (
        memory.activation_bytes(config(*rows, f"model.attention_kernel={kernel}"), 8)
        for kernel in ("xla", "bfloat16")
    )
    assert shared < 1.5 * xla


def test_a_compiler_that_fuses_keeps_less():
    def ratio(*overrides):
        keep = [f"modalities.{m}.remat=none" for m in ("image", "text")]
        c = config("batch_size=32", *keep, *overrides)
        return memory.activation_bytes(c, 1, fuses=True) / memory.activation_bytes(c, 1)

    deep = ("modalities.image.depth=6", "modalities.image.width=64", "modalities.image.scan=True")
    assert ratio("modalities.image.scan=False", "modalities.text.scan=False") < 0.8
    assert ratio(*deep, "modalities.image.unroll=6") < 0.8
    assert ratio(*deep) > 0.9  # a loop hands on all that is traced


def test_formula_plan_of_gpus():
    plan = make_plan(config("data.source=nowhere"), "gpu:h100:1x4", examples=1000)
    assert plan["fits"] and plan["time"]["step"] is None and plan["mfu"] is None
    assert 0 < plan["mfu_bound"] <= 1
    assert plan["hours_per_epoch_bound"] > 0
    text = render(plan)
    assert "by formula" in text and "not known" in text and "at most" in text


def test_a_plan_has_digits_that_count_and_one_unit_a_column():
    plan = make_plan(config("data.source=nowhere"), "gpu:h100:1x4", examples=1000)
    text = render(plan)
    assert ": 4 devices, " in text and " 0.0 ms" not in text and "GiB" not in text
    for hours, told in ((0.01, "seconds an epoch .* 36.0 "), (12.345, "hours an epoch .* 12.3 ")):
        plan["devices"], plan["hours_per_epoch_bound"] = 1, hours
        assert ": 1 device, " in render(plan) and re.search(told, render(plan))


@pytest.mark.slow
def test_advice_fits_by_the_formula_that_it_is_given_by():
    c = config("batch_size=4096", "modalities.image.depth=3")
    target = parse_target("gpu:a100:1x4")
    limit = 0.3 * memory.estimate(c, 4).total
    change, total = next(advice.promising(c, target, limit, None))
    assert total <= limit
    assert memory.estimate(advice.changed(c, change), 4).total == pytest.approx(total)
    assert advice.as_flags(change).startswith("--config.")


def test_flags_are_for_platforms_and_chips():
    assert compiler_options("cpu") == {}
    assert "xla_tpu_scoped_vmem_limit_kib" not in compiler_options("tpu", "no such chip")
    assert "xla_jf_spmd_threshold_for_windowed_einsum_mib" in compiler_options("tpu", "v5p")
    assert "xla_tpu_scoped_vmem_limit_kib" in compiler_options("tpu", "v5e")
    assert all(f.why and f.source for flags in FLAGS.values() for f in flags)


def test_flags_of_gpus_are_known_to_the_compiler():
    """All platforms share XLA's options, so that a name or value it does not know fails here."""
    options = compiler_options("gpu", "h100")
    assert options
    jax.jit(lambda x: x + 1).lower(1.0).compile(compiler_options=options)


def test_flags_of_the_environment_stay(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_latency_hiding_scheduler=false --xla_other=1")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=65536")
    assert "xla_gpu_enable_latency_hiding_scheduler" not in compiler_options("gpu", "h100")
    assert set(compiler_options("tpu", "v5e")) == {"xla_jf_spmd_threshold_for_windowed_einsum_mib"}


@pytest.mark.parametrize(
    "args, told",
    [
        (["--plan", "tpu:v5x:4x4"], "did you mean v5"),
        (["--plan", "gpu:h100:8x8"], "does not divide over 64 devices"),
        (["--plan", "cpu", "--plan_examples", "many"], "no number"),
        (["--plan", "cpu", "--plan_json", "train.py/plan.json"], "cannot write"),
        ([], "--workdir is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, told, commands):
    code, err, _ = commands.train(*SMOKE, *args)
    assert code == 2, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and told in last and "Traceback" not in err


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed")
def test_without_libtpu_the_plan_says_how_to_get_it():
    code, _, err = processes.run("train.py", *SMOKE, "--plan", "tpu:v5e:2x2")
    assert code == 2 and "pip install -e '.[tpu]'" in err.strip().splitlines()[-1]


def test_a_compiler_that_dies_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(compiling, "COMMAND", ("-c", "import os; os.abort()"))
    with pytest.raises(UserError, match="gave up on tpu:v5e:2x2 .killed by signal 6"):
        compiling.compile_for(config(), parse_target("tpu:v5e:2x2"))


# A plan whose compiler writes its pid and works for ever.
PLAN = """
from multimodal.config import load_config
from multimodal.planning import compiling
from multimodal.planning.targets import parse_target
begin = "import os, sys, time; from multimodal.planning.compiling import _end_with as e; "
compiling.COMMAND = ("-c", begin + "e(int(sys.argv[2])); print(os.getpid(), file=open(%r, 'w'))"
                     "; time.sleep(1000)")
compiling.compile_for(load_config("configs/clip.py:smoke", ()), parse_target("tpu:v5e:2x2"))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux's kernel")
def test_a_killed_plan_leaves_no_compiler(tmp_path):
    path = tmp_path / "pid"
    plan = subprocess.Popen([sys.executable, "-c", PLAN % str(path)], cwd=processes.ROOT)
    try:
        processes.wait_for(lambda: path.exists() and path.read_text().endswith("\n"))
    finally:
        plan.kill()
        plan.wait()
    processes.wait_for(lambda: not processes.alive(path.read_text().strip()), 60)


# A compiler that lays out memory, says so and works for ever.
LAYS_OUT = """
import os, pathlib, re, sys, time
folder = pathlib.Path(re.search("xla_dump_to=([^ ]+)", os.environ["XLA_FLAGS"]).group(1))
folder.mkdir()
name = "module_7.jit_step.cl_9.after_optimizations"
text = "Memory Space: default (color=0)\\nTotal bytes: 4096 (4KiB)\\n"
(folder / f"{name}-memory-usage-report.txt").write_text(text)
if __FITS__:
    (folder / f"{name}_after_buffer_assignment.txt").touch()
    time.sleep(1000)
"""


def test_memory_alone_ends_the_compiler_before_it_generates_code(monkeypatch):
    monkeypatch.setattr(compiling, "COMMAND", ("-c", LAYS_OUT.replace("__FITS__", "True")))
    found = compiling.compile_for(config(), parse_target("tpu:v5e:2x2"), memory_alone=True)
    assert found.pop("seconds") < 60 and found == {"status": "laid out", "total": 4096}
    # Sums without a program: it does not fit, and the compiler has the last word.
    monkeypatch.setattr(compiling, "COMMAND", ("-c", LAYS_OUT.replace("__FITS__", "False")))
    with pytest.raises(UserError, match="gave up on tpu:v5e:2x2"):
        compiling.compile_for(config(), parse_target("tpu:v5e:2x2"), memory_alone=True)


def test_out_of_memory_is_told_from_other_errors():
    """As two versions of libtpu say it."""
    g = 2**30
    text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 22.91G of 15.75G hbm."
    found = compiling.failure(RuntimeError(text))
    assert found == {"status": "oom", "total": 22.91 * g, "limit": 15.75 * g}
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (20.84G) exceeds available HBM (15.75G)."
    )
    found = compiling.failure(RuntimeError(text))
    assert found == {"status": "oom", "total": 20.84 * g, "limit": 15.75 * g}
    assert compiling.failure(RuntimeError("Out of memory.")) == {"status": "oom"}
    assert compiling.failure(RuntimeError("no\nsuch"))["why"] == "RuntimeError: no such"


@needs_libtpu
def test_plan_of_a_tpu_slice(tmp_path):
    out = tmp_path / "plan.json"
    target = ("--plan", "tpu:v5e:2x2@2", "--plan_json", out, "--plan_examples", "100000")
    code, text, err = processes.run("train.py", *SMOKE, *target)
    assert code == 0, err
    plan = json.loads(out.read_text())
    assert plan["fits"] and plan["devices"] == 8
    assert plan["time"]["step"] >= plan["time"]["bound"] > 0 and 0 < plan["mfu"] < 1
    assert sum(plan["memory"]["kinds"].values()) == pytest.approx(plan["memory"]["total"], rel=0.05)
    assert "compiled for it" in text and "samples/s" in text


@needs_libtpu
@pytest.mark.slow
def test_memory_alone_is_what_a_whole_plan_says():
    whole, alone = (make_plan(config(), "tpu:v5e:2x2", 1, memory_alone=m) for m in (False, True))
    code = whole["memory"]["kinds"]["program"]
    assert alone["fits"] and alone["time"]["step"] is None
    # The compiler's sums and its peak differ by a megabyte or two.
    assert alone["memory"]["total"] + code == pytest.approx(whole["memory"]["total"], rel=0.15)
    assert "memory alone" in render(alone)


@needs_libtpu
@pytest.mark.slow
def test_advice_is_checked_by_compiling_again():
    big = {"batch_size": 16384, "modalities.image.width": 512, "modalities.image.depth": 12}
    c = load_config("configs/clip.py:smoke", [f"{k}={v}" for k, v in big.items()])
    plan = make_plan(c, "tpu:v5e:2x2", examples=1)
    assert plan["fits"] is False and plan["advice"]["checked"]
    assert plan["advice"]["total"] <= plan["memory"]["limit"]
