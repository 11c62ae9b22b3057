"""A remote producer's side of its session, without a socket; and what it has to send again.

    GREETING --`send(Hello)`--> ASKED --Welcome--> OPEN --HelloAgain or silence: Hello--> ASKED …

A new session begins with everything of the old one that was not acknowledged, in its order and
with the same bytes, so under the same producer id and sequences: the broker appends each batch
once. `resend` gives it, as far as credit reaches; until it is empty nothing new may be sent.

Invariants: a batch is kept until it is acknowledged, refused or abandoned, and at most `limit` of
them are in flight; what answers another session is dropped; correlations rise. Not thread-safe;
knows no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from shmbroker.errors import InvalidRequest, ShmbrokerError
from shmbroker.wire.native import greeting, ingress_messages
from shmbroker.wire.native.greeting import INGRESS_ANSWER, INGRESS_MAGIC, Hello, Welcome
from shmbroker.wire.native.ingress_messages import (
    Acknowledged,
    Failed,
    FromBroker,
    Goodbye,
    Heartbeat,
    HelloAgain,
    Parts,
    Produce,
    Refused,
    WriterCredit,
)
from shmbroker.wire.native.limits import WRITERS
from shmbroker.wire.native.state import State

Event = Welcome | FromBroker


class IngressClient:
    """One producer's sessions, one after the other."""

    __slots__ = (
        "_abandoned",
        "_again",
        "_in_flight",
        "_last",
        "_limits",
        "_refused",
        "_sent",
        "state",
        "welcome",
    )

    def __init__(self) -> None:
        """Nothing said yet."""
        self._in_flight: dict[int, Produce] = {}  # by correlation, in the order of sending
        self._again: deque[Produce] = deque()  # of the session before, not yet sent in this one
        self._abandoned: set[int] = set()  # in flight, and not to be sent again
        self._limits: dict[int, int] = {}
        self._sent: dict[int, int] = {}
        self._last = -1
        self._refused = False
        self.state = State.GREETING
        self.welcome: Welcome | None = None

    def receive_message(self, parts: Sequence[bytes]) -> Event | None:
        """What the frames mean; None when they belong to a session that is over.

        Raises what the broker refused the Hello with, after which another may be sent (the token of
        a broker that was restarted is a new one); or InvalidRequest when it sends what it must not,
        which closes. What was not acknowledged stays in `unacknowledged`."""
        try:
            if self.state in (State.GREETING, State.CLOSED):
                return None
            if parts and parts[0][: len(INGRESS_ANSWER)] == INGRESS_ANSWER:
                return self._answered(parts)
            message, session = ingress_messages.decode_from_broker(parts)
            if self.state is not State.OPEN or session != self._session:
                return None
            self._apply(message)
            return message
        except ShmbrokerError:
            self.state = State.GREETING if self._refused else State.CLOSED
            self._refused = False
            raise

    def send(self, message: Hello | Produce | Goodbye | Heartbeat) -> Parts:
        """The frames of what the broker is to be told.

        Raises RuntimeError when it is not the time for it: a Produce only while `may_send` says so;
        ValueError when a value does not fit."""
        if isinstance(message, Hello):
            if self.state is State.CLOSED:
                raise RuntimeError("this producer's session has ended for good")
            data = greeting.encode_hello(INGRESS_MAGIC, message)
            self.state = State.ASKED
            return [data]
        self.state.expect(State.OPEN)
        if isinstance(message, Produce):
            if not self.may_send(message.writer):
                raise RuntimeError(f"no credit for writer {message.writer}, or too much in flight")
            if message.correlation <= self._last:
                raise ValueError(f"correlation {message.correlation} after {self._last}")
            return self._put(message)
        parts = ingress_messages.encode(message, self._session)
        if isinstance(message, Goodbye):
            self.state = State.CLOSED
        return parts

    def begin_again(self) -> None:
        """A new connection, with another token maybe: Hello may be said on it, whatever ended the
        session before. What is unacknowledged is kept for it."""
        self.state = State.GREETING

    def may_send(self, writer: int) -> bool:
        """Whether a Produce for the writer may go out now."""
        return self.state is State.OPEN and not self._again and self._has_room(writer)

    def resend(self, writer_of: Callable[[Produce], int]) -> list[Parts]:
        """What of the session before may go out now, in order; call it after every event.

        `writer_of` says which writer has a partition now: another one, maybe, after a restart."""
        ready: list[Parts] = []
        while self.state is State.OPEN and self._again:
            produce = replace(self._again[0], writer=writer_of(self._again[0]))
            if not self._has_room(produce.writer):
                break
            ready.append(self._put(produce))
            self._again.popleft()
        return ready

    @property
    def unacknowledged(self) -> tuple[Produce, ...]:
        """What is neither acknowledged, refused nor abandoned, in the order of sending."""
        sent = (p for n, p in self._in_flight.items() if n not in self._abandoned)
        return (*sent, *self._again)

    def abandon(self, correlation: int) -> bool:
        """Never sends a batch again, as its delivery timeout is over; whether an answer to what was
        sent may still come in this session. What follows it in its partition has a gap before it:
        the producer goes on under a raised epoch."""
        if correlation in self._in_flight:
            self._abandoned.add(correlation)
            return True
        self._again = deque(p for p in self._again if p.correlation != correlation)
        return False

    def credit_bytes(self, writer: int) -> int:
        """What may go to a writer now; as long as it is not 0, one batch may be larger."""
        return max(0, self._limits.get(writer, 0) - self._sent.get(writer, 0))

    # --- what the broker sends ---

    def _answered(self, parts: Sequence[bytes]) -> Welcome:
        if len(parts) != 1:
            raise InvalidRequest(f"an answer to the greeting in {len(parts)} frames")
        answer = greeting.decode_answer(INGRESS_MAGIC, bytes(parts[0]))
        if isinstance(answer, ShmbrokerError):
            self._refused = True
            raise answer
        if not answer.session:
            raise InvalidRequest("a welcome without a session")
        self._again = deque(self.unacknowledged)
        self._in_flight.clear()
        self._abandoned.clear()
        self._limits.clear()
        self._sent.clear()
        self.welcome, self.state = answer, State.OPEN
        return answer

    def _apply(self, message: FromBroker) -> None:
        match message:
            case Acknowledged(entries):
                for correlation, _ in entries:
                    self._settle(correlation)
            case Refused():
                self._settle(message.correlation)
            case WriterCredit(writer, limit_bytes):
                if writer not in self._limits and len(self._limits) >= WRITERS:
                    raise InvalidRequest(f"credit for more than {WRITERS} writers")
                self._limits[writer] = max(self._limits.get(writer, 0), limit_bytes)
            case HelloAgain():
                self.state = State.GREETING
            case Failed():
                self.state = State.CLOSED

    def _settle(self, correlation: int) -> None:
        if self._in_flight.pop(correlation, None) is None:
            raise InvalidRequest(f"an answer to {correlation}, which is not in flight")
        self._abandoned.discard(correlation)

    # --- helpers ---

    @property
    def _session(self) -> int:
        return self.welcome.session if self.welcome is not None else 0

    def _has_room(self, writer: int) -> bool:
        assert self.welcome is not None
        return len(self._in_flight) < self.welcome.limit and self.credit_bytes(writer) > 0

    def _put(self, produce: Produce) -> Parts:
        parts = ingress_messages.encode(produce, self._session)
        self._in_flight[produce.correlation] = produce
        self._last = max(self._last, produce.correlation)
        self._sent[produce.writer] = self._sent.get(produce.writer, 0) + len(produce.batch)
        return parts


__all__ = ["Event", "IngressClient"]
