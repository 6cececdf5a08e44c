"""Reading files: formats, damage, and pickles that want to run code."""

import os
import pickle

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from multimodal.errors import UserError
from multimodal.interop import load_file


class Exploit:
    """Unpickling this would run a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_halves_become_float32(tmp_path):
    halves = {
        "a": np.ones(3, ml_dtypes.bfloat16),
        "b": np.ones(3, np.float16),
        "c": np.ones(3, np.float64),
    }
    safetensors.numpy.save_file(halves, tmp_path / "w.safetensors")
    got = load_file(tmp_path / "w.safetensors")
    assert [got[k].dtype.name for k in "abc"] == ["float32", "float32", "float64"]


@pytest.mark.parametrize("name", ["w.safetensors", "w.npz"])
def test_damaged(tmp_path, name):
    (tmp_path / name).write_bytes(b"nothing of the kind, nothing at all")
    with pytest.raises(UserError, match=r"w\.\w+: not an? "):
        load_file(tmp_path / name)


def test_absent_and_unknown(tmp_path):
    with pytest.raises(UserError, match="no such weights file"):
        load_file(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="name the file itself"):
        load_file(tmp_path)
    (tmp_path / "w.h5").write_bytes(b"")
    with pytest.raises(UserError, match="unknown kind of weights file"):
        load_file(tmp_path / "w.h5")


def test_npz_with_a_pickle_is_refused(tmp_path):
    mark = tmp_path / "ran"
    np.savez(tmp_path / "w.npz", a=np.array([Exploit(mark)], dtype=object))
    with pytest.raises(UserError, match=r"not an \.npz of plain arrays"):
        load_file(tmp_path / "w.npz")
    assert not mark.exists()


def test_pth_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"pip install -e '\.\[torch\]'"):
        load_file(tmp_path / "w.pth")


@pytest.fixture
def torch():
    """torch, or a skip."""
    return pytest.importorskip("torch", reason="torch, which reads .pth files, is not installed")


@pytest.mark.parametrize("nested", [None, "model", "state_dict"])
def test_pth(tmp_path, torch, nested):
    state = {"module.a": torch.arange(4.0), "module.b": torch.ones(2, dtype=torch.bfloat16)}
    torch.save({nested: state, "epoch": 3} if nested else state, tmp_path / "w.pth")
    got = load_file(tmp_path / "w.pth")
    assert got["a"].tolist() == [0, 1, 2, 3] and got["b"].dtype == np.float32


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("plain", [True, False])
def test_malicious_pickle_is_refused(tmp_path, torch, plain):
    mark, path = tmp_path / "ran", tmp_path / "w.pth"
    if plain:
        path.write_bytes(pickle.dumps({"model": Exploit(mark)}))
    else:
        torch.save({"model": Exploit(mark)}, path)
    with pytest.raises(UserError, match="refused, it holds more than weights and could run code"):
        load_file(path)
    assert not mark.exists()


def test_damaged_pth(tmp_path, torch):
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(UserError):
        load_file(tmp_path / "w.pth")


def test_pth_of_something_else(tmp_path, torch):
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(UserError, match="no state dict"):
        load_file(tmp_path / "w.pth")
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="not tensors: epoch"):
        load_file(tmp_path / "w.pth")
