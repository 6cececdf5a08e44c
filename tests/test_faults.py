"""What goes wrong while a run is on its way, with real processes."""

import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from multimodal.config import load_config
from multimodal.training.optim import learning_rate
from tests import processes

STEPS = 60
CONFIG = (
    "--config", "configs/emoji.py:smoke", "--config.eval.pictures=0", "--config.save_every=20",
    f"--config.steps={STEPS}", *processes.SHALLOW,
)  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return processes.finished(tmp_path_factory.mktemp("reference"), *CONFIG)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_saves_and_the_same_command_goes_on(reference, tmp_path, workers):
    args = (*CONFIG, f"--config.data.workers={workers}", "--workdir", tmp_path)
    process = processes.start("train.py", *args)
    processes.wait_for(lambda: processes.losses(tmp_path))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 75, err
    assert "asked to end (SIGTERM)" in err and "Traceback" not in err
    code, _, err = processes.run("train.py", *args)
    assert code == 0 and "resumed from step" in err, err
    processes.check_same_end(tmp_path, reference, STEPS)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_one_interval(reference, tmp_path):
    args = (*CONFIG, "--workdir", tmp_path)
    code, _, err = processes.run("train.py", *args)
    assert code == 0, err
    newest = tmp_path / "checkpoints" / str(STEPS)
    # Which arrays share a file is a matter of timing, and eval.py reads and verifies only some.
    for path in newest.glob("state/*/d/*"):
        content = bytearray(path.read_bytes())
        for place in range(500, len(content), 1000):
            content[place] ^= 16
        path.write_bytes(bytes(content))
    code, _, err = processes.run("eval.py", "--workdir", tmp_path)
    assert code == 2 and "cannot restore" in err, err
    code, _, err = processes.run("train.py", *args)
    assert code == 0 and f"resumed from step {STEPS - 20}" in err, err
    assert (tmp_path / "damaged" / str(STEPS)).is_dir()
    assert processes.fingerprints(tmp_path, STEPS) == processes.fingerprints(reference, STEPS)


@pytest.mark.slow
def test_a_step_that_is_not_finite_leaves_the_state_as_it_was(tmp_path):
    """One of the two batches of each epoch has the poisoned example."""
    args = ("--config", "tests/faulty.py", "--config.steps=6", "--config.save_every=1")
    workdir = processes.finished(tmp_path, *args, "--config.log_every=1", "--config.keep=6")
    states = [processes.fingerprints(workdir, step) for step in range(1, 7)]
    rows = [m for m in processes.metrics(workdir) if "train/skipped" in m]
    counts = [m["train/skipped"] for m in rows]
    assert len(counts) == 6 and counts[-1] == 3
    updates = [n - c for n, c in enumerate([0, *counts[:-1]])]  # before each step
    rate = learning_rate(load_config("tests/faulty.py", ["steps=6"]))
    assert [m["train/lr"] for m in rows] == pytest.approx([float(rate(n)) for n in updates])
    for before, after, was, skipped in zip(states, states[1:], counts, counts[1:]):
        moved = {k.partition("/")[0] for k in after if after[k] != before[k]}
        assert moved == ({"step", "health"} if skipped > was else moved | {"params", "opt", "ema"})


@pytest.mark.slow
def test_a_step_that_hangs_shows_its_stacks_and_ends(tmp_path):
    args = (*CONFIG, "--config.data.source=tests.faulty:Sleepy", "--config.data.kwargs={}")
    args += ("--config.data.eval_splits=val", "--config.eval.best=", "--config.hang_seconds=5")
    code, _, err = processes.run("train.py", *args, "--workdir", tmp_path)
    assert code == 1
    assert "Timeout (0:00:05)!" in err and "faulty.py" in err


@pytest.mark.slow
def test_training_asks_nothing_of_the_network(tmp_path):
    """Every connection but those within the machine is an error."""
    guard = """
    import socket
    real = socket.socket.connect
    def connect(self, address):
        if self.family == socket.AF_UNIX or str(address[0]) in ("127.0.0.1", "::1", "localhost"):
            return real(self, address)
        raise AssertionError(f"a connection to {address}")
    def lookup(host, *args, real=socket.getaddrinfo, **kwargs):
        assert host in (None, "", "127.0.0.1", "::1", "localhost"), f"a lookup of {host}"
        return real(host, *args, **kwargs)
    socket.socket.connect, socket.getaddrinfo = connect, lookup
    """
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(guard))
    command = [sys.executable, "train.py", *CONFIG, "--workdir", str(tmp_path / "run")]
    env = processes.environment() | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, cwd=processes.ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    probe = "import socket; socket.create_connection(('192.0.2.1', 80))"
    refused = subprocess.run([sys.executable, "-c", probe], env=env, capture_output=True, text=True)
    assert "AssertionError" in refused.stderr


@pytest.mark.slow
def test_a_stored_config_is_data(reference, tmp_path):
    """Nothing in a run's folder is executed when it is evaluated."""

    workdir = tmp_path / "run"
    shutil.copytree(reference, workdir)
    path = workdir / "config.json"
    mark = tmp_path / "executed"
    code = f"__import__('os').system('touch {mark}')"
    path.write_text(path.read_text().replace('"wordpiece"', f'"{code}"'))
    processes.run("eval.py", "--workdir", workdir)
    assert not mark.exists()
