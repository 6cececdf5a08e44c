"""Golden values of the original codebases, by the code of `python -m tests.parity`."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.parity import check_folder
from tests.parity.report import Report, relative


def golden(shared, name):
    """A folder of golden values, or a skip."""
    folder = shared / "golden" / name
    if not folder.is_dir():
        pytest.skip(f"no ../shared/golden/{name}")
    return folder


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("albef_f32", "albef_f64", "albef_two_processes", "clip_f32", "towers")
]


@pytest.mark.parametrize("name", ["clip_f64", *SLOW])
def test_parity(shared, name):
    report = check_folder(golden(shared, name))
    assert report.ok, report.table()


def run(*folders):
    """The command, as a user runs it."""
    command = [sys.executable, "-m", "tests.parity", *map(str, folders)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_wrong_numbers_fail(shared, tmp_path):
    z = dict(np.load(golden(shared, "clip_f32") / "cosine_lr.npz"))
    z["lr"][50] *= 1.001
    np.savez(tmp_path / "cosine_lr.npz", **z)
    done = run(tmp_path)
    assert done.returncode == 1 and "X cosine learning rate" in done.stdout


def test_nothing_checked_fails(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    done = run(tmp_path)
    assert done.returncode == 1
    assert (
        "nothing in this folder could be checked" in done.stdout
        and "not covered yet" in done.stdout
    )


def test_a_folder_that_is_not_there(tmp_path):
    done = run(tmp_path / "none")
    assert done.returncode == 2 and "no such folder" in done.stderr


def test_a_wrong_weight_fails(shared, tmp_path):
    shutil.copy(golden(shared, "towers") / "vit.npz", tmp_path)
    z = dict(np.load(tmp_path / "vit.npz"))
    z["w.layers.0.mlp.fc1.weight"] = z["w.layers.0.mlp.fc1.weight"] + 1e-3
    np.savez(tmp_path / "vit.npz", **z)
    assert not check_folder(tmp_path).ok


def test_nan_is_beyond_tolerance():
    report = Report("a")
    report.compare(
        "x",
        {"a": np.ones(2), "b": np.array([np.nan])},
        {"a": np.ones(2), "b": np.ones(1)},
        np.float32,
    )
    assert not report.ok and np.isnan(report.rows[0].error)
    assert relative(np.ones(2), np.ones(3)) == np.inf
