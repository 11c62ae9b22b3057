"""The sessions of remote producers: what each has in flight, its credit, its answers.

Owns: the peers by their ZeroMQ identities, and the way of a message from the ROUTER sockets into
the relay and of an outcome back. One thread, which waits for nothing but its poller: a producer
whose partition's ring is full has its batches in the relay's line, gets no more credit for that
writer, and holds nobody else up.

Memory: what a session may have here is its credit for each writer and one batch more. A session
begins with little credit (FIRST_BYTES a writer) and has more where it sends; all sessions together
share MEMORY_BYTES, so the more there are the less each gets, never less than LEAST_BYTES.

Invariants: every batch that came in a session is answered once in it; a batch's answer in a later
session of the same peer is as good; a peer that is silent for `dead_ms`, is not there any more or
does not read its answers is forgotten, and what it sent goes on.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import zmq

from shmbroker import errors
from shmbroker.client.relay import Relay
from shmbroker.config import ListenSection
from shmbroker.control.authorized import DataTokens
from shmbroker.wire.native import greeting
from shmbroker.wire.native.greeting import INGRESS_MAGIC, Hello, Welcome
from shmbroker.wire.native.ingress_messages import (
    Acknowledged,
    Closing,
    FromBroker,
    Goodbye,
    Heartbeat,
    HelloAgain,
    Part,
    Parts,
    Produce,
    Refused,
    WriterCredit,
)
from shmbroker.wire.native.ingress_server import IngressServer, Stale
from shmbroker.wire.native.limits import IN_FLIGHT, WRITERS
from shmbroker.wire.native.state import State
from shmbroker.workers.logs import get_logger

_log = get_logger("shmbroker.ingress")

MEMORY_BYTES: Final = 512 << 20  # of batches of all sessions that have not left for a ring
LEAST_BYTES: Final = 64 << 10  # of credit for a writer, however many sessions there are
FIRST_BYTES: Final = 256 << 10  # of credit for a writer to which nothing has been sent yet
_ROUND: Final = 256  # messages of one socket before others, and answers, have their turn
_SMALL_BYTES: Final = 4_096  # a frame up to this is copied; a larger one stays in ZeroMQ's memory
_LOG_EVERY_S: Final = 1.0  # of refusals: strangers must not fill the log


class Tag(NamedTuple):
    """Of a batch in the relay."""

    peer: Peer
    session: int
    correlation: int
    writer: int  # whose credit it takes
    size: int


@dataclass(slots=True, eq=False)
class Peer:
    """One identity of one socket."""

    sock: zmq.Socket[bytes]
    identity: bytes
    server: IngressServer
    name: str = ""
    token: bytes = b""  # by which it was let in
    session: int = 0
    heard: float = 0.0  # monotonic
    said: float = 0.0
    held: dict[int, int] = field(default_factory=dict)  # writer -> bytes not yet in its ring
    limits: dict[int, int] = field(default_factory=dict)  # writer -> credit as granted
    entries: list[tuple[int, int]] = field(default_factory=list)  # to be acknowledged
    due: set[int] = field(default_factory=set)  # writers whose credit may rise
    since: float = 0.0

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        return {
            "name": self.name,
            "in_flight": self.server.in_flight,
            "held_bytes": sum(self.held.values()),
            "waits_for_writers": sorted(w for w, size in self.held.items() if size),
            "silent_s": round(time.monotonic() - self.heard, 3),
        }


class Sessions:
    """See the module. `writers` says how many writers there are now."""

    def __init__(
        self,
        relay: Relay,
        listen: ListenSection,
        tokens: DataTokens,
        data_dir_id: bytes,
        writers: Callable[[], int],
    ) -> None:
        self._relay = relay
        self._listen = listen
        self._tokens = tokens
        self._data_dir_id = data_dir_id
        self._count_writers = writers
        self._writers = writers()
        self._peers: dict[tuple[int, bytes], Peer] = {}
        self._touched: dict[Peer, None] = {}  # have something to be told
        self._ticked = time.monotonic()
        self._logged = 0.0
        self.received_batches = self.received_bytes = 0
        self.acknowledged = self.refused = self.strangers = self.dead = self.unread = 0

    # --- what comes ---

    def receive(self, sock: zmq.Socket[bytes]) -> None:
        """Everything that has come to a socket, up to a round, and the answers to it."""
        for _ in range(_ROUND):
            try:
                identity = sock.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            parts: list[Part] = [sock.recv(zmq.NOBLOCK)]
            while sock.getsockopt(zmq.RCVMORE):
                frame = sock.recv(zmq.NOBLOCK, copy=False)
                parts.append(frame.bytes if len(frame) <= _SMALL_BYTES else frame.buffer)
            self._take(sock, identity, parts)
        self.settle()

    def settle(self, woken: bool = False) -> None:
        """What the relay has to say, told to those whom it concerns. `woken`: its `fd` said so."""
        taken = self._relay.take(woken)
        for tag in taken.left:
            self._left(tag)
        for tag, offset in taken.done:
            peer = tag.peer
            if peer.server.waits_for(tag.correlation):
                peer.entries.append((tag.correlation, offset))
                self._touched[peer] = None
        for tag, error in taken.failed:
            self._refuse(tag, error)
        touched, self._touched = self._touched, {}
        for peer in touched:
            self._tell(peer)

    def _take(self, sock: zmq.Socket[bytes], identity: bytes, parts: list[Part]) -> None:
        key = (id(sock), identity)
        peer = self._peers.get(key)
        if peer is None:
            peer = Peer(sock, identity, IngressServer(self._tokens.admits))
        peer.heard = time.monotonic()
        try:
            event = peer.server.receive_message(parts)
        except errors.ShmbrokerError as error:
            self._end(key, peer, error)
            return
        if isinstance(event, Produce):
            self._produce(peer, event)
        elif isinstance(event, Hello):
            self._welcome(key, peer, event)
        elif isinstance(event, Stale):
            self._send(peer, peer.server.send(HelloAgain()))
        elif isinstance(event, Goodbye):
            self._peers.pop(key, None)

    def _end(self, key: tuple[int, bytes], peer: Peer, error: errors.ShmbrokerError) -> None:
        """It said what it must not: it is told, and forgotten."""
        self.strangers += 1
        known = self._peers.pop(key, None) is not None
        self._send(peer, peer.server.farewell)
        now = time.monotonic()
        if known or now - self._logged > _LOG_EVERY_S:
            self._logged = now
            _log.warning("producer refused", name=peer.name, reason=str(error))

    def _welcome(self, key: tuple[int, bytes], peer: Peer, hello: Hello) -> None:
        if key in self._peers:  # it will send all of it again
            self._relay.drop(lambda tag: tag.peer is peer)
        elif len(self._peers) >= self._listen.max_connections:
            self._peers.pop(key, None)
            full = errors.QuotaExceeded(
                f"the broker serves {self._listen.max_connections} remote producers already; "
                "close some, or raise listen.max_connections"
            )
            self._send(peer, [greeting.encode_refusal(INGRESS_MAGIC, full)])
            return
        self._peers[key] = peer
        peer.name, peer.token, peer.session = hello.name, hello.token, secrets.randbits(63) + 1
        peer.held.clear()
        peer.limits.clear()
        peer.entries.clear()
        listen = self._listen
        welcome = Welcome(
            self._data_dir_id, peer.session, IN_FLIGHT, listen.heartbeat_ms, listen.dead_ms
        )
        self._send(peer, peer.server.send(welcome))
        peer.due.update(range(self._writers))
        self._touched[peer] = None

    def _produce(self, peer: Peer, produce: Produce) -> None:
        size, writer = len(produce.batch), produce.writer
        peer.held[writer] = peer.held.get(writer, 0) + size
        self.received_batches += 1
        self.received_bytes += size
        tag = Tag(peer, peer.session, produce.correlation, writer, size)
        self._relay.put(
            produce.topic_id, produce.partition, produce.batch, produce.acks, tag, peer.session
        )

    # --- what is answered ---

    def _left(self, tag: Tag) -> None:
        peer = tag.peer
        if peer.session == tag.session:
            peer.held[tag.writer] -= tag.size
            peer.due.add(tag.writer)
            self._touched[peer] = None

    def _refuse(self, tag: Tag, error: Exception) -> None:
        peer = tag.peer
        if not isinstance(error, errors.ShmbrokerError):
            _log.error("a batch failed in the broker", reason=f"{type(error).__name__}: {error}")
            error = errors.ShmbrokerError(f"the broker failed: {type(error).__name__}: {error}")
        if peer.server.waits_for(tag.correlation):
            self.refused += 1
            self._say(peer, Refused(tag.correlation, error))

    def _tell(self, peer: Peer) -> None:
        """Its acknowledgements in one message, and credit where there is some to give."""
        entries, peer.entries = peer.entries, []
        due, peer.due = peer.due, set()
        if peer.server.state is not State.OPEN:
            return
        # Of two that were sent, one before and one after a break, both may have been appended.
        waiting = {c: offset for c, offset in entries if peer.server.waits_for(c)}
        if waiting:
            self.acknowledged += len(waiting)
            self._say(peer, Acknowledged(tuple(waiting.items())))
        for writer in sorted(due):
            self._grant(peer, writer)

    def _grant(self, peer: Peer, writer: int) -> None:
        received = peer.server.received_bytes(writer)
        before = peer.limits.get(writer, 0)
        window = self.window_bytes
        if not received:
            window = min(window, FIRST_BYTES)
            if self._relay.held_bytes > MEMORY_BYTES:  # of those who are gone: wait until it left
                peer.due.add(writer)
                return
        limit = received - peer.held.get(writer, 0) + window
        # Not for each batch, but in time: while the producer still has some.
        if limit - before >= max(1, window // 4) or (limit > before and received >= before):
            peer.limits[writer] = limit
            self._say(peer, WriterCredit(writer, limit))

    @property
    def window_bytes(self) -> int:
        """What a session may have here for a writer to which it sends."""
        share = MEMORY_BYTES // max(1, len(self._peers))
        return max(LEAST_BYTES, min(self._listen.credit_bytes, share))

    def _say(self, peer: Peer, message: FromBroker) -> None:
        if peer.server.state is State.OPEN:
            self._send(peer, peer.server.send(message))

    def _send(self, peer: Peer, parts: Parts) -> None:
        peer.said = time.monotonic()
        try:
            peer.sock.send_multipart([peer.identity, *parts], zmq.NOBLOCK)
        except zmq.Again:
            self.unread += 1
            self._forget(peer, "it does not read its answers")
        except zmq.ZMQError as error:
            self._forget(peer, f"it is gone ({error})")

    # --- time ---

    @property
    def tick_s(self) -> float:
        """How often `tick` wants to be called."""
        return min(1.0, self._listen.heartbeat_ms / 4000)

    def tick(self) -> None:
        """Heartbeats, dead peers, new writers. Call `receive` before: what has come counts."""
        now = time.monotonic()
        late = now - self._ticked - self.tick_s
        self._ticked = now
        heartbeat_s, dead_s = self._listen.heartbeat_ms / 1000, self._listen.dead_ms / 1000
        writers = min(WRITERS, self._count_writers())
        if self._tokens.has_changed():
            self._look_at_tokens()
        for peer in list(self._peers.values()):
            if late > self.tick_s:  # nobody listened meanwhile
                peer.heard += late
            if now - peer.heard >= dead_s:
                self._forget(peer, f"it was silent for {now - peer.heard:.1f} s")
                continue
            if now - peer.said >= heartbeat_s - self.tick_s:
                self._say(peer, Heartbeat())
            if writers > self._writers:
                peer.due.update(range(self._writers, writers))
            if peer.due:
                self._touched[peer] = None
        self._writers = max(writers, self._writers)
        self._relay.sweep()
        self.settle()

    def _look_at_tokens(self) -> None:
        for peer in list(self._peers.values()):
            if not self._tokens.admits(peer.token):
                self._forget(peer, "its key is authorised no more")

    def _forget(self, peer: Peer, why: str) -> None:
        if self._peers.pop((id(peer.sock), peer.identity), None) is not None:
            self.dead += 1
            peer.server.close()
            peer.session = 0
            _log.info("producer forgotten", name=peer.name, reason=why)

    def say_closing(self) -> None:
        """To all: what is not acknowledged is to be sent again, to a successor."""
        for peer in list(self._peers.values()):
            self._say(peer, Closing())

    def describe(self) -> dict[str, Any]:
        """For `status`: counters, and who waits for what."""
        peers = list(self._peers.values())
        waiting = [p for p in peers if any(p.held.values())]
        return {
            "connections": len(peers),
            "received_batches": self.received_batches,
            "received_bytes": self.received_bytes,
            "acknowledged": self.acknowledged,
            "refused": self.refused,
            "strangers": self.strangers,
            "dead": self.dead,
            "unread": self.unread,
            "held_bytes": self._relay.held_bytes,
            "unsettled": self._relay.unsettled,
            "window_bytes": self.window_bytes,
            "waiting": self._relay.describe(),
            "producers": [p.describe() for p in (waiting or peers)[:100]],
        }


__all__ = ["FIRST_BYTES", "LEAST_BYTES", "MEMORY_BYTES", "Peer", "Sessions"]
