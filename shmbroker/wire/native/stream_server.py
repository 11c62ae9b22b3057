"""The broker's side of one consumer's stream, without a socket.

    GREETING --Hello--> ASKED --send Welcome--> OPEN --error or `close`--> CLOSED
        \\--wrong token, no common version, rubbish--------------------------^

`receive_data` takes what the socket gave, `next_event` says what it means, `send` gives bytes for
the socket. When `next_event` raises, the connection is over: `farewell` has what the client is to
be told before it is closed.

Invariants: nothing but a Hello counts before the token has been accepted; at most SUBSCRIPTIONS
are known, and at most one frame of the client's and one `receive_data` are kept; batches go out
only within a subscription's credit, which one batch may pass by what it has too much. Not
thread-safe; knows no clock: heartbeats are its user's to send and to miss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from shmbroker.errors import AuthenticationFailed, InvalidRequest, ShmbrokerError
from shmbroker.wire.native import greeting, stream_frames
from shmbroker.wire.native.greeting import STREAM_MAGIC, Hello, Welcome
from shmbroker.wire.native.limits import STREAM_BYTES, SUBSCRIPTIONS
from shmbroker.wire.native.state import State
from shmbroker.wire.native.stream_connection import StreamConnection
from shmbroker.wire.native.stream_frames import (
    FROM_CLIENT,
    Batches,
    BrokerFrame,
    ClientFrame,
    Credit,
    Ends,
    Failed,
    Heartbeat,
    Subscribe,
    Subscribed,
    Unsubscribe,
)


class _Flow:
    """What has gone out of one subscription, and how much may."""

    __slots__ = ("limit_bytes", "sent_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.sent_bytes = limit_bytes, 0


Event = Hello | ClientFrame


class StreamServer(StreamConnection[_Flow]):
    """One connection of a consumer."""

    __slots__ = ("_admits", "farewell", "version")

    def __init__(self, admits: Callable[[bytes], bool]) -> None:
        """`admits` says whether a token is right; it compares in constant time."""
        self._admits: Final = admits
        super().__init__(max(greeting.HELLO_MAX_BYTES, stream_frames.CLIENT_FRAME_BYTES))
        self.version = 0  # chosen; 0 before the Hello
        self.farewell = b""  # once `next_event` has raised: what to send before closing

    def next_event(self) -> Event | None:
        """What the client said next; None when more must be received, or in state ASKED.

        Raises InvalidRequest, UnsupportedVersion or AuthenticationFailed when the connection is
        over; `farewell` is then to be sent."""
        try:
            if self.state is State.GREETING:
                return self._greeted()
            return self._frame() if self.state is State.OPEN else None
        except ShmbrokerError as error:
            self.farewell = self._last_words(error)
            self.close()
            raise

    def send(self, frame: Welcome | BrokerFrame) -> bytes:
        """The bytes of what the client is to be told.

        Raises RuntimeError when it is not the time for it: Welcome only after Hello, the rest only
        after that; batches only of a live subscription and within its credit. ValueError when a
        value does not fit."""
        if isinstance(frame, Welcome):
            greeting.check_welcome(STREAM_MAGIC, frame)
            self.state.expect(State.ASKED)
            self.state = State.OPEN
            return greeting.encode_welcome(STREAM_MAGIC, frame)
        self.state.expect(State.OPEN)
        if isinstance(frame, Batches):
            return self.batches_head(frame.subscription, frame.ends, len(frame.data)) + frame.data
        data = stream_frames.encode(frame)
        if isinstance(frame, Subscribed):
            self._flow(frame.subscription)
        elif isinstance(frame, Failed):
            if frame.subscription:
                self._flows.pop(frame.subscription, None)
            else:
                self.close()
        return data

    def batches_head(self, subscription: int, ends: Ends, size_bytes: int) -> bytes:
        """The head of a Batches frame; exactly `size_bytes` of whole batches must follow it, from
        wherever they come, before anything else is sent. Raises as `send`."""
        self.state.expect(State.OPEN)
        if not 0 < size_bytes <= STREAM_BYTES:
            raise ValueError(f"{size_bytes} bytes of batches in a frame; 1 to {STREAM_BYTES}")
        flow = self._flow(subscription)
        if flow.sent_bytes >= flow.limit_bytes:
            raise RuntimeError(f"subscription {subscription} has no credit")
        flow.sent_bytes += size_bytes
        return stream_frames.encode_batches_head(subscription, ends, size_bytes)

    def credit_bytes(self, subscription: int) -> int:
        """How many bytes of batches may go out now. As long as it is not 0, one batch may be
        larger; several together may not. 0 for a subscription that has ended."""
        flow = self._flows.get(subscription)
        return 0 if flow is None else max(0, flow.limit_bytes - flow.sent_bytes)

    # --- what the client sends ---

    def _greeted(self) -> Hello | None:
        head = self._inbox.first(greeting.HELLO_HEAD_BYTES)
        if head:  # a stranger's first bytes tell already
            greeting.check_magic(STREAM_MAGIC, head[: len(STREAM_MAGIC)])
        if len(head) < greeting.HELLO_HEAD_BYTES:
            return None
        data = self._inbox.take(greeting.hello_size(STREAM_MAGIC, head))
        if data is None:
            return None
        hello = greeting.decode_hello(STREAM_MAGIC, data)
        version = greeting.choose_version(hello)
        if not self._admits(hello.token):
            raise AuthenticationFailed(
                "the token is wrong: a client on the broker's host and of its user finds it by "
                "itself, others are given it over the control channel"
            )
        self.version, self.state = version, State.ASKED
        return hello

    def _frame(self) -> ClientFrame | None:
        frame = self._next_frame(FROM_CLIENT)
        if frame is None:
            return None
        assert isinstance(frame, ClientFrame)
        self._apply(frame)
        return frame

    def _apply(self, frame: ClientFrame) -> None:
        if isinstance(frame, Heartbeat):
            return
        number = frame.subscription
        if not number:
            raise InvalidRequest("0 is the connection and no subscription")
        if isinstance(frame, Subscribe):
            if number in self._flows:
                raise InvalidRequest(f"subscription {number} is in use")
            if len(self._flows) >= SUBSCRIPTIONS:
                raise InvalidRequest(
                    f"more than {SUBSCRIPTIONS} subscriptions on a connection; open another one"
                )
            self._flows[number] = _Flow(frame.limit_bytes)
        elif isinstance(frame, Unsubscribe):
            self._flows.pop(number, None)
        elif isinstance(frame, Credit) and (flow := self._flows.get(number)) is not None:
            flow.limit_bytes = max(flow.limit_bytes, frame.limit_bytes)

    def _last_words(self, error: ShmbrokerError) -> bytes:
        if self.state is State.OPEN:
            return stream_frames.encode(Failed(0, error))
        return greeting.encode_refusal(STREAM_MAGIC, error)


__all__ = ["Event", "StreamServer"]
