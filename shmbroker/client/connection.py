"""A process's attachment to one broker: the attach socket, the control channel, the shared maps.

Owns: the Unix socket whose hang-up is the broker's death; one daemon thread that watches it and
attaches again; the ZeroMQ DEALER for control; the mapped park words (writable) and writer tables
(read-only). Producers and consumers of this process share one Connection.

How a wait ends when the broker dies. `epoch` is a word of this process, even while attached, odd
while not. The watcher raises it first and then wakes every park word (they are shared and
writable), so a C wait does: arm, fence, look at its condition and at `epoch`, sleep. It returns to
Python when `epoch` is no longer what it was when the wait began; Python calls `attached()`, which
blocks until the broker is back or raises BrokerGone. After that everything mapped may be new:
readers compare `epoch` and fetch `park` and `table()` again (what is unchanged keeps its Mapping).

Invariants: listeners are called on the watcher's thread, after the maps are right; nothing here
touches shared state in a forked child, which finds ForkedError instead.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson

from shmbroker._core import shm
from shmbroker._core.reader import EpochWord, Mapping, wake_all
from shmbroker.client.admin import Control
from shmbroker.client.attach import MESSAGE_BYTES, attach
from shmbroker.client.pressure import PressureSource, TablePressures
from shmbroker.errors import (
    BrokerGone,
    ClosedError,
    ForkedError,
    NoBroker,
    ShmbrokerError,
    TimedOut,
)
from shmbroker.places import Places

if TYPE_CHECKING:
    from shmbroker.client.metadata import Metadata
    from shmbroker.client.source import Source

# What a program may want to know and need not act upon, so nothing above INFO: what it must know is
# raised where it waits.
_log = logging.getLogger("shmbroker")

_RETRY_FIRST_S: Final = 0.005  # between two attempts to attach again, doubling up to …
_RETRY_LAST_S: Final = 0.1
_LAST_ATTEMPT_S: Final = 0.5  # for a broker that listens and does not answer, past reconnect_s


class Listener(Protocol):
    """Who wants to know; both are called on the watcher's thread and must return soon."""

    def on_gone(self) -> None:
        """The broker has hung up; waits have been woken."""

    def on_reattached(self, adopted: bool) -> None:
        """Attached again. `adopted`: the same rings go on; otherwise all objects are new."""


class TopicListener(Protocol):
    """Who wants to know of altered topics."""

    def on_topics(self, names: frozenset[str] | None) -> None:
        """These topics (None: any) have other settings or partitions, or are gone.

        On the watcher's thread, which must not ask the broker anything: return at once.
        """


