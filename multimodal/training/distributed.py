"""One program on many processes: found out from what the launcher left in the environment."""

import glob
import importlib.util
import logging
import os
import re
import socket
import sys

import jax
from orbax.checkpoint import multihost

from multimodal.errors import UserError

log = logging.getLogger(__name__)

_joined = False  # whether there are other processes, and they were reached


def launched_on() -> str:
    """What started this process as one of several: 'jax', 'slurm', 'open-mpi', 'kubernetes', 'tpu',
    or '' for a process of its own.

    'jax' are the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, which
    launch/local.py sets. The others are what jax.distributed recognises, in its order.
    """
    env = os.environ
    if env.get("JAX_COORDINATOR_ADDRESS"):
        return "jax"
    # First: mpirun starts its daemons on other nodes as a Slurm step.
    if env.get("OMPI_MCA_orte_hnp_uri") and int(env.get("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        return "open-mpi"
    if env.get("SLURM_STEP_NODELIST") and int(env.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        return "slurm"
    # A TPU virtual machine learns from the metadata server, not from its environment, whether it
    # has neighbours.
    if env.get("JAX_PLATFORMS", "tpu").startswith("tpu") and _has_tpu():
        return "tpu"
    if env.get("JOB_COMPLETION_INDEX") and env.get("KUBERNETES_SERVICE_HOST"):
        if importlib.util.find_spec("kubernetes"):
            return "kubernetes"
        log.warning("a pod of an Indexed Job, without the package kubernetes: it runs alone")
    return ""


def _has_tpu():
    devices = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def initialise(heartbeat: int = 60) -> str:
    """Join the other processes, where there are some; before anything uses a device.

    Args:
      heartbeat: seconds after which a process that went silent ends the job.
    Returns: launched_on(). Raises UserError where the others cannot be reached.
    """
    how = launched_on()
    if not how:
        _refuse_unknown_mpi()
    if jax.distributed.is_initialized() or not (how or _virtual_devices()):
        return how
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # where CPUs are the devices
    known = _known(how)
    try:
        jax.distributed.initialize(**known, heartbeat_timeout_seconds=heartbeat)
    except (RuntimeError, ValueError) as e:
        line = (str(e) or repr(e)).splitlines()[0]
        if how == "tpu" and isinstance(e, ValueError):  # no cluster that jax knows: one machine
            log.info("a TPU without neighbours: %s", line)
            return ""
        raise UserError(f"cannot join the other processes ({how}): {line}") from e
    if how:
        global _joined
        _joined = jax.process_count() > 1
        log.info("process %d of %d (%s)", jax.process_index(), jax.process_count(), how)
    return how


def _known(how):
    """Arguments of jax.distributed.initialize that it is not to find out by itself."""
    if how == "jax":
        return {
            "num_processes": _number("JAX_NUM_PROCESSES"),
            "process_id": _number("JAX_PROCESS_ID"),
            "cluster_detection_method": "deactivate",  # a scheduler's numbers may be others
        }
    if not how:
        return {
            "coordinator_address": f"127.0.0.1:{_free_port()}",
            "num_processes": 1,
            "process_id": 0,
            "cluster_detection_method": "deactivate",
        }
    if not os.environ.get("JAX_LOCAL_DEVICE_IDS") and _takes_what_it_sees(how):
        return {"local_device_ids": []}
    return {}


def _takes_what_it_sees(how) -> bool:
    """Whether a process of Slurm or Open MPI is to use every GPU that it sees.

    jax gives each the one GPU of its number on the node. That is wrong for a process that has the
    node for itself, and for one that the scheduler shows its own GPUs only.
    """
    env = os.environ
    if how == "open-mpi":
        here = int(env.get("OMPI_COMM_WORLD_LOCAL_SIZE") or 1)
    elif how == "slurm":
        here = _slurm_tasks_here()
    else:
        return False  # jax takes all
    seen = env.get("CUDA_VISIBLE_DEVICES")
    of_the_step = int(env.get("SLURM_GPUS_ON_NODE") or 0)
    return here == 1 or bool(seen) and len(seen.split(",")) < max(here, of_the_step)


def _slurm_tasks_here():
    """Tasks of this step on this node: '2(x3),1' are two on each of three nodes, then one."""
    counts = []
    for part in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        tasks, _, times = part.rstrip(")").partition("(x")
        counts += [int(tasks)] * int(times or 1)
    node = int(os.environ.get("SLURM_NODEID") or 0)
    return counts[node] if node < len(counts) else counts[-1]


def _refuse_unknown_mpi():
    """Processes that do not know of each other would all write to one workdir."""
    for size, rank in (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK")):
        if int(os.environ.get(size) or 1) > 1:
            raise UserError(
                f"one of {os.environ[size]} processes of an MPI that jax does not recognise (it "
                "knows Open MPI 4): set JAX_COORDINATOR_ADDRESS=HOST:PORT and start "
                f"sh -c 'JAX_NUM_PROCESSES=${size} JAX_PROCESS_ID=${rank} exec python train.py ...'"
            )


def _virtual_devices() -> bool:
    """Whether this process splits its CPU into several devices.

    Their sums are then to be those of several processes, bit for bit: gloo adds in another order
    than XLA does within one process, and needs a coordinator even for one.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    found = re.findall(r"--xla_force_host_platform_device_count=(\d+)", flags)
    return bool(found) and int(found[-1]) > 1


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def leave(code):
    """End this process with an exit code, also where the others do not end.

    jax waits for them at its end: five minutes, and then aborts with a code of its own.
    """
    if _joined:
        try:
            meet("leave", seconds=10)
        except jax.errors.JaxRuntimeError:
            log.warning("the other processes go on: ending without them")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


def meet(where, seconds=3600):
    """Wait for the other processes, without a device: compiling takes some much longer than
    others, and the first exchange between devices waits for half a minute only (gloo).

    where: a name that all give; several meetings may have the same.
    """
    multihost.get_barrier_sync_fn()(key=where, timeout_ms=1000 * seconds)


def _number(name):
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise UserError(f"{name} is {value!r}: beside JAX_COORDINATOR_ADDRESS it must be a number")
    return int(value)
