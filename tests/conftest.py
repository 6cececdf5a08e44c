"""What every test runs under: the CPU as 8 virtual devices, and a cache of compiled programs."""

import gc
import importlib.metadata
import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Before anything imports jax. Compiled programs are kept in the checkout: compiling is most of the
# tests' time, and child processes that tests start find the same settings in the environment.
os.environ["JAX_PLATFORMS"] = "cpu"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    # Compiling is most of the time: these programs are tiny, and need not be fast.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    flags += " --xla_llvm_disable_expensive_passes=true"  # a tenth
    flags += " --xla_cpu_parallel_codegen_split_count=1"  # else 32 parts: another tenth
    if importlib.metadata.version("jax").startswith("0.10."):  # later versions do not know it
        flags += " --xla_cpu_use_fusion_emitters=false"  # a third of the time to compile
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu without a TPU asks the network for one
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_configure(config):
    """What a program does at its start."""
    from multimodal.cli import collect_garbage_seldom, mark_flags_as_parsed

    mark_flags_as_parsed()
    collect_garbage_seldom()  # a tenth of the tests' time; free_programs collects


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow: runs with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True, scope="module")
def free_programs():
    """Frees what the tests of a file have compiled. A process that kept it all would come to 7 GB
    and to more mappings than Linux allows it (vm.max_map_count), where XLA aborts.
    """
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def shared():
    """Folder of data and golden values that lies beside the checkout on some machines."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder ../shared with data and golden values")
    return folder


@pytest.fixture
def commands(monkeypatch, capsys, caplog):
    """train.py and eval.py as functions, see commands.py."""
    from tests.commands import Commands

    return Commands(monkeypatch, capsys, caplog)
