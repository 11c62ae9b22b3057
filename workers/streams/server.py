"""All streams of one reader process: doors, peers, partitions, and whose turn it is.

Owns: one epoll set; the peers, in turns of TURN_BYTES each; the Watcher, whose thread waits for all
partitions at once and writes an eventfd; the Jobs.

Invariants: everything runs in the thread of `turn`, which waits in one place; a peer costs the
others at most its turn.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from shmbroker._core import reader as core
from shmbroker.errors import AuthenticationFailed, QuotaExceeded, ShmbrokerError
from shmbroker.wire.native.greeting import STREAM_MAGIC, Welcome, encode_refusal
from shmbroker.wire.native.limits import SUBSCRIPTIONS
from shmbroker.workers.logs import get_logger
from shmbroker.workers.streams.jobs import Jobs
from shmbroker.workers.streams.partition import Partition
from shmbroker.workers.streams.peer import Peer
from shmbroker.workers.streams.quiet import QUIET_AFTER_S, QUIET_PEERS, QUIET_S, Quiet

if TYPE_CHECKING:
    from shmbroker.client.client import Client
    from shmbroker.client.metadata import TopicInfo
    from shmbroker.config import ListenSection
    from shmbroker.control.authorized import DataTokens
    from shmbroker.workers.streams.door import Door
    from shmbroker.workers.streams.subscription import Subscription

_EVENTS: Final = 256
_OPEN_SUBSCRIPTIONS: Final = 512  # that may have segments open at a time, two descriptors each
_SHOWN: Final = 50  # peers in `status`
_log = get_logger("shmbroker.reader")


class After(Protocol):
    """The outer loop's timers."""

    def __call__(self, seconds: float, callback: Callable[[], None], /) -> Any:
        """Calls back once, in the thread of `turn`."""