class Connection:
    """See the module. Every method is thread-safe."""

    def __init__(self, places: Places, *, timeout: float, reconnect_s: float) -> None:
        """Attaches; NoBroker when nobody answers within `timeout` seconds."""
        self.places = places
        self.timeout = timeout
        self.reconnect_s = reconnect_s
        self.epoch = EpochWord()
        self.closing = False  # the broker said so: no new frames; its hang-up follows
        self.topic_listeners: weakref.WeakSet[TopicListener] = weakref.WeakSet()  # Metadata
        self._pid = os.getpid()
        self._forked = False
        self._closed = False
        self._lost = False  # reconnect_s has passed; the next call makes one more attempt
        self._changed = threading.Condition()
        self._map_lock = threading.Lock()
        self._tables: dict[int, Mapping] = {}
        self._pressures: TablePressures | None = None
        self._listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self._observers: list[Callable[[], None]] = []
        self.attachment, self._socket = attach(places, timeout, None)
        try:
            self.park = self._map("p", shm.KIND_PARK, writable=True)
        except (OSError, ValueError) as error:
            self._socket.close()
            raise NoBroker(places.instance, str(places.runtime_dir), str(error)) from None
        self.gone_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # readable while gone
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # for the watcher
        self._control = Control(self)
        self._watcher = threading.Thread(target=self._watch, name="shmbroker-watch", daemon=True)
        self._watcher.start()
        _live.add(self)

    # --- for every call ------------------------------------------------------------------------

    def check(self, what: str = "this client") -> None:
        """ForkedError in a forked child, ClosedError after close()."""
        if self._forked or os.getpid() != self._pid:
            raise ForkedError(what)
        if self._closed:
            raise ClosedError(f"{what} is closed")

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def attached(
        self, timeout: float | None = None, given_up: Callable[[], bool] | None = None
    ) -> int:
        """The present epoch (even); waits for the broker when it is gone.

        Raises BrokerGone when it isn't back within `reconnect_s`, TimedOut after `timeout` seconds,
        ClosedError when close() is called meanwhile or `given_up` is true (after `notify`).
        """
        epoch = self.look(again=True)
        if epoch is not None:
            return epoch
        with self._changed:
            ended = self._changed.wait_for(
                lambda: (
                    self._closed
                    or self._lost
                    or not self.epoch.value & 1
                    or (given_up is not None and given_up())
                ),
                timeout,
            )
        self.check()
        if given_up is not None and given_up():
            raise ClosedError("closed while the broker was gone")
        if not ended:
            raise TimedOut(f"the broker of instance {self.places.instance!r} is gone")
        epoch = self.look()
        return self.attached(timeout, given_up) if epoch is None else epoch

    def look(self, again: bool = False) -> int | None:
        """The present epoch (even), or None while the broker is gone; never waits.

        Raises BrokerGone when it did not come back within `reconnect_s`, unless `again` asks for
        one more attempt; ClosedError after close().
        """
        self.check()
        epoch = self.epoch.value
        if not epoch & 1:
            return epoch
        with self._changed:
            self.check()
            if not self._lost:
                return None
            if again:
                self._lost = False
                os.eventfd_write(self._wake_fd, 1)
                return None
        raise BrokerGone(
            f"the broker of instance {self.places.instance!r} (pid "
            f"{self.attachment.broker_pid}) went away and did not come back within "
            f"{self.reconnect_s:g} s; start it with: shmbroker up, then try again"
        )

    def on_change(self, fn: Callable[[], None]) -> None:
        """Calls `fn`, on whatever thread, whenever `look` may have something else to say, until
        the end of `close`. It must neither block nor raise."""
        self._observers.append(fn)

    def notify(self) -> None:
        """Has the waits in `attached` look at their `given_up` again."""
        with self._changed:
            self._changed.notify_all()
        for fn in self._observers:
            fn()

    def request(self, op: str, timeout: float | None = None, **args: Any) -> dict[str, Any]:
        """One control request and its answer; `timeout` in seconds, that of connect() by default.

        Raises the broker's own error; TimedOut; BrokerGone; OutcomeUnknown when the broker went
        away in the middle of something that may not be done twice.
        """
        self.check()
        return self._control.request(op, self.timeout if timeout is None else timeout, args)

    def listen(self, listener: Listener) -> None:
        """Tells `listener` of gone and reattached as long as somebody else holds it."""
        self._listeners.add(listener)

    def table(self, writer: int) -> Mapping:
        """The table of a writer, mapped read-only at the first call."""
        self.check()
        with self._map_lock:
            found = self._tables.get(writer)
            if found is None:
                found = self._tables[writer] = self._map(f"w{writer}", shm.KIND_WRITER)
            return found

    def open_object(self, suffix: str, kind: int, *, writable: bool = False) -> shm.ShmObject:
        """Opens `<prefix>-<suffix>`; FileNotFoundError when it is not there."""
        a = self.attachment
        name = f"{a.prefix}-{suffix}"
        return shm.open_existing(name, kind, a.boot_id, a.dir_id, writable=writable)

    def source(self, metadata: Metadata) -> Source:
        """Where one consumer's records come from."""
        from shmbroker.client.local_source import LocalSource  # not for who only produces

        return LocalSource(self, metadata)

    @property
    def pressures(self) -> PressureSource:
        """What is known of partitions' pressure here: out of the mapped tables, without asking."""
        with self._map_lock:
            if self._pressures is None:
                self._pressures = TablePressures(self)
            return self._pressures

    def wake_all(self) -> None:
        """Wakes every park word: all waits of this instance look at their conditions again."""
        wake_all(self.park.address)

    def close(self) -> None:
        """Hangs up and ends every wait with ClosedError; twice is fine."""
        if self._forked or os.getpid() != self._pid:
            return
        if sys.is_finalizing():  # daemon threads stand still and can't be joined; the exit hangs up
            self._closed = True
            return
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self.epoch.set(self.epoch.value | 1)
        self.notify()
        os.eventfd_write(self.gone_fd, 1)
        self.wake_all()
        os.eventfd_write(self._wake_fd, 1)
        if threading.current_thread() is not self._watcher:
            self._watcher.join()
        self._control.close()
        self._socket.close()
        os.close(self._wake_fd)
        os.close(self.gone_fd)

    # --- maps -----------------------------------------------------------------------------

    def _map(self, suffix: str, kind: int, *, writable: bool = False) -> Mapping:
        found = self.open_object(suffix, kind, writable=writable)
        try:
            return Mapping(found.name, found.fileno(), writable=writable)
        finally:
            found.close()

    # --- the watcher's thread ------------------------------------------------------------------

    def _watch(self) -> None:
        while self._until_hangup():
            self._become_gone()
            if not self._return():
                return

    def _until_hangup(self) -> bool:
        """Sleeps until the broker hangs up; False on close()."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.register(self._wake_fd, select.POLLIN)
        while not self._closed:
            for fd, _ in poller.poll():
                if fd == self._wake_fd:
                    _drain(self._wake_fd)
                    continue
                try:
                    message = self._socket.recv(MESSAGE_BYTES)
                except OSError:
                    message = b""
                if not message:
                    return True
                self._told(orjson.loads(message))
        return False

    def _told(self, event: dict[str, Any]) -> None:
        if event.get("event") == "closing":
            self.closing = True
        elif event.get("event") == "topics":
            names = event.get("names")
            self._tell_topics(None if names is None else frozenset(names))

    def _tell_topics(self, names: frozenset[str] | None) -> None:
        for listener in list(self.topic_listeners):
            listener.on_topics(names)

    def _become_gone(self) -> None:
        with self._changed:
            if self._closed:
                return
            self.epoch.set(self.epoch.value + 1)
        os.eventfd_write(self.gone_fd, 1)
        self.wake_all()
        self._socket.close()
        self.notify()
        _log.info(
            "the broker of instance %r (pid %d) %s; attaching again for up to %g s",
            self.places.instance,
            self.attachment.broker_pid,
            "has stopped" if self.closing else "is gone",
            self.reconnect_s,
        )
        for listener in list(self._listeners):
            listener.on_gone()

    def _return(self) -> bool:
        """Attaches again; False on close(). Tries until `reconnect_s`, later once a call."""
        pause, deadline = _RETRY_FIRST_S, time.monotonic() + self.reconnect_s
        while not self._closed:
            try:
                self._reattach(deadline)
                return not self._closed
            except (ShmbrokerError, OSError, ValueError):
                pass  # not there yet, or not ready; what is final shows as BrokerGone in the end
            left = deadline - time.monotonic()
            if left <= 0:
                with self._changed:
                    self._lost = True
                self.notify()
            wait = select.poll()
            wait.register(self._wake_fd, select.POLLIN)
            wait.poll(None if left <= 0 else min(pause, left) * 1000)
            _drain(self._wake_fd)
            pause = min(2 * pause, _RETRY_LAST_S)
        return False

    def _reattach(self, deadline: float) -> None:
        before = self.attachment
        patience = min(self.timeout, max(_LAST_ATTEMPT_S, deadline - time.monotonic()))
        try:
            attachment, sock = attach(self.places, patience, before)
        except NoBroker:
            raise
        except ShmbrokerError:  # the broker knows this client no more
            attachment, sock = attach(self.places, patience, None)
        self.attachment = attachment
        try:
            with self._map_lock:
                same = self.park.current and attachment.prefix == before.prefix
                if not same:
                    self.park = self._map("p", shm.KIND_PARK, writable=True)
                self._tables = {w: t for w, t in self._tables.items() if same and t.current}
        except BaseException:
            self.attachment = before
            sock.close()
            raise
        adopted = same and attachment.adopted
        self._control.reset()
        with self._changed:
            if self._closed:
                sock.close()
                return
            self._socket, self.closing = sock, False
            _drain(self.gone_fd)
            self.epoch.set(self.epoch.value + 1)
            self._lost = False
        self.notify()
        _log.info(
            "attached again to the broker of instance %r (pid %d)",
            self.places.instance,
            attachment.broker_pid,
        )
        for listener in list(self._listeners):
            listener.on_reattached(adopted)
        self._tell_topics(None)  # what was altered meanwhile, nobody has told us

    def _after_fork(self) -> None:
        """In the child: a copy of the socket would hide the parent's death from the broker."""
        self._forked = True
        fd = self._socket.detach()
        if fd >= 0:
            os.close(fd)


def _drain(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(fd)


_live: weakref.WeakSet[Connection] = weakref.WeakSet()


def _in_child() -> None:
    for connection in list(_live):
        connection._after_fork()


os.register_at_fork(after_in_child=_in_child)

__all__ = ["Connection", "Listener", "TopicListener"]
