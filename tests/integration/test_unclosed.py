"""A program that closes nothing: it is told, and exits at once all the same."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import asyncio, threading, shmbroker

client = shmbroker.connect()
client.create_topic("t")
consumer, producer = client.consumer("t"), client.producer()
producer.send("t", b"x").result(40)
inside = client.consumer("t")
threading.Thread(target=inside.poll, daemon=True).start()

async def main():
    global loop_client, loop_consumer
    loop_client = await shmbroker.aio.connect()
    loop_consumer = await loop_client.consumer("t")
    try:
        async with asyncio.timeout(0.05):
            await loop_consumer.poll()
    except TimeoutError:
        pass

asyncio.run(main())
print("done", flush=True)
"""


@pytest.mark.parametrize("warnings", ["ignore", "always::ResourceWarning"])
def test_a_program_that_closes_nothing_exits_at_once(broker: Any, warnings: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", warnings, "-c", PROGRAM],
        env=broker.env,
        capture_output=True,
        text=True,
        timeout=60,  # it used to hang where daemon threads can't be joined (Python 3.13)
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if "ResourceWarning" in line]
    if warnings == "ignore":
        assert done.stderr == ""
    for name in ("Client", "Consumer", "aio.Client", "aio.Consumer"):
        told = any(f"unclosed <shmbroker.{name} " in line for line in said)
        assert told is (warnings != "ignore"), (name, done.stderr)
