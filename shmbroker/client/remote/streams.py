"""The receiver: one thread of a client's that owns all its streams, for any number of consumers.

Owns: the connections to reader processes and which subscription is on which; heartbeats, credit,
and what happens when a connection ends: its subscriptions are asked for on another one, behind the
last whole frame that came, with that batch's leader epoch. Receiving itself is C without the GIL
(`_core/inlet.h`); this thread takes the GIL for credit, for what is said besides, and for timers.

`open`, `drop` and `close` may come from any thread, also from the garbage collector in this one:
they only put a command and ring. In a forked child nothing runs; its copies of the sockets go.

Invariants: a full feed holds up nobody, since what comes has room; a subscription that can't be
placed for `reconnect_s` seconds fails with what is in the way, and is retried by the next read.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

from shmbroker._core import feed as core
from shmbroker._core.reader import monotonic_ns
from shmbroker.client.remote.data_port import DataPort
from shmbroker.client.remote.stream_link import StreamLink
from shmbroker.client.remote.subscription import Subscription
from shmbroker.errors import BrokerGone, ShmbrokerError

_log = logging.getLogger("shmbroker")

LINKS: Final = 4  # connections of a client, until they are full: more than one reader may serve it
RINGS_BYTES: Final = 256 << 20  # of all feeds together; none grows past it but for one large batch
RETRY_FIRST_S: Final = 0.005  # between two attempts to connect, doubling up to …
RETRY_LAST_S: Final = 0.5
IDLE_S: Final = 5.0  # that a connection without subscriptions stays
_CLOSE_S: Final = 1.0


class Bell:
    """An eventfd that lives as long as anybody who may ring it."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __del__(self) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        """For poll, and for who rings from C."""
        return self._fd

    def ring(self) -> None:
        """Has the thread look."""
        with contextlib.suppress(BlockingIOError):  # it will
            os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """It looks."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)


