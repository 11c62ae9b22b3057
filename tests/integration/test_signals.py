"""Ctrl+C ends every wait, also when the signal interrupts no system call of the waiting thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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
        try:
            threading.Thread(target=interrupt).start()
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
        timeout=60,
        check=False,
    )
    assert done.stdout == "interrupted\n", done.stderr


# Waits for a line first, so that the test can stop the broker: then nothing is answered.
PLAIN = """
import shmbroker

with shmbroker.connect() as client:
    client.create_topic("t")
    with client.consumer("t") as consumer:
        input("ready")
        try:
            print("waiting", flush=True)
            {wait}
        except KeyboardInterrupt:
            print("interrupted")
"""
ASYNCIO = """
import asyncio, shmbroker

async def main():
    async with shmbroker.aio.connect() as client, client.consumer("t") as consumer:
        input("ready")
        print("waiting", flush=True)
        await {wait}

with shmbroker.connect() as client:
    client.create_topic("t")
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize(
    ("code", "wait", "answering"),
    [
        (PLAIN, "consumer.poll(None)", True),
        (PLAIN, "next(consumer)", True),
        (PLAIN, "next(consumer.batches())", True),
        (PLAIN, "client.status()", False),
        (PLAIN, "shmbroker.connect(timeout=60)", False),
        (ASYNCIO, "consumer.poll(None)", True),
        (ASYNCIO, "client.create_topic('u')", False),
        (ASYNCIO, "shmbroker.aio.connect(timeout=5)", False),
    ],
)
def test_ctrl_c_ends_a_wait_at_once(broker: Any, code: str, wait: str, answering: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", code.format(wait=wait)],
        env=os.environ | broker.env,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(5) == "ready"
        if not answering:
            os.kill(broker.pid, signal.SIGSTOP)
        try:
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "waiting\n"
            while not _sleeps(process.pid):
                assert process.poll() is None
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            said = process.stdout.readline()
            took = time.monotonic() - began
            _, err = process.communicate(timeout=40)
        finally:
            os.kill(broker.pid, signal.SIGCONT)
    assert (said, err) == ("interrupted\n", "")
    assert took < 4  # and not only when the wait's own time had passed


def _sleeps(pid: int) -> bool:
    """Whether its main thread sleeps in the kernel."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "S"
