#!/usr/bin/env python3
"""Run a command as several processes on this machine: launch/local.py -n 2 -- python train.py ...

Each process finds the others by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and
its lines come with its number before them. SIGTERM and SIGINT go on to all. When one ends with an
error, the others have --grace seconds to end by themselves; the exit code is that of the first one.
"""

import argparse
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time


def free_port():
    """A port of this machine that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(command, number, count, port):
    """One of the processes, with a thread that prefixes what it prints."""
    address = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(number),
    }
    process = subprocess.Popen(
        command,
        env=os.environ | address,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )

    def copy():
        for line in process.stdout:
            print(f"[{number}] {line}", end="", flush=True)

    reader = threading.Thread(target=copy, daemon=True)
    reader.start()
    return process, reader


def wait(processes, grace):
    """The exit code of the first process that failed, else 0."""
    ended = queue.SimpleQueue()  # codes, in the order in which the processes end
    for p in processes:
        threading.Thread(target=lambda p=p: ended.put(p.wait()), daemon=True).start()
    failed, deadline = 0, None
    for _ in processes:
        try:
            left = None if deadline is None else max(0, deadline - time.monotonic())
            code = ended.get(timeout=left)
        except queue.Empty:
            for p in processes:
                p.kill()
            deadline = None
            code = ended.get()
        if code and not failed:
            failed, deadline = code, time.monotonic() + grace
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=2, help="processes")
    parser.add_argument(
        "--grace", type=float, default=100.0, help="seconds after the first failure"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command or args.n < 1:
        parser.error("give a command: launch/local.py -n 2 -- python train.py ...")
    port = free_port()
    started = [start(command, i, args.n, port) for i in range(args.n)]
    processes = [p for p, _ in started]

    def forward(number, _):
        for p in processes:
            if p.poll() is None:
                p.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    code = wait(processes, args.grace)
    for _, reader in started:
        reader.join(timeout=5)
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
