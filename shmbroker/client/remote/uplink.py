"""Record batches to a broker elsewhere: out of the mirror's rings, and what became of them back.

    rings --frames--> IngressClient --Produce--> DEALER --> ingress
      ^--receipts--      (resends)  <--Acknowledged, Refused, credit--

Owns: the DEALER to the ingress process, the session (`wire/native/ingress_client.py`), and which
frame of which ring each batch in flight is. In the connection's thread only.

Invariants: a frame leaves its ring when its writer has credit and the session room, so what is in
flight is bounded and the rest throttles producers as a full ring does; each frame is answered once;
a batch without sequences is never sent twice: after a break nobody can tell what became of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import zmq

from shmbroker.client.remote.mirror import Mirror
from shmbroker.client.remote.peer_socket import Change, PeerSocket
from shmbroker.errors import OutcomeUnknown, ShmbrokerError
from shmbroker.wire.native.greeting import Hello, Welcome
from shmbroker.wire.native.ingress_client import IngressClient
from shmbroker.wire.native.ingress_messages import (
    MAX_HEADER_BYTES,
    Acknowledged,
    Acks,
    Closing,
    Goodbye,
    Heartbeat,
    HelloAgain,
    Parts,
    Produce,
    Refused,
)
from shmbroker.wire.native.limits import DEAD_MS, HEARTBEAT_MS
from shmbroker.wire.native.state import State

if TYPE_CHECKING:
    from shmbroker._core.mirror import MirrorRing

_log = logging.getLogger("shmbroker")

_RETRY_FIRST_S: Final = 0.05  # between two connections, doubling up to …
_RETRY_LAST_S: Final = 0.5
_UNCOPIED_BYTES: Final = 64 << 10  # a batch of that size is given to ZeroMQ as it is
_GREETING_S: Final = 3.0  # for Welcome, on one connection
_GOODBYE_MS: Final = 100
_PRODUCER_ID: Final = slice(43, 51)  # of a batch; all ones: none
_NOBODY: Final = b"\xff" * 8


@dataclass(frozen=True, slots=True)
class IngressPort:
    """Where batches are taken, as of the broker's last answer to our hello."""

    endpoint: str
    token: bytes
    data_dir_id: bytes


