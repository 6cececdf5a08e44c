"""A Slurm cluster of two nodes on this machine, for as long as a test runs.

Debian's packages do (slurmctld, slurmd, slurm-client, munge): two slurmd of different names, each
with eight GPUs that are other devices, so that launch/slurm.sbatch can be given as it is.
"""

import contextlib
import getpass
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from launch.local import free_port
from tests import processes

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "scancel")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
GPUS = 8  # a node, as in the template
# By their addresses, so that the first is a name that processes can connect to.
NODES = ("127.0.0.1", "127.0.0.2")

CONF = """\
ClusterName=test
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg={true}
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName={nodes[0]} NodeHostname={host} Port={ports[1]} CPUs=64 Gres=gpu:{gpus}
NodeName={nodes[1]} NodeHostname={host} Port={ports[2]} CPUs=64 Gres=gpu:{gpus}
PartitionName=all Nodes=ALL Default=YES
"""


class CannotStartError(Exception):
    """Why this machine has no Slurm."""


class Slurm:
    """Its commands, and a folder to submit from."""

    def __init__(self, folder):
        self._env = processes.environment() | {"SLURM_CONF": str(folder / "slurm.conf")}
        self.submit_dir = folder / "submit"
        write_python(self.submit_dir)
        for name in ("train.py", "configs"):
            (self.submit_dir / name).symlink_to(processes.ROOT / name)

    def run(self, *command, check=True, **env):
        """Run a command to its end; returns what it printed."""
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.submit_dir,
            env=self._env | env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
        )
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    def submit(self, *args, **env):
        """Submit launch/slurm.sbatch; returns the job's number."""
        template = processes.ROOT / "launch" / "slurm.sbatch"
        return self.run("sbatch", "--parsable", template, *args, **env).strip()

    def job(self, number):
        """What scontrol tells of a job: {'JobState': 'RUNNING', ...}."""
        out = self.run("scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in out.split() if "=" in word)

    def wait(self, number, condition, seconds=400):
        """Wait until a condition holds of what scontrol tells of a job; returns that."""
        deadline = time.monotonic() + seconds
        while not condition(told := self.job(number)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{told}\n{self.log(number)}")
            time.sleep(0.5)
        return told

    def end(self, number):
        """Wait until a job has ended; returns what scontrol tells of it."""
        return self.wait(number, lambda told: told["JobState"] in ENDED)

    def start_soon(self, number):
        """Start a job that is queued again after two seconds instead of Slurm's two minutes.

        Not at once: a node refuses what was allowed within the second in which it killed the
        first start ("Job credential revoked"), and the job fails. Slurm counts its two minutes
        anew once the first start's processes are gone, so it is told until the job runs.
        """
        pending = None

        def started(told):
            nonlocal pending
            if told["JobState"] == "PENDING":
                pending = pending or time.monotonic()
                if time.monotonic() > pending + 2:
                    self.run("scontrol", "update", f"JobId={number}", "StartTime=now", check=False)
            return told["JobState"] in ("RUNNING", *ENDED)

        self.wait(number, started)

    def log(self, number):
        """What the job printed, under all its starts."""
        path = self.submit_dir / f"multimodal-{number}.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""


def write_python(folder):
    """An environment's Python at the place where the templates look for it.

    Arguments in ONLY_SECOND are given to the second process of Slurm alone.
    """
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/sh\n[ "$SLURM_PROCID" != 1 ] || set -- "$@" $ONLY_SECOND\n'
        f'PYTHONPATH="{processes.ROOT}" exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)


def _write_configuration(folder):
    devices = [p for p in sorted(pathlib.Path("/dev").iterdir()) if p.is_char_device()][:GPUS]
    if len(devices) < GPUS:
        raise CannotStartError(f"/dev has fewer than {GPUS} devices to take for GPUs")
    host = socket.gethostname().split(".")[0]
    text = CONF.format(
        first_job=random.randrange(1, 4000),  # jax makes a port of it: other tests may run
        host=host,
        ports=[free_port() for _ in range(3)],
        folder=folder,
        user=getpass.getuser(),
        nodes=NODES,
        gpus=GPUS,
        true=shutil.which("true"),
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text("".join(f"Name=gpu File={d}\n" for d in devices))
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)


def _commands(folder):
    """The daemons in the order in which they start."""
    munge = {k: f"{folder}/munge.{k}" for k in ("key", "socket", "pid", "log", "seed")}
    yield [
        "munged", "--foreground", f"--key-file={munge['key']}", f"--socket={munge['socket']}",
        f"--pid-file={munge['pid']}", f"--log-file={munge['log']}", f"--seed-file={munge['seed']}",
    ]  # fmt: skip
    yield ["slurmctld", "-D", "-c"]
    for node in NODES:
        yield ["slurmd", "-D", "-N", node]


@contextlib.contextmanager
def running():
    """A cluster whose nodes are idle. Raises CannotStartError with the reason."""
    if missing := [p for p in PROGRAMS if not shutil.which(p)]:
        raise CannotStartError(f"not installed: {', '.join(missing)}")
    # Not pytest's folder: munged wants one that others may enter, and the path is short enough for
    # the name of a socket.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        _write_configuration(folder)
        slurm = Slurm(folder)
        daemons = []
        try:
            for command in _commands(folder):
                daemons.append(_start(command, folder))
            _wait_until_idle(slurm, daemons, folder)
            try:
                yield slurm
            finally:
                slurm.run("scancel", "--full", "--user", getpass.getuser(), check=False)
                _wait_until_empty(slurm)
        finally:
            _stop(daemons)


def _start(command, folder):
    """A daemon in the foreground; munged only once it answers."""
    with open(folder / f"{command[0]}-{command[-1].strip('-')[-9:]}.out", "w") as out:
        daemon = subprocess.Popen(
            command,
            env=os.environ | {"SLURM_CONF": str(folder / "slurm.conf")},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    if command[0] == "munged":
        with contextlib.suppress(TimeoutError):
            processes.wait_for((folder / "munge.socket").exists, seconds=10)
    return daemon


def _stop(daemons):
    for daemon in reversed(daemons):
        daemon.terminate()
    for daemon in daemons:
        try:
            daemon.wait(timeout=20)
        except subprocess.TimeoutExpired:  # a slurmd whose slurmctld is gone
            daemon.kill()
            daemon.wait()


def _wait_until_idle(slurm, daemons, folder):
    deadline = time.monotonic() + 60
    while True:
        ended = [d.args[0] for d in daemons if d.poll() is not None]
        if ended or time.monotonic() > deadline:
            last = [" ".join(p.read_text().split())[-200:] for p in sorted(folder.glob("*.out"))]
            raise CannotStartError(f"{ended or 'its nodes'} did not come up: {last}")
        states = slurm.run("sinfo", "-h", "-N", "-o", "%T", check=False).split()
        if states == ["idle"] * len(NODES):
            return
        time.sleep(0.5)


def _wait_until_empty(slurm):
    with contextlib.suppress(TimeoutError):
        processes.wait_for(
            lambda: not slurm.run("squeue", "--noheader", check=False).strip(), seconds=60
        )
