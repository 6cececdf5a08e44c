"""start.py: what it would run, how it passes on what happens, and when it sets up anew."""

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def start():
    spec = importlib.util.spec_from_file_location("start", ROOT / "start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake(start, monkeypatch, tmp_path):
    """start with an install that only leaves a link to this Python and counts its calls."""

    def install(folder, python, stamp):
        start.fake_installs += 1
        os.makedirs(os.path.dirname(python), exist_ok=True)
        if not os.path.exists(python):
            os.symlink(sys.executable, python)

    start.fake_installs = 0
    monkeypatch.setattr(start, "install", install)
    monkeypatch.setenv("MULTIMODAL_VENV", str(tmp_path / "venv"))
    return start


TRAIN = [
    ([], "--config configs/emoji.py --workdir runs/emoji"),
    (["--config.seed=1"], "--config configs/emoji.py --workdir runs/emoji --config.seed=1"),
    (["--workdir", "w"], "--config configs/emoji.py --workdir w"),
    (["--workdir=a=b"], "--config configs/emoji.py --workdir=a=b"),
    (["--config=configs/a.py"], "--workdir runs/a --config=configs/a.py"),
    (["--config", "configs/a.py:smoke"], "--workdir runs/a_smoke --config configs/a.py:smoke"),
    (["-config=a.py", "-workdir=b"], "-config=a.py -workdir=b"),
]


@pytest.mark.parametrize("args, expected", TRAIN)
def test_train(start, args, expected):
    assert start.commands("train", args) == [["train.py", *expected.split()]]


def test_test_runs_pytest(start):
    (command,) = start.commands("test", ["-k", "x y"])
    assert command[:3] == ["-m", "pytest", "-q"] and command[-2:] == ["-k", "x y"]


@pytest.mark.parametrize("argv, code", [([], 2), (["trian"], 2), (["--help"], 0)])
def test_usage(start, capsys, argv, code):
    assert start.main(argv) == code
    assert "start.py train" in capsys.readouterr().out


def test_old_python(start, monkeypatch, capsys):
    monkeypatch.setattr(start.sys, "version_info", (3, 10, 13))
    assert start.main(["test"]) == 2
    assert capsys.readouterr().err == "start.py: Python 3.11 or newer is needed, this is 3.10\n"


def test_no_venv_module(start, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    assert start.main(["test"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "install its venv module" in error


def test_failed_install_is_one_line(start, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MULTIMODAL_VENV", str(tmp_path / "venv"))
    code = "print('ERROR: no such package'); raise SystemExit(1)"

    def install(folder, python, stamp):
        os.makedirs(folder)
        start.step([sys.executable, "-c", code], "installing", folder)

    monkeypatch.setattr(start, "install", install)
    assert start.main(["test"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "installing failed: ERROR: no such package" in error
    assert "no such package" in (tmp_path / "venv" / "install.log").read_text()


def test_set_up_once_and_anew_after_a_change(fake, monkeypatch):
    monkeypatch.setattr(fake, "commands", lambda *_: [])
    for _ in range(2):
        assert fake.main(["test"]) == 0
    assert fake.fake_installs == 1
    monkeypatch.setattr(fake, "fingerprint", lambda: "another constraints.txt")
    assert fake.main(["test"]) == 0
    assert fake.fake_installs == 2


def test_a_foreign_environment_is_left_alone(fake, tmp_path, capsys):
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "pyvenv.cfg").write_text("uv = 1")
    assert fake.main(["test"]) == 2
    assert "was not made by start.py" in capsys.readouterr().err
    assert fake.fake_installs == 0


def test_exit_codes_are_passed_on_and_end_the_sequence(fake, monkeypatch, tmp_path):
    def script(text):
        return ["-c", f"import os, pathlib, signal\n{text}"]

    def main(*scripts):
        monkeypatch.setattr(fake, "commands", lambda *_: [script(text) for text in scripts])
        return fake.main(["train"])

    mark = tmp_path / "mark"
    assert main("raise SystemExit(3)", f"pathlib.Path({str(mark)!r}).touch()") == 3
    assert not mark.exists()
    assert main("", "raise SystemExit(4)") == 4
    assert main("os.kill(os.getpid(), signal.SIGKILL)") == 128 + 9
    assert main("assert os.getcwd() == " + repr(str(ROOT))) == 0


SIGNALLED = """
import sys, time
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.2)
    print("saved", flush=True)
    sys.exit(7)
"""


@pytest.mark.parametrize(
    "number, code, out", [(signal.SIGINT, 7, "saved\n"), (signal.SIGTERM, 143, "")]
)
def test_signals(number, code, out):
    """Ctrl-C reaches the whole foreground group; SIGTERM reaches start.py, which passes it on."""
    text = f"import start, sys; sys.exit(start.run([sys.executable, '-c', {SIGNALLED!r}]))"
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    rest, _ = process.communicate(timeout=20)
    assert (process.returncode, rest) == (code, out)