class Uplink:
    """See the module."""

    def __init__(
        self,
        mirror: Mirror,
        context: Callable[[], zmq.Context[zmq.Socket[bytes]]],
        secure: Callable[[zmq.Socket[bytes]], None],
        name: str,
    ) -> None:
        """Connects with the first ring, once `move` has said where to."""
        self._mirror, self._context, self._secure, self._name = mirror, context, secure, name
        self._codec = IngressClient()
        self._flights: dict[int, tuple[MirrorRing, int]] = {}  # by correlation: ring, frame
        self._correlation = 0
        self._port: IngressPort | None = None
        self._said = self._heard = self._looked = 0.0
        self._next_try, self._pause_s = 0.0, _RETRY_FIRST_S
        self.peer: PeerSocket | None = None

    @property
    def idle(self) -> bool:
        """Whether everything published has its receipt."""
        return not self._flights and not any(r.pending_bytes for r in self._mirror.rings)

    @property
    def ready(self) -> bool:
        """Whether the ingress process has let us in."""
        return self._codec.state is State.OPEN

    def move(self, port: IngressPort | None) -> None:
        """Where ingress is from now on; a connection to the same place is kept."""
        if port != self._port:
            self._port = port
            self._drop()
            self._next_try = 0.0

    def turn(self, now: float) -> None:
        """Takes in what has come, sends what may go."""
        if self.peer is None:
            if self._mirror.rings and self._port is not None and now >= self._next_try:
                self._connect(now)
            return
        if not self._still_there(now):
            return
        try:
            self._receive(now)
            if self._codec.state is State.OPEN:
                self._send_all(now)
        except ShmbrokerError as error:  # the session is over: another one, soon
            _log.info("ingress at %s: %s", self.peer.address, error)
            self._retry(now)

    def due_s(self, now: float) -> float:
        """When `turn` is to be called at the latest."""
        if self.peer is None:
            wanted = self._mirror.rings and self._port is not None
            return max(0.0, self._next_try - now) if wanted else 3600.0
        if self._codec.state is not State.OPEN:
            return max(0.0, self._heard + _GREETING_S - now)
        heartbeat_s, dead_s = self._periods()
        return max(0.01, min(self._said + heartbeat_s, self._heard + dead_s) - now)

    def close(self) -> None:
        """Takes leave. What has no receipt gets none."""
        if self.peer is not None and self._codec.state is State.OPEN:
            self._say(self._codec.send(Goodbye()), 0.0)
            self.peer.close(_GOODBYE_MS)
            self.peer = None
        self._drop()

    # --- the connection ------------------------------------------------------------------------

    def _connect(self, now: float) -> None:
        assert self._port is not None
        heartbeat_s, dead_s = self._periods()
        try:
            self.peer = PeerSocket(
                self._context(), self._port.endpoint, self._secure,
                round(heartbeat_s * 1000), round(dead_s * 1000), MAX_HEADER_BYTES,
            )  # fmt: skip
        except zmq.ZMQError as error:
            _log.info("ingress at %s: %s", self._port.endpoint, error)
            self._retry(now)
            return
        self._heard = self._looked = now
        self._greet(now)

    def _greet(self, now: float) -> None:
        """A new session, of this connection; what can't be sent twice ends here."""
        assert self._port is not None
        for waiting in self._codec.unacknowledged:
            if bytes(waiting.batch[_PRODUCER_ID]) == _NOBODY:
                self._codec.abandon(waiting.correlation)
                self._settle(waiting.correlation, OutcomeUnknown.kafka_code, -1)
        self._say(self._codec.send(Hello(self._port.token, self._name)), now)

    def _still_there(self, now: float) -> bool:
        assert self.peer is not None
        for change in self.peer.changes():
            if change in (Change.CUT, Change.REFUSED):
                self._retry(now)
                return False
        heartbeat_s, dead_s = self._periods()
        late = now - self._looked - heartbeat_s
        self._looked = now
        if late > 0:  # nobody looked meanwhile
            self._heard += late
        is_open = self._codec.state is State.OPEN
        if now - self._heard >= (dead_s if is_open else _GREETING_S) and not self.peer.socket.poll(
            0
        ):
            self._retry(now)
            return False
        if is_open and now - self._said >= heartbeat_s:
            self._say(self._codec.send(Heartbeat()), now)
        return True

    def _retry(self, now: float) -> None:
        self._drop()
        self._next_try = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _RETRY_LAST_S)

    def _drop(self) -> None:
        if self.peer is not None:
            self.peer.close()
            self.peer = None
        self._codec.cut()

    def _periods(self) -> tuple[float, float]:
        welcome = self._codec.welcome
        if welcome is None:
            return HEARTBEAT_MS / 1000, DEAD_MS / 1000
        return welcome.heartbeat_ms / 1000, welcome.dead_ms / 1000

    # --- what comes ----------------------------------------------------------------------------

    def _receive(self, now: float) -> None:
        while self.peer is not None:
            try:
                parts: Sequence[bytes] = self.peer.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._heard = now
            event = self._codec.receive_message(parts)
            if isinstance(event, Acknowledged):
                for correlation, offset in event.entries:
                    self._settle(correlation, 0, offset)
            elif isinstance(event, Refused):
                self._settle(event.correlation, event.error.kafka_code, -1)
            elif isinstance(event, HelloAgain):
                self._greet(now)
            elif isinstance(event, Welcome):
                self._welcomed(event)
            elif isinstance(event, Closing):
                self._retry(now)
                self._next_try = now + _RETRY_LAST_S

    def _welcomed(self, welcome: Welcome) -> None:
        self._pause_s = _RETRY_FIRST_S
        if self._port is not None and welcome.data_dir_id != self._port.data_dir_id:
            raise ShmbrokerError("that is another broker than control is")

    def _settle(self, correlation: int, error: int, offset: int) -> None:
        flight = self._flights.pop(correlation, None)
        if flight is not None:
            ring, seq = flight
            ring.answer(seq, error, offset)

    # --- what goes -----------------------------------------------------------------------------

    def _send_all(self, now: float) -> None:
        for parts in self._codec.resend(self._writer_of):
            self._say(parts, now)
        for ring in self._mirror.rings:
            while (slot := ring.next_slot()) >= 0:
                place = self._mirror.place(ring.writer, slot)
                if not self._codec.may_send(place.writer):
                    break
                seq, acks, batch = ring.take()
                self._correlation += 1
                self._flights[self._correlation] = ring, seq
                produce = Produce(
                    self._correlation, place.topic_id, place.partition, place.writer, batch,
                    Acks(acks),
                )  # fmt: skip
                self._say(self._codec.send(produce), now)

    def _writer_of(self, produce: Produce) -> int:
        return self._mirror.writer_of(produce.topic_id, produce.partition, produce.writer)

    def _say(self, parts: Parts, now: float) -> None:
        assert self.peer is not None
        self._said = now
        sock = self.peer.socket
        try:
            if len(parts) == 1:
                sock.send(parts[0], zmq.NOBLOCK)
                return
            sock.send(parts[0], zmq.NOBLOCK | zmq.SNDMORE)
            sock.send(parts[1], zmq.NOBLOCK, copy=len(parts[1]) < _UNCOPIED_BYTES)
        except zmq.Again:  # ingress takes nothing: a session to come sends it again
            _log.debug("ingress at %s takes nothing", self.peer.address)


__all__ = ["IngressPort", "Uplink"]
