"""The bridge from C threads to an event loop, under asyncio and uvloop."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from shmbroker.client.aio.bridge import Bridge

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    factory = uvloop.new_event_loop if request.param == "uvloop" else None

    def runs(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main)

    return runs


def test_a_write_from_another_thread_runs_every_listener_in_the_loop(run: Run) -> None:
    async def main() -> None:
        bridge = Bridge(asyncio.get_running_loop())
        here, ran, done = threading.get_ident(), [], asyncio.Event()
        bridge.on_wake(lambda: ran.append(threading.get_ident()))
        bridge.on_wake(done.set)
        threading.Thread(target=os.eventfd_write, args=(bridge.fd, 1)).start()
        await asyncio.wait_for(done.wait(), 40)
        assert ran == [here]
        bridge.close()

    run(main())


def test_a_listener_taken_off_runs_no_more(run: Run) -> None:
    async def main() -> None:
        bridge = Bridge(asyncio.get_running_loop())
        ran: list[str] = []
        done = asyncio.Event()

        def once() -> None:
            ran.append("once")
            bridge.off_wake(once)
            bridge.off_wake(once)  # not there any more: nothing

        bridge.on_wake(once)
        bridge.on_wake(done.set)
        for _ in range(2):
            done.clear()
            bridge.wake()
            await asyncio.wait_for(done.wait(), 40)
        assert ran == ["once"]
        bridge.close()

    run(main())


def test_what_a_listener_raises_is_logged_and_the_others_run(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bridge = Bridge(asyncio.get_running_loop())
        done = asyncio.Event()
        bridge.on_wake(lambda: 1 // 0)
        bridge.on_wake(done.set)
        bridge.wake()
        await asyncio.wait_for(done.wait(), 40)
        bridge.close()

    with caplog.at_level(logging.ERROR, "shmbroker"):
        run(main())
    assert "ZeroDivisionError" in caplog.text


def test_close_gives_the_descriptor_back_and_twice_is_fine(run: Run) -> None:
    async def main() -> None:
        bridge = Bridge(asyncio.get_running_loop())
        fd = bridge.fd
        bridge.close()
        bridge.close()
        assert bridge.closed
        with pytest.raises(OSError):
            os.fstat(fd)

    run(main())


def test_a_bridge_outlives_its_loop(run: Run) -> None:
    made: list[Bridge] = []

    async def main() -> None:
        made.append(Bridge(asyncio.get_running_loop()))

    run(main())
    made[0].close()
    assert made[0].closed