class Streams:
    """See the module. Made with the first consumer of a client."""

    def __init__(self, port: Callable[[], DataPort], reconnect_s: float) -> None:
        """`port` tells where streams are asked for now; it is called in the thread, often."""
        self._port, self._reconnect_s = port, reconnect_s
        self.bell = Bell()  # rung by feeds, and for commands
        self.numbers = itertools.count()  # of feeds: which park words they ring
        self._commands: deque[tuple[bool, Subscription]] = deque()
        self._links: list[StreamLink] = []
        self._all: set[Subscription] = set()
        self._placeless: deque[Subscription] = deque()
        self._rings_bytes = 0
        self._next_try = 0.0  # monotonic: no connection is tried before
        self._pause_s = RETRY_FIRST_S
        self._lost_since = 0.0  # monotonic; 0: the broker answers
        self._why: Exception | None = None  # the last connection ended, or was refused
        self._turns = itertools.count()  # endpoints are tried in turn
        self._closed = self._forked = False
        self._broken: ShmbrokerError | None = None  # the thread ended, which it must not
        self._thread = threading.Thread(target=self._run, name="shmbroker-streams", daemon=True)
        self._thread.start()
        _live.add(self)

    # --- any thread ----------------------------------------------------------------------------

    def open(self, wanted: Subscription) -> None:
        """Fills its feed from now on, whatever happens to connections."""
        self._commands.append((True, wanted))
        self.bell.ring()
        if self._broken is not None:
            wanted.fail(self._broken)

    def drop(self, unwanted: Subscription) -> None:
        """Nobody reads it any more."""
        unwanted.dropped = True
        self._commands.append((False, unwanted))
        self.bell.ring()

    def retry(self) -> None:
        """The broker is back: doesn't wait for the next attempt."""
        self._next_try = 0.0
        self.bell.ring()

    def close(self) -> None:
        """Hangs up; nothing comes any more. Waits for at most a second; twice is fine."""
        self._closed = True
        self.bell.ring()
        if threading.current_thread() is not self._thread and not self._forked:
            self._thread.join(_CLOSE_S)

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the program's threads'
        try:
            while not self._closed:
                self._obey()
                self._place()
                self._wait()
        except Exception:
            _log.exception("the receiver of streams failed")
            self._broken = ShmbrokerError(
                "the receiver of streams failed, which is a bug: see the log"
            )
            for what in self._all.union(w for wanted, w in self._commands if wanted):
                what.fail(self._broken)
        finally:
            for link in self._links:
                link.close()
                link.let_go()
            for what in [*self._all, *(w for _, w in self._commands)]:
                what.feed.free()
            self._links.clear()
            self._placeless.clear()
            self._commands.clear()
            self._all.clear()  # no ring stays for the garbage collector

    def _wait(self) -> None:
        """Receives until something is due, and sees to it."""
        links = list(self._links)
        due_s = min([self._due_s(), *(link.due_s() for link in links)])
        before = time.monotonic()
        found = core.wait(
            self.bell.fileno(),
            [link.watched() for link in links],
            monotonic_ns() + int(due_s * 1e9),
        )
        slept_s = min(time.monotonic() - before, due_s + 0.1)  # what we overslept is nobody's
        for link, what in zip(links, found[1:], strict=True):
            try:
                link.turn(what)
                link.passed(slept_s)
                if link.empty_s > IDLE_S and len(self._links) > 1:
                    self._links.remove(link)
                    link.close()
            except (OSError, ShmbrokerError) as error:
                self._lost(link, error)
        if found[0]:
            self.bell.clear()
            self._grant()

    def _due_s(self) -> float:
        if not self._placeless or any(not link.open for link in self._links):
            return 3600.0
        return max(0.0, self._next_try - time.monotonic())

    def _obey(self) -> None:
        while self._commands:
            wanted, what = self._commands.popleft()
            if wanted and not what.dropped:
                self._all.add(what)
                self._placeless.append(what)
            elif not wanted:
                self._forget(what)
                what.feed.free()

    def _forget(self, what: Subscription) -> None:
        self._all.discard(what)
        self._rings_bytes -= what.counted_bytes
        what.counted_bytes = 0
        for link in self._links:
            if link.subscriptions.get(what.number) is what:
                link.unsubscribe(what)

    # --- which subscription is on which connection ---------------------------------------------

    def _place(self) -> None:
        """Asks for what is on no connection, as far as there is one; or makes one."""
        while self._placeless:
            wanted = self._placeless[0]
            if wanted not in self._all:
                self._placeless.popleft()
                continue
            usable = [link for link in self._links if link.open and link.room]
            emptiest = min(usable, key=lambda link: len(link.subscriptions), default=None)
            if emptiest is None or (emptiest.subscriptions and len(self._links) < LINKS):
                self._connect()
            if emptiest is None or any(not link.open for link in self._links):
                return
            self._placeless.popleft()
            try:
                emptiest.subscribe(wanted, self._spare())
            except OSError as error:
                self._lost(emptiest, error)

    def _connect(self) -> None:
        now = time.monotonic()
        if any(not link.open for link in self._links) or now < self._next_try:
            return
        try:
            port = self._port()
            if not port.endpoints:
                raise BrokerGone("the broker offers no data port")
            endpoint = port.endpoints[next(self._turns) % len(port.endpoints)]
            self._links.append(StreamLink(port, endpoint, self._answered))
        except (OSError, ValueError, ShmbrokerError) as error:
            self._failed(error)

    def _answered(self) -> None:
        self._pause_s, self._lost_since, self._why = RETRY_FIRST_S, 0.0, None

    def _lost(self, link: StreamLink, error: Exception) -> None:
        """A connection ended: what was on it goes elsewhere."""
        if link in self._links:
            self._links.remove(link)
        link.close()
        for what in link.subscriptions.values():
            what.number = 0
            self._placeless.append(what)
        if link.subscriptions:
            _log.info("the stream from %s ended: %s; connecting again", link.endpoint, error)
        link.subscriptions.clear()
        self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Tries again after a while, which grows; gives up after reconnect_s."""
        now = time.monotonic()
        self._why = error
        self._lost_since = (self._lost_since or now) if self._placeless else 0.0
        self._next_try = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, RETRY_LAST_S)
        wanting = self._placeless and not any(link.open for link in self._links)
        if wanting and now - self._lost_since >= self._reconnect_s:
            self._fail_all(self._gone())
            self._answered()

    def _gone(self) -> ShmbrokerError:
        if isinstance(self._why, ShmbrokerError) and not self._why.retriable:
            return self._why  # a wrong token, another version: that is what must be mended
        return BrokerGone(
            f"no stream to be had for {self._reconnect_s:g} s ({self._why}); look on the broker's "
            "host with: shmbroker status, then try again"
        )

    def _fail_all(self, error: ShmbrokerError) -> None:
        """Of those that are on no connection."""
        while self._placeless:
            what = self._placeless.popleft()
            if what in self._all:
                self._forget(what)
                what.fail(error)

    # --- credit --------------------------------------------------------------------------------

    def _grant(self) -> None:
        for link in list(self._links):
            try:
                for what in [s for s in link.subscriptions.values() if s.feed.rang()]:
                    link.grant(what, self._spare())
                    self._rings_bytes += what.feed.capacity - what.counted_bytes
                    what.counted_bytes = what.feed.capacity
            except OSError as error:
                self._lost(link, error)

    def _spare(self) -> int:
        return max(0, RINGS_BYTES - self._rings_bytes)

    def _after_fork(self) -> None:
        self._forked = True
        for link in self._links:
            link.forked()


_live: weakref.WeakSet[Streams] = weakref.WeakSet()


def _in_child() -> None:
    for streams in list(_live):
        streams._after_fork()


os.register_at_fork(after_in_child=_in_child)

__all__ = ["LINKS", "Streams"]
