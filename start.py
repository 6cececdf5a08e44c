#!/usr/bin/env python3
"""Set everything up and go: `python3 start.py train [ARGS]` or `python3 start.py test [ARGS]`.

Needs only Python 3.11+ with pip. Makes a virtual environment in .venv beside this file (or in the
folder named by MULTIMODAL_VENV) with the versions of constraints.txt, anew whenever pyproject.toml,
constraints.txt or the Python changes. Then

    train   runs train.py with ARGS, which evaluates what it has trained
            (default: --config configs/emoji.py --workdir runs/CONFIG)
    test    runs pytest with ARGS

Paths in ARGS are relative to this folder. Exit code: that of the command; 2 if the set-up fails.
"""

# An old Python must get as far as the version check: nothing here that 3.6 cannot parse.
import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.abspath(__file__))
OLDEST, NEWEST = (3, 11), (3, 13)
EXTRAS = "dev"
STAMP = "multimodal-stamp"


class SetupError(Exception):
    """The set-up cannot go on; the message is one line."""


def main(argv):
    if not argv or argv[0] not in ("train", "test"):
        print(__doc__.strip())
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    try:
        check_python()
        python = environment(os.path.abspath(os.environ.get("MULTIMODAL_VENV") or ROOT + "/.venv"))
    except SetupError as error:
        print(f"start.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("start.py: stopped during the set-up", file=sys.stderr)
        return 130
    for command in commands(argv[0], argv[1:]):
        code = run([python, *command])
        if code:
            return code
    return 0


def commands(action, args):
    """The Python command lines of an action, to be run one after the other while they succeed."""
    if action == "test":
        workers = str(min(4, os.cpu_count() or 1))  # compiling, most of the time, uses one core
        return [["-m", "pytest", "-q", "-n", workers, "--dist", "loadfile", *args]]
    config, workdir = option(args, "config"), option(args, "workdir")
    defaults = []
    if config is None:
        config = "configs/emoji.py"
        defaults += ["--config", config]
    if workdir is None:
        workdir = f"runs/{run_name(config)}"
        defaults += ["--workdir", workdir]
    return [["train.py", *defaults, *args]]


def option(args, name):
    """The last value of --name VALUE or --name=VALUE in args, None if there is none."""
    value = None
    for i, arg in enumerate(args):
        flag, equals, rest = arg.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            value = rest if equals else "".join(args[i + 1 : i + 2])
    return value


def run_name(config):
    """configs/flickr8k.py:smoke -> flickr8k_smoke: other configs do not share a workdir."""
    path, _, arg = config.partition(":")
    name = os.path.splitext(os.path.basename(path))[0]
    return re.sub(r"[^\w.-]+", "_", f"{name}_{arg}" if arg else name)


def check_python():
    """Refuse a Python that is too old or cannot make virtual environments, and Windows."""
    if os.name == "nt":
        raise SetupError("jax's data libraries do not run on Windows: use WSL (Linux)")
    version = "{}.{}".format(*sys.version_info[:2])
    if sys.version_info[:2] < OLDEST:
        raise SetupError(f"Python 3.11 or newer is needed, this is {version}")
    if sys.version_info[:2] > NEWEST:
        print(f"start.py: Python {version} is untested (3.11 to 3.13 are tested)", flush=True)
    try:
        # Debian's python3 has a venv that cannot work: ensurepip comes with python3-venv.
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise SetupError(
            "this Python cannot make virtual environments: install its venv module"
            f" (Debian and Ubuntu: apt install python{version}-venv)"
        ) from None


def environment(folder):
    """Python of the environment in folder, which is made or renewed if need be."""
    python = os.path.join(folder, "bin", "python")
    stamp = os.path.join(folder, STAMP)
    try:
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        with lock(f"{folder}.lock"):
            wanted, found = fingerprint(), read(stamp)
            if found != wanted or not os.path.exists(python):
                if found is None and os.path.exists(folder) and os.listdir(folder):
                    raise SetupError(
                        f"{folder} was not made by start.py: remove it, or use it as it is"
                        " (python train.py ...), or name another folder in MULTIMODAL_VENV"
                    )
                install(folder, python, stamp)
                write(stamp, wanted)
    except OSError as error:
        raise SetupError(f"cannot make the environment {folder}: {error}") from None
    return python


def fingerprint():
    """Changes with whatever decides what gets installed, and with the place of the checkout."""
    parts = [sys.version, os.path.realpath(sys.executable), ROOT, EXTRAS]
    parts += [read(os.path.join(ROOT, name)) for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def install(folder, python, stamp):
    """A fresh environment with the locked packages and this checkout in editable form."""
    began = time.monotonic()
    print(f"start.py: installing the locked packages in {folder} (a minute or two)", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    write(stamp, "unfinished")  # marks the folder as ours, so that the next call may clear it
    step([sys.executable, "-m", "venv", folder], "making the environment", folder)
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    step([*pip, "-c", "constraints.txt", "-e", f".[{EXTRAS}]"], "installing the packages", folder)
    print(f"start.py: ready after {time.monotonic() - began:.0f} s", flush=True)


def step(command, what, folder):
    """Run a command with its output in a log and, on a terminal, its latest line on show."""
    log_path = os.path.join(folder, "install.log")
    env = dict(os.environ, PIP_USER="0")  # a user-wide `user = true` cannot work in an environment
    columns = shutil.get_terminal_size().columns - 1 if sys.stdout.isatty() else 0
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    reason = ""  # pip's first error says what is wrong, its last one where to read about it
    with process, open(log_path, "a", encoding="utf-8") as log:
        for line in process.stdout:
            log.write(line)
            if not reason and line.lower().startswith("error"):
                reason = line.strip()[:300]
            if columns:
                print("\r" + line.strip()[:columns].ljust(columns), end="", flush=True)
    if columns:
        print("\r" + " " * columns, end="\r", flush=True)
    if process.returncode:
        reason = reason or f"exit code {process.returncode}"
        raise SetupError(f"{what} failed: {reason} (the whole log: {log_path})")


def run(command):
    """Run a command in the checkout's folder; its exit code, 128 + number after a signal."""
    process = subprocess.Popen(command, cwd=ROOT)
    # A terminal sends Ctrl-C to the child as well: let it end in its own way and wait for it (not
    # by SIG_IGN, which the next child would inherit). SIGTERM often comes to this process alone.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    code = process.wait()
    return 128 - code if code < 0 else code


@contextlib.contextmanager
def lock(path):
    """Only one start.py at a time sets an environment up; another waits."""
    import fcntl  # here, so that Windows gets as far as its error message

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
