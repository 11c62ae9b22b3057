"""What both sides of a stream have in common: bytes in, frames out, and an end.

Owns: the inbox, the state, and the head of the frame that is being received.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from shmbroker.wire.native import stream_frames
from shmbroker.wire.native.inbox import Inbox
from shmbroker.wire.native.state import State
from shmbroker.wire.native.stream_frames import BrokerFrame, ClientFrame, Kinds

Flow = TypeVar("Flow")


class StreamConnection(Generic[Flow]):
    """One side of one connection. `Flow` is what it keeps of a subscription."""

    __slots__ = ("_flows", "_head", "_inbox", "state")

    def __init__(self, frame_bytes: int) -> None:
        """`frame_bytes`: the longest frame, or greeting, that may arrive."""
        self._inbox = Inbox(frame_bytes)
        self._flows: dict[int, Flow] = {}
        self._head: tuple[int, int, int] | None = None
        self.state = State.GREETING

    def receive_data(self, data: bytes) -> None:
        """What the socket gave, at most RECEIVE_BYTES; b"" is its end. Take the events after each.

        Raises BufferError when they were not taken."""
        if not data:
            self.close()
        elif self.state is not State.CLOSED:
            self._inbox.put(data)

    @property
    def subscriptions(self) -> tuple[int, ...]:
        """The numbers in use; at the client also of those that wait for Ended."""
        return tuple(self._flows)

    @property
    def buffered_bytes(self) -> int:
        """What has been received and is not yet a whole frame."""
        return self._inbox.size_bytes

    @property
    def is_between_frames(self) -> bool:
        """Whether everything that was received has been taken: a frame is what comes next."""
        return self._head is None and not self._inbox.size_bytes

    def unread(self) -> bytes:
        """What has been received and makes no event yet, taken: for who goes on reading itself."""
        data = self._inbox.take(self._inbox.size_bytes)
        assert data is not None
        return data

    def close(self) -> None:
        """No event comes any more, and nothing may be sent."""
        self.state = State.CLOSED
        self._flows.clear()
        self._inbox.clear()

    def _next_frame(self, kinds: Kinds) -> ClientFrame | BrokerFrame | None:
        if self._head is None:
            head = self._inbox.take(stream_frames.HEAD_BYTES)
            if head is None:
                return None
            self._head = stream_frames.decode_head(kinds, head)
        kind, subscription, length = self._head
        if self._inbox.size_bytes < length:
            return None
        self._head = None
        # Batches apart from what precedes them: so they are copied once, into bytes of their own.
        fixed = stream_frames.fixed_bytes(kind, length)
        body, data = self._inbox.take(fixed), self._inbox.take(length - fixed)
        assert body is not None
        assert data is not None
        return stream_frames.decode_body(kinds, kind, subscription, body, data)

    def _flow(self, subscription: int) -> Flow:
        flow = self._flows.get(subscription)
        if flow is None:
            raise RuntimeError(f"there is no subscription {subscription}")
        return flow


__all__ = ["StreamConnection"]
