"""Memory of a step on a CPU: kept for the next step instead of given back to the system."""

import ctypes
import sys

import jax

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER, NONE = -1, 0


def keep_memory():
    """Let a CPU's steps find the memory of the step before; call before anything runs on a device.

    XLA asks malloc for a step's temporary arrays anew each time, and glibc has a block as large as
    that mapped by the system and unmapped afterwards: every page of it is then faulted in and
    zeroed again, a third of the CPU time of small models. Without mapping and trimming the block
    stays in the heap. The heap is that of the main thread, which therefore has to run the steps
    itself: other threads' heaps are too small and map all the same, and one heap for all threads
    breaks the block up, so that memory grows (to three times as much). Here a job may come to hold
    two such blocks.

    Nothing changes for accelerators, for several devices of one process, or without glibc.
    Sources: mallopt(3); sysmalloc of glibc; jax's option jax_cpu_enable_async_dispatch.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() != "cpu" or jax.local_device_count() > 1:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, NONE)
        mallopt(M_TRIM_THRESHOLD, NEVER)
