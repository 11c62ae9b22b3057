"""The broker's side of one remote producer's session, without a socket.

    GREETING --Hello--> ASKED --send Welcome--> OPEN --Hello--> ASKED …      error --> CLOSED

One of these belongs to one identity of the ROUTER socket, and its session's number to it alone:
a message that bears another number is Stale, whoever sent it, and is answered by HelloAgain. When
`receive_message` raises, the session is over and `farewell` is to be sent.

Invariants: nothing counts before the token has been accepted; what a session holds is bounded by
its credit for each writer, which one batch may pass by what it has too much, and by `limit` batches
in flight; every Produce is answered once. Not thread-safe; knows no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from shmbroker.errors import AuthenticationFailed, InvalidRequest, ShmbrokerError
from shmbroker.wire.native import greeting, ingress_messages
from shmbroker.wire.native.greeting import INGRESS_MAGIC, Hello, Welcome
from shmbroker.wire.native.ingress_messages import (
    Acknowledged,
    Failed,
    FromBroker,
    FromClient,
    Goodbye,
    HelloAgain,
    Part,
    Parts,
    Produce,
    Refused,
    WriterCredit,
)
from shmbroker.wire.native.limits import WRITERS
from shmbroker.wire.native.state import State


@dataclass(frozen=True, slots=True)
class Stale:
    """A message of another session: nothing of it counts. Answer it with HelloAgain."""

    session: int


Event = Hello | FromClient | Stale


class IngressServer:
    """The session of one identity."""

    __slots__ = (
        "_admits",
        "_answering",
        "_in_flight",
        "_last",
        "_limits",
        "_received",
        "farewell",
        "state",
        "version",
        "welcome",
    )

    def __init__(self, admits: Callable[[bytes], bool]) -> None:
        """`admits` says whether a token is right; it compares in constant time."""
        self._admits: Final = admits
        self._limits: dict[int, int] = {}  # writer -> bytes that may come in all
        self._received: dict[int, int] = {}  # writer -> bytes that came
        self._in_flight: set[int] = set()
        self._last = -1  # correlation
        self._answering = 0  # the session that the last Stale named
        self.state = State.GREETING
        self.version = 0
        self.welcome: Welcome | None = None
        self.farewell: Parts = []  # once `receive_message` has raised

    def receive_message(self, parts: Sequence[Part]) -> Event:
        """What the frames behind the identity mean. A Hello begins anew, whatever was before.

        Raises InvalidRequest, UnsupportedVersion or AuthenticationFailed when the session is over,
        and InvalidRequest ever after."""
        greets = bool(parts) and parts[0][: len(INGRESS_MAGIC)] == INGRESS_MAGIC
        if self.state is State.CLOSED:
            raise InvalidRequest("this session has ended")
        try:
            return self._greeted(parts) if greets else self._received_message(parts)
        except ShmbrokerError as error:
            if greets or self.state is not State.OPEN:
                self.farewell = [greeting.encode_refusal(INGRESS_MAGIC, error)]
            else:
                self.farewell = ingress_messages.encode(Failed(error), self._session)
            self.close()
            raise

    def send(self, message: Welcome | FromBroker) -> Parts:
        """The frames of what the client is to be told.

        Raises RuntimeError when it is not the time for it: Welcome only after Hello, an answer only
        to what is in flight; ValueError when a value does not fit."""
        if isinstance(message, Welcome):
            greeting.check_welcome(INGRESS_MAGIC, message)
            self.state.expect(State.ASKED)
            if message.session in (0, self._session):
                raise ValueError("a session needs a number of its own, and not 0")
            self.welcome, self.state = message, State.OPEN
            return [greeting.encode_welcome(INGRESS_MAGIC, message)]
        if isinstance(message, HelloAgain):
            return ingress_messages.encode(message, self._answering)
        self.state.expect(State.OPEN)
        parts = ingress_messages.encode(message, self._session)
        if isinstance(message, Acknowledged):
            self._answer([correlation for correlation, _ in message.entries])
        elif isinstance(message, Refused):
            self._answer([message.correlation])
        elif isinstance(message, WriterCredit):
            self._grant(message)
        elif isinstance(message, Failed):
            self.close()
        return parts

    @property
    def in_flight(self) -> int:
        """Batches that have come and are not answered."""
        return len(self._in_flight)

    def waits_for(self, correlation: int) -> bool:
        """Whether this session waits for that answer; one of an earlier session may not any more,
        or again, and then the same answer is right."""
        return correlation in self._in_flight

    def received_bytes(self, writer: int) -> int:
        """Batch bytes that have come for a writer in this session: what credit is counted from."""
        return self._received.get(writer, 0)

    def close(self) -> None:
        """The session is over."""
        self.state = State.CLOSED
        self._forget()

    # --- what the client sends ---

    def _greeted(self, parts: Sequence[Part]) -> Hello:
        if len(parts) != 1:
            raise InvalidRequest(f"a greeting in {len(parts)} frames")
        hello = greeting.decode_hello(INGRESS_MAGIC, bytes(parts[0]))
        version = greeting.choose_version(hello)
        if not self._admits(hello.token):
            raise AuthenticationFailed(
                "the token is wrong: a client on the broker's host and of its user finds it by "
                "itself, others are given it over the control channel"
            )
        self._forget()
        self.version, self.state = version, State.ASKED
        return hello

    def _received_message(self, parts: Sequence[Part]) -> Event:
        message, session = ingress_messages.decode_from_client(parts)
        if self.state is not State.OPEN or session != self._session:
            self._answering = session
            return Stale(session)
        if isinstance(message, Produce):
            self._take(message)
        elif isinstance(message, Goodbye):
            self.close()
        return message

    def _take(self, produce: Produce) -> None:
        assert self.welcome is not None
        size = len(produce.batch)
        if produce.correlation <= self._last:
            raise InvalidRequest(f"correlation {produce.correlation} after {self._last}")
        if len(self._in_flight) >= self.welcome.limit:
            raise InvalidRequest(f"more than {self.welcome.limit} batches in flight")
        received = self.received_bytes(produce.writer)
        if received >= self._limits.get(produce.writer, 0):
            raise InvalidRequest(f"a batch for writer {produce.writer} without credit")
        self._last = produce.correlation
        self._in_flight.add(produce.correlation)
        self._received[produce.writer] = received + size

    # --- helpers ---

    @property
    def _session(self) -> int:
        return self.welcome.session if self.welcome is not None else 0

    def _answer(self, correlations: list[int]) -> None:
        found = set(correlations)
        if len(found) != len(correlations) or not found <= self._in_flight:
            raise RuntimeError(f"an answer to {correlations!r:.100}, which are not all in flight")
        self._in_flight -= found

    def _grant(self, credit: WriterCredit) -> None:
        if credit.writer not in self._limits and len(self._limits) >= WRITERS:
            raise ValueError(f"credit for more than {WRITERS} writers")
        before = self._limits.get(credit.writer, 0)
        self._limits[credit.writer] = max(before, credit.limit_bytes)

    def _forget(self) -> None:
        self._limits.clear()
        self._received.clear()
        self._in_flight.clear()
        self._last = -1


__all__ = ["Event", "IngressServer", "Stale"]
