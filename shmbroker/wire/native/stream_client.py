"""The consumer's side of a stream, without a socket.

    GREETING --`hello` sent--> ASKED --Welcome--> OPEN --error, Failed(0), end--> CLOSED

As in stream_server.py: `receive_data`, `next_event`, `send`. When `next_event` raises, the
connection is over and nothing of the broken frame is handed on: a client connects again and
subscribes behind the last batch it was given.

Invariants: batches arrive only for a subscription that is live here, and within the credit given,
which one batch may pass by what it has too much; what still comes after Unsubscribe is dropped; at
most one frame and one `receive_data` are kept. Not thread-safe; knows no clock.
"""

from __future__ import annotations

from shmbroker.errors import InvalidRequest, ShmbrokerError
from shmbroker.wire.native import greeting, problem, stream_frames
from shmbroker.wire.native.greeting import STREAM_MAGIC, Hello, Welcome
from shmbroker.wire.native.limits import BATCH_OVERHEAD_BYTES
from shmbroker.wire.native.state import State
from shmbroker.wire.native.stream_connection import StreamConnection
from shmbroker.wire.native.stream_frames import (
    FROM_BROKER,
    Batches,
    BrokerFrame,
    ClientFrame,
    Closing,
    Credit,
    Ended,
    Failed,
    Heartbeat,
    Subscribe,
    Subscribed,
    Unsubscribe,
)


class _Flow:
    """What has come of one subscription, and how much may."""

    __slots__ = ("began", "ending", "limit_bytes", "received_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.received_bytes = limit_bytes, 0
        self.began = self.ending = False


Event = Welcome | BrokerFrame


class StreamClient(StreamConnection[_Flow]):
    """One connection of a consumer."""

    __slots__ = ("welcome",)

    def __init__(self) -> None:
        """Nothing said yet."""
        super().__init__(stream_frames.BROKER_FRAME_BYTES)
        self.welcome: Welcome | None = None

    def next_event(self) -> Event | None:
        """What the broker said next; None when more must be received.

        Raises what the broker refused the connection with, or InvalidRequest when it sends what it
        must not; both close."""
        try:
            if self.state is State.ASKED:
                return self._answered()
            while self.state is State.OPEN:
                frame = self._next_frame(FROM_BROKER)
                if frame is None:
                    return None
                assert isinstance(frame, BrokerFrame)
                if self._wanted(frame):
                    return frame
            return None
        except ShmbrokerError:
            self.close()
            raise

    def send(self, frame: Hello | ClientFrame) -> bytes:
        """The bytes of what the broker is to be told.

        Raises RuntimeError when it is not the time for it, ValueError when a value does not fit."""
        if isinstance(frame, Hello):
            data = greeting.encode_hello(STREAM_MAGIC, frame)
            self.state.expect(State.GREETING)
            self.state = State.ASKED
            return data
        self.state.expect(State.OPEN)
        data = stream_frames.encode(frame)
        if isinstance(frame, Subscribe):
            self._check_new(frame.subscription)
            self._flows[frame.subscription] = _Flow(frame.limit_bytes)
        elif isinstance(frame, Credit):
            flow = self._live(frame.subscription)
            flow.limit_bytes = max(flow.limit_bytes, frame.limit_bytes)
        elif isinstance(frame, Unsubscribe):
            self._live(frame.subscription).ending = True
        return data

    def credit_bytes(self, subscription: int) -> int:
        """What the broker may still send. Raises RuntimeError for one that is not live."""
        flow = self._live(subscription)
        return max(0, flow.limit_bytes - flow.received_bytes)

    # --- what the broker sends ---

    def _answered(self) -> Welcome | None:
        head = self._inbox.first(greeting.ANSWER_HEAD_BYTES + problem.HEAD_BYTES)
        if head:
            greeting.check_answer(STREAM_MAGIC, head[: len(STREAM_MAGIC)])
        if len(head) < greeting.ANSWER_HEAD_BYTES + problem.HEAD_BYTES:
            return None
        size = greeting.answer_size(STREAM_MAGIC, head[: greeting.ANSWER_HEAD_BYTES])
        if not size:
            size = greeting.ANSWER_HEAD_BYTES + problem.size(head[greeting.ANSWER_HEAD_BYTES :])
        data = self._inbox.take(size)
        if data is None:
            return None
        answer = greeting.decode_answer(STREAM_MAGIC, data)
        if isinstance(answer, ShmbrokerError):
            raise answer
        self.welcome, self.state = answer, State.OPEN
        return answer

    def _wanted(self, frame: BrokerFrame) -> bool:
        """Whether the frame is to be handed on; InvalidRequest if it may not come at all."""
        if isinstance(frame, (Heartbeat, Closing)):
            return True
        if isinstance(frame, Failed) and not frame.subscription:
            self.close()
            return True
        flow = self._flows.get(frame.subscription)
        if flow is None:
            raise InvalidRequest(
                f"a {type(frame).__name__} frame of subscription {frame.subscription}, "
                "which there is not"
            )
        if isinstance(frame, Batches):
            self._count(flow, frame)
        elif isinstance(frame, Subscribed):
            if flow.began:
                raise InvalidRequest(f"subscription {frame.subscription} began twice")
            flow.began = True
        elif isinstance(frame, Ended):
            if not flow.ending:
                raise InvalidRequest(f"subscription {frame.subscription} ended unasked")
            del self._flows[frame.subscription]
            return True
        elif not flow.ending:  # Failed; once unsubscribed, Ended comes all the same
            del self._flows[frame.subscription]
            return True
        return not flow.ending

    def _count(self, flow: _Flow, frame: Batches) -> None:
        left, size = flow.limit_bytes - flow.received_bytes, len(frame.data)
        if not flow.began:
            raise InvalidRequest(f"batches before subscription {frame.subscription} began")
        if size < BATCH_OVERHEAD_BYTES:
            raise InvalidRequest(f"{size} bytes of batches, less than one has")
        first = int.from_bytes(frame.data[8:12]) + 12  # batchLength counts what is behind it
        if first > size:
            raise InvalidRequest(f"a batch of {first} bytes in {size} bytes of batches")
        if left <= 0 or (size > left and first < size):
            raise InvalidRequest(
                f"{size} bytes of batches on subscription {frame.subscription}, which has credit "
                f"for {max(0, left)}"
            )
        flow.received_bytes += size

    def _check_new(self, number: int) -> None:
        assert self.welcome is not None
        if not number or number in self._flows:
            raise RuntimeError(f"subscription {number} is in use, or is the connection itself")
        if len(self._flows) >= self.welcome.limit:
            raise RuntimeError(f"the broker takes {self.welcome.limit} subscriptions a connection")

    def _live(self, subscription: int) -> _Flow:
        flow = self._flow(subscription)
        if flow.ending:
            raise RuntimeError(f"subscription {subscription} was ended")
        return flow


__all__ = ["Event", "StreamClient"]
