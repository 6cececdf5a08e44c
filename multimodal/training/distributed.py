"""One program on many processes: found out from what the launcher left in the environment."""

import glob
import importlib.util
import logging
import os
import re
import socket

import jax
from orbax.checkpoint import multihost

from multimodal.errors import UserError

log = logging.getLogger(__name__)


def launched_on() -> str:
    """What started this process as one of several: 'jax', 'slurm', 'open-mpi', 'kubernetes', 'tpu',
    or '' for a process of its own.

    'jax' are the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, which
    launch/local.py sets. The others are what jax.distributed recognises.
    """
    env = os.environ
    if env.get("JAX_COORDINATOR_ADDRESS"):
        return "jax"
    if env.get("SLURM_STEP_NODELIST") and int(env.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        return "slurm"
    if env.get("OMPI_MCA_orte_hnp_uri") and int(env.get("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        return "open-mpi"
    # A TPU virtual machine learns from the metadata server, not from its environment, whether it
    # has neighbours.
    if env.get("JAX_PLATFORMS", "tpu").startswith("tpu") and _has_tpu():
        return "tpu"
    if env.get("JOB_COMPLETION_INDEX") and env.get("JOBSET_NAME"):
        return "kubernetes"
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
    if jax.distributed.is_initialized() or not (how or _virtual_devices()):
        return how
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # where CPUs are the devices
    known = {}
    if how == "jax":
        known = {
            "num_processes": _number("JAX_NUM_PROCESSES"),
            "process_id": _number("JAX_PROCESS_ID"),
        }
    elif not how:
        known = {
            "coordinator_address": f"127.0.0.1:{_free_port()}",
            "num_processes": 1,
            "process_id": 0,
        }
    try:
        jax.distributed.initialize(**known, heartbeat_timeout_seconds=heartbeat)
    except (RuntimeError, ValueError) as e:
        line = (str(e) or repr(e)).splitlines()[0]
        if how == "tpu" and isinstance(e, ValueError):  # no cluster that jax knows: one machine
            log.info("a TPU without neighbours: %s", line)
            return ""
        raise UserError(f"cannot join the other processes ({how}): {line}") from e
    if how:
        log.info("process %d of %d (%s)", jax.process_index(), jax.process_count(), how)
    return how


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
