"""The acceptor's event loop: one thread, ZeroMQ sockets and descriptors, timers, signals.

Why not asyncio: the acceptor must spawn from the main thread, waits on pidfds and on ZeroMQ
sockets alike, and has no protocol that a coroutine would make shorter. A callback runs to its
end; it never waits. A callback that raises ends the loop: a broker in an unknown state does not
go on.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import zmq

Callback = Callable[[], None]
_POLL_MAX_MS: Final = 2**31 - 1


class Timer:
    """A callback to come; `cancel` may be called at any time, also afterwards."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """It won't be called any more."""
        self.callback = None


class Loop:
    """Runs callbacks until `stop`. Everything happens in the thread of `run`."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._callbacks: dict[Any, Callback] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._running = False
        self._wakeup = (-1, -1)
        self._on_signal: Callable[[int], None] = lambda _signum: None

    def watch(self, source: zmq.Socket[bytes] | int, callback: Callback) -> None:
        """Calls back whenever `source` (a socket, or a descriptor) can be read or hangs up."""
        self._poller.register(source, zmq.POLLIN)
        self._callbacks[source] = callback

    def unwatch(self, source: zmq.Socket[bytes] | int) -> None:
        """Forgets a source, before it is closed; unknown is fine."""
        if self._callbacks.pop(source, None) is not None:
            self._poller.unregister(source)

    def after(self, seconds: float, callback: Callback) -> Timer:
        """Calls back once, `seconds` from now at the earliest."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def signals(self, signums: set[signal.Signals], callback: Callable[[int], None]) -> None:
        """Calls back in the loop, never between two instructions, when a signal arrives."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup, self._on_signal = (read, write), callback
        for signum in signums:
            signal.signal(signum, _ignore)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self.watch(read, self._signalled)

    def run_with(self, poll: Callable[[int | None], None]) -> None:
        """Runs until `stop`, with timers only: `poll` waits for what there is besides, for at most
        so many milliseconds (None: for ever), and deals with it."""
        self._running = True
        while self._runs():
            wait_ms = self._run_timers()
            if self._runs():
                poll(wait_ms)

    def run(self) -> None:
        """Runs until `stop`."""
        self._running = True
        while self._runs():
            for source, _ in self._poller.poll(self._run_timers()):
                callback = self._callbacks.get(source)  # gone: an earlier callback unwatched it
                if callback is not None:
                    callback()
                if not self._runs():
                    return

    def stop(self) -> None:
        """Lets `run` return after the present callback."""
        self._running = False

    def close(self) -> None:
        """Gives the signals back; once."""
        if self._wakeup[0] >= 0:
            signal.set_wakeup_fd(-1)
            self.unwatch(self._wakeup[0])
            for fd in self._wakeup:
                os.close(fd)
            self._wakeup = (-1, -1)

    def _runs(self) -> bool:
        """A callback may have called `stop`, which a type checker does not see."""
        return self._running

    def _run_timers(self) -> int | None:
        """Runs what is due; returns milliseconds until the next, or None."""
        while self._timers:
            due, _, timer = self._timers[0]
            if timer.callback is None:
                heapq.heappop(self._timers)
                continue
            left_s = due - time.monotonic()
            if left_s > 0:
                return min(_POLL_MAX_MS, int(left_s * 1000) + 1)
            heapq.heappop(self._timers)
            timer.callback()
            if not self._runs():
                return 0
        return None

    def _signalled(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for signum in os.read(self._wakeup[0], 64):
                self._on_signal(signum)


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    """A handler of Python's, so that the wakeup descriptor is written."""


__all__ = ["Loop", "Timer"]