class Streams:
    """`doors` are its own from now on; `close` it. `on_gone` is called when the broker is gone."""

    def __init__(
        self,
        client: Client,
        doors: list[Door],
        tokens: DataTokens,
        listen: ListenSection,
        after: After,
        on_gone: Callable[[], None],
    ) -> None:
        self.client: Final = client
        self.after: Final = after
        self.jobs: Final = Jobs()
        self.topics: dict[str, TopicInfo] = {}  # by id
        self._doors = doors
        self._tokens, self._listen, self._on_gone = tokens, listen, on_gone
        self._epoll = select.epoll()
        self._fired_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._callbacks: dict[int, Callable[[], None]] = {
            self._fired_fd: self._fired,
            self.jobs.fd: self.jobs.deliver,
        }
        self._watcher = core.Watcher(self._fired_fd)
        self._peers: dict[int, Peer] = {}
        self._interest: dict[int, int] = {}
        self._quiet = Quiet()
        self._ready: dict[Peer, None] = {}
        self._partitions: dict[tuple[str, int, bool], Partition] = {}
        self._open: dict[Subscription, None] = {}  # those with open segments, oldest first
        self._closing = False
        self._ticked = time.monotonic()
        self._counts = {"accepted": 0, "refused": 0, "dropped": 0, "sent_bytes": 0}
        for door in doors:
            self._callbacks[door.fileno()] = partial(self._accept, door)
        for fd in self._callbacks:
            self._epoll.register(fd, select.EPOLLIN)
        client.metadata.listen(self)
        client.connection.on_change(self._attachment_changed)
        self._tick_s = min(listen.heartbeat_ms, listen.dead_ms / 3) / 3000
        after(self._tick_s, self._tick)

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls back in `turn` when `fd` can be read, once for each edge."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    # --- turns ---------------------------------------------------------------------------------

    def turn(self, wait_ms: int | None = None) -> None:
        """Waits until there is something to do (None: for ever), and does some of it."""
        wait_s = 0 if self._ready else None if wait_ms is None else wait_ms / 1000
        found = self._epoll.poll(wait_s, _EVENTS)
        now = time.monotonic()
        for fd, events in found:
            peer = self._peers.get(fd)
            if peer is not None:
                self._event(peer, events, now)
            elif (callback := self._callbacks.get(fd)) is not None:
                callback()
        for peer in list(self._ready):
            self._serve(peer, now)

    def _poll_quiet(self) -> None:
        """Looks what those say of whom nothing is expected but heartbeats."""
        now = time.monotonic()
        for fd in self._quiet.poll():
            peer = self._peers[fd]
            self._event(peer, select.EPOLLIN, now)
            if peer.active == now and self._quiet.remove(fd):
                self._epoll.register(fd, self._interest[fd])
        if self._quiet and not self._closing:
            self.after(QUIET_S, self._poll_quiet)

    def _quieten(self, now: float) -> None:
        if len(self._peers) < QUIET_PEERS:
            return
        was_empty = not self._quiet
        for fd, peer in self._peers.items():
            idle = now - peer.active > QUIET_AFTER_S and self._interest[fd] == select.EPOLLIN
            if idle and self._quiet.add(fd):
                self._epoll.unregister(fd)
        if was_empty and self._quiet:
            self.after(QUIET_S, self._poll_quiet)

    def _fired(self) -> None:
        """Of the Watcher: somebody's wait is over."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fired_fd)
        for partition in list(self._partitions.values()):
            partition.look()

    def _event(self, peer: Peer, events: int, now: float) -> None:
        try:
            if events & ~select.EPOLLOUT:  # readable, or gone, which reading tells
                if not peer.reads and events & (select.EPOLLHUP | select.EPOLLERR):
                    self.drop(peer)
                    return
                peer.readable(now)
            if events & select.EPOLLOUT:
                peer.writable()
        except OSError:  # it is gone
            self.drop(peer)
        else:
            self._update(peer)

    def _serve(self, peer: Peer, now: float) -> None:
        self._ready.pop(peer, None)
        if peer.transport.fileno() not in self._peers:
            return
        if self._quiet.remove(peer.transport.fileno()):
            self._epoll.register(peer.transport.fileno(), self._interest[peer.transport.fileno()])
        before = peer.sent_bytes
        try:
            if peer.serve(now):
                self._ready[peer] = None
        except ShmbrokerError as error:  # Lost, or a batch that fails its checks in a frame's rest
            _log.warning("a stream was cut", peer=peer.where, name=peer.name, reason=str(error))
            self.drop(peer)
        except OSError:  # it is gone
            self.drop(peer)
        else:
            self._update(peer)
        self._counts["sent_bytes"] += peer.sent_bytes - before

    def ready(self, peer: Peer) -> None:
        """It has something to send."""
        self._ready[peer] = None

    def _update(self, peer: Peer) -> None:
        """Waits for what the peer can make use of."""
        fd = peer.transport.fileno()
        wanted = (select.EPOLLIN if peer.reads else 0) | (select.EPOLLOUT if peer.stalled else 0)
        if fd in self._peers and self._interest[fd] != wanted:
            self._interest[fd] = wanted
            if self._quiet.remove(fd):
                self._epoll.register(fd, wanted)
            else:
                self._epoll.modify(fd, wanted)

    # --- peers ---------------------------------------------------------------------------------

    def admits(self, token: bytes) -> bool:
        """Whether that is a token that lets in now."""
        return self._tokens.admits(token)

    def welcome(self) -> Welcome:
        """For those whom it lets in."""
        return Welcome(
            self.client.connection.attachment.dir_id,
            limit=SUBSCRIPTIONS,
            heartbeat_ms=self._listen.heartbeat_ms,
            dead_ms=self._listen.dead_ms,
        )

    def _accept(self, door: Door) -> None:
        try:
            came = door.accept()
        except OSError as error:  # no descriptors: some must go first
            _log.error("no connection can be accepted", at=door.at, reason=str(error))
            self._close_idle_files(most=0)
            self._epoll.modify(door, 0)
            self.after(1.0, lambda: self._accept_again(door))
            return
        for connection, where in came:
            if len(self._peers) >= self._listen.max_connections:
                self._counts["refused"] += 1
                full = QuotaExceeded(
                    f"this reader has {len(self._peers)} connections, as many as "
                    "listen.max_connections allows: close some, or raise it"
                )
                door.turn_away(connection, encode_refusal(STREAM_MAGIC, full))
                continue
            self._counts["accepted"] += 1
            peer = Peer(self, door.transport(connection), where)
            number = peer.transport.fileno()
            self._peers[number], self._interest[number] = peer, select.EPOLLIN
            self._epoll.register(number, select.EPOLLIN)

    def _accept_again(self, door: Door) -> None:
        if door in self._doors:
            self._epoll.modify(door, select.EPOLLIN)

    def refused(self, peer: Peer, error: ShmbrokerError) -> None:
        """It said what must not be said, or may not come in."""
        self._counts["refused"] += 1
        _log.info("a stream was refused", peer=peer.where, name=peer.name, reason=str(error))

    def drop(self, peer: Peer) -> None:
        """Ends a connection at once; twice is fine."""
        fd = peer.transport.fileno()
        if self._peers.get(fd) is not peer:
            return
        self._counts["dropped"] += 1
        del self._peers[fd], self._interest[fd]
        self._ready.pop(peer, None)
        if not self._quiet.remove(fd):
            self._epoll.unregister(fd)
        peer.close()

    def _tick(self) -> None:
        """Heartbeats, silence, keys that were revoked, and segments that nobody reads on."""
        if self._closing:
            return
        now = time.monotonic()
        away = now - self._ticked > 3 * self._tick_s  # stopped, or starved: silence means nothing
        self._ticked = now
        heartbeat_s, dead_s = self._listen.heartbeat_ms / 1e3, self._listen.dead_ms / 1e3
        for peer in list(self._peers.values()):
            try:
                peer.tick(now, heartbeat_s, dead_s, away)
            except OSError:
                self.drop(peer)
        if self._tokens.has_changed():
            self._look_at_tokens()
        self._close_idle_files(_OPEN_SUBSCRIPTIONS)
        self._quieten(now)
        self.after(self._tick_s, self._tick)

    def _look_at_tokens(self) -> None:
        for peer in list(self._peers.values()):
            if peer.token is not None and not self.admits(peer.token):
                self.refused(peer, AuthenticationFailed("its key is authorised no more"))
                self.drop(peer)

    # --- partitions ----------------------------------------------------------------------------

    def partition(self, topic: TopicInfo, number: int, appended: bool) -> Partition:
        """The partition for those who see that much of it."""
        key = (topic.id, number, appended)
        found = self._partitions.get(key)
        if found is None:
            found = self._partitions[key] = Partition(
                self.client, self._watcher, self.jobs, topic, number, appended
            )
        return found

    def left(self, partition: Partition) -> None:
        """Somebody left it: it goes with the last."""
        if not partition.users:
            reader = partition.reader
            if self._partitions.pop((partition.topic_id, reader.partition, reader.appended), None):
                partition.close()

    def ask_topics(self, told: Callable[[Exception | None], None]) -> None:
        """Asks what topics there are, then calls `told`."""

        def learned(found: Any, error: Exception | None) -> None:
            if error is None:
                self.topics = {topic.id: topic for topic in found.values()}
            told(error)

        self.jobs.ask(self.client.metadata.all, learned)

    def on_topics(self, names: frozenset[str] | None) -> None:
        """Of the connection's thread: topics were altered or deleted."""
        if not self._closing:
            self.jobs.tell(lambda: self._altered(names))

    def _altered(self, names: frozenset[str] | None) -> None:
        self.topics = {
            key: topic
            for key, topic in self.topics.items()
            if names is not None and topic.name not in names
        }
        for partition in list(self._partitions.values()):
            if names is None or partition.reader.topic in names:
                partition.ask_place()

    def _attachment_changed(self) -> None:
        """Of any thread."""
        if not self._closing:
            self.jobs.tell(self._look_at_broker)

    def _look_at_broker(self) -> None:
        if self.client.connection.epoch.value & 1:
            self._on_gone()

    # --- segments that are open ----------------------------------------------------------------

    def files_opened(self, subscription: Subscription) -> None:
        """It reads from files; where many do, the one that did so first gives its own back."""
        self._open[subscription] = None
        if len(self._open) > _OPEN_SUBSCRIPTIONS:
            oldest = next(iter(self._open))
            if oldest.peer.is_sending(oldest):
                self._open[oldest] = self._open.pop(oldest)
            else:
                oldest.close_files()

    def files_closed(self, subscription: Subscription) -> None:
        """It doesn't any more."""
        self._open.pop(subscription, None)

    def _close_idle_files(self, most: int) -> None:
        for subscription in list(self._open):
            used, subscription.files_used = subscription.files_used, False
            if not subscription.peer.is_sending(subscription) and (
                not used or len(self._open) > most
            ):
                subscription.close_files()

    # --- the end -------------------------------------------------------------------------------

    def stop_accepting(self) -> None:
        """Nobody comes any more; those who are here are told that this process ends."""
        for door in self._doors:
            self._epoll.unregister(door)
            del self._callbacks[door.fileno()]
            door.close()
        self._doors = []
        for peer in list(self._peers.values()):
            peer.close_down()

    @property
    def peers(self) -> int:
        """How many are connected."""
        return len(self._peers)

    def close(self) -> None:
        """Cuts what is left."""
        self._closing = True
        for peer in list(self._peers.values()):
            self.drop(peer)
        for door in self._doors:
            door.close()
        self.jobs.close()
        self._watcher.close()
        self._quiet.close()
        self._epoll.close()
        os.close(self._fired_fd)

    def describe(self) -> dict[str, Any]:
        """For `status`: what it has done, and who waits for what."""
        now = time.monotonic()
        peers = [peer.describe(now) for peer in list(self._peers.values())[:_SHOWN]]
        subscriptions = sum(len(peer.subscriptions) for peer in self._peers.values())
        return self._counts | {
            "connections": len(self._peers),
            "subscriptions": subscriptions,
            "partitions": len(self._partitions),
            "open_segments_of": len(self._open),
            "peers": peers,
        }


__all__ = ["After", "Streams"]
