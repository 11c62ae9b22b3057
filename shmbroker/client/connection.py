"""A process's attachment to one broker: whether it is there, and what ends waits when it is not.

Owns: `epoch` and what follows from it, and the one daemon thread, the watcher, in which a
Connection notices that the broker went and finds it again. How it does, and where park words,
tables and rings are, is its subclasses': on this host they are mapped (`local_connection.py`), of a
broker elsewhere they are this process's own (`remote/connection.py`). Producers and consumers of
this process share one Connection, and see no difference.

How a wait ends when the broker dies. `epoch` is a word of this process, even while attached, odd
while not. The watcher raises it first and then wakes every park word, so a C wait does: arm, fence,
look at its condition and at `epoch`, sleep. It returns to Python when `epoch` is no longer what it
was when the wait began; Python calls `attached()`, which blocks until the broker is back or raises
BrokerGone. After that everything mapped may be new: readers compare `epoch` and fetch `park` and
`table()` again (what is unchanged keeps its Mapping).

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

from shmbroker._core.reader import EpochWord, Mapping, wake_all
from shmbroker.client.admin import Control
from shmbroker.errors import BrokerGone, ClosedError, ForkedError, ShmbrokerError, TimedOut

if TYPE_CHECKING:
    import zmq

    from shmbroker._core import shm
    from shmbroker.client.groups.heart import Heart
    from shmbroker.client.metadata import Metadata
    from shmbroker.client.pressure import PressureSource
    from shmbroker.client.source import Source

# What a program may want to know and need not act upon, so nothing above INFO: what it must know is
# raised where it waits.
_log = logging.getLogger("shmbroker")

_RETRY_FIRST_S: Final = 0.005  # between two attempts to attach again, doubling up to …
_RETRY_LAST_S: Final = 0.1


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


class Identity(Protocol):
    """Who this client is to its broker, and what that said of itself; a new one each time."""

    @property
    def client(self) -> int: ...
    @property
    def token(self) -> str: ...
    @property
    def instance(self) -> str: ...


class Connection:
    """See the module. Every method is thread-safe."""

    park: Mapping  # the park words, writable
    ring_bytes: int = 1 << 20  # of an ingress ring, before a batch needs a larger one
    batch_bytes: int = 128 << 10  # of a batch under load; 64 to 256 KiB measure alike
    frames_ahead: int = 0  # unanswered frames behind which a lone record still leaves at once
    attachment: Any  # an Identity, with what else the subclass's broker tells

    def __init__(self, *, timeout: float, reconnect_s: float) -> None:
        """The subclass then attaches and calls `_begin`."""
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
        self._listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self._observers: list[Callable[[], None]] = []
        self._controls: list[Control] = []
        self._heart: Heart | None = None

    def _begin(self) -> None:
        """Attached: the watcher starts."""
        self.gone_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # readable while gone
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # for the watcher
        self._control = self.open_control()
        self._watcher = threading.Thread(target=self._watch, name="shmbroker-watch", daemon=True)
        self._watcher.start()
        _live.add(self)

    # --- the subclass's ------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """Where other processes reach the same broker: connect(address)."""
        raise NotImplementedError

    @property
    def broker(self) -> str:
        """The broker in a sentence: which it is."""
        raise NotImplementedError

    @property
    def way_back(self) -> str:
        """What is to be done about a broker that is gone, in a sentence."""
        raise NotImplementedError

    @property
    def control_address(self) -> str:
        """Of the control channel, as ZeroMQ writes it."""
        raise NotImplementedError

    def prepare(self, sock: zmq.Socket[bytes], endpoint: str) -> None:
        """Sets what a socket to the broker needs before it connects there."""

    def table(self, writer: int) -> Mapping:
        """The table of a writer, mapped."""
        raise NotImplementedError

    def open_object(self, suffix: str, kind: int, *, writable: bool = False) -> shm.ShmObject:
        """Opens the object of that name; FileNotFoundError when it is not there."""
        raise NotImplementedError

    def keeps(self, name: str, inode: int) -> bool:
        """Whether the broker still has an ingress ring that was opened under this name."""
        raise NotImplementedError

    def source(self, metadata: Metadata) -> Source:
        """Where one consumer's records come from."""
        raise NotImplementedError

    @property
    def pressures(self) -> PressureSource:
        """What is known of partitions' pressure here, without asking."""
        raise NotImplementedError

    def _until_gone(self) -> bool:
        """Does what the watcher does while the broker is there; False on close()."""
        raise NotImplementedError

    def _hang_up(self) -> None:
        """The broker is gone, or we are: drops what leads to it. In the watcher, or after it."""
        raise NotImplementedError

    def _find_again(self, deadline: float) -> bool:
        """Attaches once more, `deadline` by the monotonic clock; whether the same rings go on.

        Raises ShmbrokerError, OSError or ValueError when it is not there yet."""
        raise NotImplementedError

    def _forked_child(self) -> None:
        """In the child: lets go of what would keep the parent's end from being seen."""
        raise NotImplementedError

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
            raise TimedOut(f"{self.broker} is gone")
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
            f"{self.broker} went away and did not come back within {self.reconnect_s:g} s; "
            f"{self.way_back}, then try again"
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

    def open_control(self) -> Control:
        """One more control channel, whose requests wait for none of the others; ours to close."""
        control = Control(self)
        self._controls.append(control)
        return control

    @property
    def heart(self) -> Heart:
        """What keeps this process's consumers in their groups; made when it is first needed."""
        with self._changed:
            self.check()
            if self._heart is None:
                from shmbroker.client.groups.heart import Heart  # not for who is in no group

                self._heart = Heart(self)
            return self._heart

    def request(
        self,
        op: str,
        timeout: float | None = None,
        control: Control | None = None,
        **args: Any,
    ) -> dict[str, Any]:
        """One control request and its answer; `timeout` in seconds, that of connect() by default.

        `control`: another channel than the one that all share.

        Raises the broker's own error; TimedOut; BrokerGone; OutcomeUnknown when the broker went
        away in the middle of something that may not be done twice.
        """
        self.check()
        timeout = self.timeout if timeout is None else timeout
        return (control or self._control).request(op, timeout, args)

    def listen(self, listener: Listener) -> None:
        """Tells `listener` of gone and reattached as long as somebody else holds it."""
        self._listeners.add(listener)

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
        if self._heart is not None:
            self._heart.close()
        for control in self._controls:
            control.close()
        self._hang_up()
        os.close(self._wake_fd)
        os.close(self.gone_fd)

    # --- the watcher's thread ------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            while self._until_gone():
                self._become_gone()
                if not self._return():
                    return
        except Exception:
            _log.exception("the watcher of %s failed; this is a bug", self.broker)
            if not self.epoch.value & 1:
                self._become_gone()
            with self._changed:
                self._lost = True
            self.notify()

    def _told(self, event: dict[str, Any]) -> None:
        if event.get("event") == "closing":
            self.closing = True
        elif event.get("event") == "topics":
            names = event.get("names")
            self._tell_topics(None if names is None else frozenset(names))
        elif event.get("event") == "group" and self._heart is not None:
            self._heart.on_news(event)

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
        self._hang_up()
        self.notify()
        _log.info(
            "%s %s; attaching again for up to %g s",
            self.broker,
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
                adopted = self._find_again(deadline)
                self._come_back(adopted)
                return not self._closed
            except (ShmbrokerError, OSError, ValueError) as error:
                _log.debug("%s: %s", self.broker, error)  # what is final shows as BrokerGone
            left = deadline - time.monotonic()
            if left <= 0:
                with self._changed:
                    self._lost = True
                self.notify()
            wait = select.poll()
            wait.register(self._wake_fd, select.POLLIN)
            wait.poll(None if left <= 0 else min(pause, left) * 1000)
            drain(self._wake_fd)
            pause = min(2 * pause, _RETRY_LAST_S)
        return False

    def _come_back(self, adopted: bool) -> None:
        for control in self._controls:
            control.reset()
        with self._changed:
            if self._closed:
                return
            self.closing = False
            drain(self.gone_fd)
            self.epoch.set(self.epoch.value + 1)
            self._lost = False
        self.notify()
        _log.info("attached again to %s", self.broker)
        for listener in list(self._listeners):
            listener.on_reattached(adopted)
        self._tell_topics(None)  # what was altered meanwhile, nobody has told us

    def _after_fork(self) -> None:
        self._forked = True
        self._forked_child()


def drain(fd: int) -> None:
    """Takes what an eventfd shows."""
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(fd)


_live: weakref.WeakSet[Connection] = weakref.WeakSet()


def _in_child() -> None:
    for connection in list(_live):
        connection._after_fork()


os.register_at_fork(after_in_child=_in_child)

__all__ = ["Connection", "Identity", "Listener", "TopicListener", "drain"]
