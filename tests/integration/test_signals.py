"""Ctrl+C ends every wait, also when the signal interrupts no system call of the waiting thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

# The signal goes to another thread: Python's flag is set, the main thread's sleep goes on.
CODE = """
import signal, sys, threading, time
import shmbroker

def interrupt():
    time.sleep(0.3)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

with shmbroker.connect() as client:
    client.create_topic("t", if_not_exists=True)
    with client.consumer("t") as consumer:
        threading.Thread(target=interrupt).start()
        try:
            {wait}
        except KeyboardInterrupt:
            print("interrupted")
"""


@pytest.mark.parametrize("wait", ["consumer.poll(None)", "next(iter(consumer.batches()))"])
def test_a_signal_that_another_thread_got_ends_a_wait(broker: Any, wait: str) -> None:
    env = os.environ | broker.env
    del env["SHMBROKER_PARK_FOREVER"]
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(wait=wait)],
        env=env,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert done.stdout == "interrupted\n", done.stderr


def test_ctrl_c_ends_a_wait_at_once(broker: Any) -> None:
    code = CODE.format(wait="print('waiting', flush=True); consumer.poll(None)").replace(
        "threading.Thread(target=interrupt).start()", ""
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | broker.env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        while "futex" not in _wchan(process.pid):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert out == "interrupted\n", err


def _wchan(pid: int) -> str:
    """Where the main thread sleeps in the kernel; "futex" also where that is hidden from us."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        if stat.read().rpartition(")")[2].split()[0] != "S":
            return ""
    with open(f"/proc/{pid}/wchan", encoding="ascii") as wchan:
        return wchan.read().replace("0", "futex")
