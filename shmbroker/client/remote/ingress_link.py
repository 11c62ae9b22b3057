"""The way of a remote client's batches: out of its rings, to ingress, and the answers back.

Owns: the ZeroMQ DEALER to ingress with its monitor, the producer's session over breaks
(`IngressClient`, sans-IO), and which answer belongs to which frame of which ring. Belongs to the
watcher's thread.

A frame is taken when there is credit for its writer, so a writer that is full leaves its ring full
and its producers waiting, and no one else. The batch is kept until it is answered, and sent again,
in order and before anything new, after each break.

ZeroMQ's traps, and what closes them here: Hello is said when the connection stands (the monitor
tells), for what is sent before waits in a queue and would come twice; a connection that is silent
is replaced, for ZeroMQ would not notice; the queue is not bounded by ZeroMQ's high-water mark but
by credit and the session's limit, for a full one would block this thread.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from shmbroker._core.mirror import MirrorRing
from shmbroker.client.remote.mirror import Mirror, Spot
from shmbroker.errors import OutcomeUnknown, ShmbrokerError
from shmbroker.wire.native.greeting import Hello, Welcome
from shmbroker.wire.native.ingress_client import IngressClient
from shmbroker.wire.native.ingress_messages import (
    Acknowledged,
    Acks,
    Failed,
    Goodbye,
    Heartbeat,
    HelloAgain,
    Parts,
    Produce,
    Refused,
)
from shmbroker.wire.native.state import State

_log = logging.getLogger("shmbroker")

_EVENTS: Final = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
_AT_ONCE: Final = 64  # messages taken before frames are sent again
_LINGER_MS: Final = 1_000  # for what was sent when the program closes
_AGAIN_FIRST_S: Final = 0.05  # between two connections after an error, doubling up to …
_AGAIN_LAST_S: Final = 1.0
_PRODUCER_ID: Final = slice(43, 51)  # of a batch (batch.h); all ones: it has none, nor sequences
_HEAP_BYTES: Final = 16 << 20
_NO_PRODUCER: Final = b"\xff" * 8


class IngressLink:
    """One connection's."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        mirror: Mirror,
        prepare: Callable[[zmq.Socket[bytes], str], None],
        name: str,
    ) -> None:
        """`prepare` sets options before the socket connects (keys); `name` is the program's."""
        self._context, self._mirror, self._prepare, self._name = context, mirror, prepare, name
        # ZeroMQ copies a batch to a block of its own. glibc gives that back to the kernel and has a
        # fresh one for the next (0.3 s of processor a GB), until it has seen one as large freed.
        bytes(_HEAP_BYTES)
        self._session = IngressClient()
        self._correlations = itertools.count(1)
        self._waiting: dict[int, tuple[MirrorRing, int]] = {}
        self._endpoint, self._token = "", b""
        self._heartbeat_s = self._dead_s = 0.0
        self._heard_s = self._said_s = self._again_at = 0.0
        self._pause_s = _AGAIN_FIRST_S
        self.socket: zmq.Socket[bytes] | None = None
        self.monitor: zmq.Socket[bytes] | None = None

    def open(self, endpoint: str, token: bytes, heartbeat_s: float, dead_s: float) -> None:
        """Goes to that endpoint from now on."""
        self._endpoint, self._token = endpoint, token
        self._heartbeat_s, self._dead_s = heartbeat_s, dead_s
        self._connect()

    def close(self, *, linger_ms: int = 0) -> None:
        """Hangs up; what is not answered is kept for the next `open`."""
        if self.socket is not None:
            self.socket.disable_monitor()
            assert self.monitor is not None
            self.monitor.close(linger=0)
            self.socket.close(linger=linger_ms)
            self.socket = self.monitor = None

    def leave(self, patience_s: float) -> None:
        """At the end of the program's connection: what was published goes out, if it can soon."""
        deadline = time.monotonic() + patience_s
        while self.socket is not None and self._behind() and time.monotonic() < deadline:
            self.pump()
            self.socket.poll(20)
            self.receive()
        if self.socket is not None and self._session.state is State.OPEN:
            self._send(self._session.send(Goodbye()))
        self.close(linger_ms=_LINGER_MS)

    def forget(self) -> None:
        """After the last `close`: what is not answered never will be."""
        self._waiting.clear()
        self._session = IngressClient()

    def receive(self) -> bool:
        """Takes what has come, and says whether there was anything. Never waits."""
        for n in range(_AT_ONCE):
            if self.socket is None:
                return True
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return n > 0
            self._heard_s = time.monotonic()
            try:
                event = self._session.receive_message(parts)
            except ShmbrokerError as error:
                self._failed(error)
                return True
            match event:
                case Acknowledged(entries):
                    for correlation, offset in entries:
                        self._answer(correlation, 0, offset)
                case Refused(correlation, why):
                    self._answer(correlation, why.kafka_code, -1)
                case Welcome():
                    self._pause_s = _AGAIN_FIRST_S
                case HelloAgain():
                    self._hello()
                case Failed(why):
                    self._failed(why)
        return True

    def pump(self) -> None:
        """Sends what there is credit for: first what goes again, then new frames."""
        session = self._session
        if self.socket is None or session.state is not State.OPEN:
            return
        for parts in session.resend(self._writer_of):
            self._send(parts)
        for ring in self._mirror.rings():
            while (slot := ring.next_slot()) >= 0:
                spot = self._mirror.spot(ring.writer, slot)
                writer = self._mirror.writer_of(spot)
                if not session.may_send(writer):
                    break
                seq, acks, batch = ring.take()
                number = next(self._correlations)
                self._waiting[number] = (ring, seq)
                produce = Produce(number, *spot, writer, batch, Acks(acks))
                self._send(session.send(produce))

    def stood(self, seconds: float) -> None:
        """Nobody looked for so long: that was not the broker's silence."""
        self._heard_s += seconds

    def tick(self, now: float) -> float:
        """Heartbeats, silence, and another try; returns when it is to be called again."""
        if self.socket is None:
            if self._endpoint and now >= self._again_at:
                self._connect()
            return max(self._again_at, now + _AGAIN_FIRST_S)
        if now - self._heard_s > self._dead_s:
            self._failed(None)
            return self._again_at
        dead_at = self._heard_s + self._dead_s + 0.001
        if self._session.state is not State.OPEN:  # it may be, by the next time
            return min(now + self._heartbeat_s, dead_at)
        if now - self._said_s >= self._heartbeat_s:
            self._send(self._session.send(Heartbeat()))
        return min(self._said_s + self._heartbeat_s, dead_at)

    # --- helpers -------------------------------------------------------------------------------

    def _connect(self) -> None:
        self.close()
        self._session.begin_again()
        sock = self._context.socket(zmq.DEALER)
        sock.linger = 0
        sock.set_hwm(0)
        sock.setsockopt(zmq.IPV6, 1)
        sock.setsockopt(zmq.RECONNECT_IVL, 20)
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self._prepare(sock, self._endpoint)
        self.monitor = sock.get_monitor_socket(_EVENTS)
        self.socket = sock
        self._heard_s = self._said_s = time.monotonic()
        sock.connect(self._endpoint)

    def look_at_monitor(self) -> None:
        """Says hello where a connection stands."""
        while self.monitor is not None and self.monitor.poll(0):
            if recv_monitor_message(self.monitor)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._heard_s = time.monotonic()
                self._hello()

    def _hello(self) -> None:
        """A new session. What has no sequences may be in the log, and goes no second time."""
        for waiting in self._session.unacknowledged:
            if bytes(waiting.batch[_PRODUCER_ID]) == _NO_PRODUCER:
                self._session.abandon(waiting.correlation)
                self._answer(waiting.correlation, OutcomeUnknown.kafka_code, -1)
        self._send(self._session.send(Hello(self._token, self._name)))

    def _send(self, parts: Parts) -> None:
        assert self.socket is not None
        self.socket.send_multipart(parts, zmq.NOBLOCK)
        self._said_s = time.monotonic()

    def _failed(self, error: ShmbrokerError | None) -> None:
        """Hangs up and tries again after a while."""
        if error is not None:
            _log.info("ingress ended the session: %s; connecting again", error)
        else:
            _log.info("ingress has been silent for %g s; connecting again", self._dead_s)
        self.close()
        self._again_at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _AGAIN_LAST_S)

    def _answer(self, correlation: int, error: int, offset: int) -> None:
        flight = self._waiting.pop(correlation, None)
        if flight is not None:  # not abandoned meanwhile
            ring, seq = flight
            ring.answer(seq, error, offset)

    def _writer_of(self, produce: Produce) -> int:
        return self._mirror.writer_of(Spot(produce.topic_id, produce.partition))

    def _behind(self) -> bool:
        return any(ring.pending_bytes or ring.unanswered for ring in self._mirror.rings())


__all__ = ["IngressLink"]
