"""One connection of a remote consumer: what it asks, what it is sent, and when it is given up.

Owns: the socket, the codec, the line of subscriptions that have something to send, the frame that
is on its way and the answers that wait behind it.

Invariants: frames never mix: a frame that has begun goes out before anything else; nothing but
answers is kept in user memory, and while those are many nothing more is read from the peer; a turn
sends about TURN_BYTES at most, and the subscriptions take turns frame by frame. A peer that does
not read waits for itself alone; one that says nothing for `dead_ms` is dropped.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from shmbroker.errors import ShmbrokerError
from shmbroker.wire.native.greeting import Hello
from shmbroker.wire.native.state import State
from shmbroker.wire.native.stream_frames import (
    BrokerFrame,
    Closing,
    Credit,
    Ended,
    Failed,
    Heartbeat,
    Subscribe,
    Unsubscribe,
    encode,
)
from shmbroker.wire.native.stream_server import StreamServer
from shmbroker.workers.streams.beginning import Beginning
from shmbroker.workers.streams.frame import Frame
from shmbroker.workers.streams.subscription import Subscription

if TYPE_CHECKING:
    from shmbroker.workers.streams.server import Streams
    from shmbroker.workers.streams.transport import Transport

TURN_BYTES: Final = 1 << 20
FRAME_BYTES: Final = 4 << 20  # of a stream that is alone on its connection
SHARED_FRAME_BYTES: Final = 2 << 20  # where others wait behind it
_RECEIVE_BYTES: Final = 64 << 10
_HEARTBEAT: Final = encode(Heartbeat())
_ANSWERS_BYTES: Final = 64 << 10  # beyond this, nothing is read from the peer


class Peer:
    """Reader's thread only."""

    __slots__ = (
        "_answers",
        "_began",
        "_ending",
        "_frame",
        "_greeted",
        "_heard",
        "_line",
        "_said",
        "_stalled_since",
        "active",
        "codec",
        "name",
        "sent_bytes",
        "streams",
        "subscriptions",
        "token",
        "transport",
        "where",
    )  # fmt: skip

    def __init__(self, streams: Streams, transport: Transport, where: str) -> None:
        now = time.monotonic()
        self.streams: Final = streams
        self.transport: Final = transport
        self.where: Final = where
        self.name = ""
        self.token: bytes | None = None  # by which it was let in
        self.codec = StreamServer(streams.admits)
        self.subscriptions: dict[int, Subscription | Beginning] = {}
        self.sent_bytes = 0
        self._began = self._heard = self._said = now
        self.active = now  # when there was last anything but heartbeats
        self._greeted = False  # what the transport does before the first byte is done
        self._ending = False  # nothing more is read; what there is to say is still sent
        self._line: deque[Subscription] = deque()
        self._frame: Frame | None = None
        self._answers = bytearray()
        self._stalled_since = 0.0  # 0: the socket takes what it is given

    # --- for subscriptions ---------------------------------------------------------------------

    def line_up(self, subscription: Subscription) -> None:
        """It has something to send, if there is credit."""
        if not subscription.queued:
            subscription.queued = True
            self._line.append(subscription)
            self._wake()

    def is_sending(self, subscription: Subscription) -> bool:
        """Whether the frame that is on its way is this one's."""
        return self._frame is not None and self._frame.subscription is subscription

    def failed(self, number: int, error: ShmbrokerError) -> None:
        """Tells the peer that a subscription has ended."""
        self.say(Failed(number, error))

    def say(self, frame: BrokerFrame) -> None:
        """An answer: goes out behind the frame that is on its way."""
        if self.codec.state is State.OPEN:
            self._answers += self.codec.send(frame)
            self._wake()

    # --- what the peer says --------------------------------------------------------------------

    @property
    def reads(self) -> bool:
        """Whether what the peer says is wanted now."""
        return not self._ending and len(self._answers) < _ANSWERS_BYTES

    @property
    def stalled(self) -> bool:
        """Whether its socket took nothing more."""
        return self._stalled_since != 0

    def readable(self, now: float) -> None:
        """Takes what has come."""
        if not self._greeted:
            self._greet()
            return
        data = self.transport.receive(_RECEIVE_BYTES) if self.reads else None
        if data is None:
            return
        self._heard = now
        if data == _HEARTBEAT and self.codec.state is State.OPEN and self.codec.is_between_frames:
            return  # all that a thousand idle peers say; it means nothing more
        self.active = now
        self.codec.receive_data(data)
        if not data:
            self.streams.drop(self)
            return
        self._take_events()

    def _greet(self) -> None:
        if self.transport.greet():
            self._greeted = True
            self.readable(time.monotonic())

    def _take_events(self) -> None:
        try:
            while self.reads and (event := self.codec.next_event()) is not None:
                self._told(event)
        except ShmbrokerError as error:
            self.streams.refused(self, error)
            self._answers += self.codec.farewell
            self._end()

    def _end(self) -> None:
        """Reads nothing more; says what there is to say."""
        self._end_subscriptions()
        self._ending, self._heard = True, time.monotonic()
        self._wake()

    def _told(self, event: Any) -> None:
        if isinstance(event, Hello):
            self.name, self.token = event.name, event.token
            self._answers += self.codec.send(self.streams.welcome())
            self._wake()
        elif isinstance(event, Subscribe):
            beginning = Beginning(self, event)
            self.subscriptions[event.subscription] = beginning
            beginning.begin()
        elif isinstance(event, Unsubscribe):
            if (found := self.subscriptions.get(event.subscription)) is not None:
                found.end()
            self.say(Ended(event.subscription))
        elif isinstance(event, Credit) and event.subscription in self.subscriptions:
            self.subscriptions[event.subscription].resume()

    # --- what it is sent -----------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._stalled_since:
            self.streams.ready(self)

    def writable(self) -> None:
        """The socket takes something again."""
        self._stalled_since = 0.0
        self.streams.ready(self)

    def serve(self, now: float) -> bool:
        """One turn. Whether there is more to send at once; raises OSError when the peer is gone."""
        self.active, left = now, TURN_BYTES
        while left > 0:
            if self._frame is not None:
                sent, out = self._frame.send(self.transport, left)
                self.sent_bytes += sent
                left -= sent
                if sent:
                    self._said = now
                if not out:
                    return left <= 0 or self._stall(now)
                self._finish_frame()
            elif self._answers:
                sent = self.transport.send(self._answers)
                del self._answers[:sent]
                self._said = now
                if self._answers:
                    return self._stall(now)
                self._take_events()  # that waited behind the answers
            elif self._line:
                self._begin_frame(self._line.popleft())
            else:
                if not self.transport.flush():
                    return self._stall(now)
                if self._ending:
                    self.streams.drop(self)
                return False
        return True

    def _stall(self, now: float) -> bool:
        self._stalled_since = now
        return False

    def _begin_frame(self, subscription: Subscription) -> None:
        subscription.queued = False
        if subscription.ended:
            return
        credit = self.codec.credit_bytes(subscription.number)
        if credit:  # without, a Credit resumes it
            most = SHARED_FRAME_BYTES if self._line else FRAME_BYTES
            self._frame = subscription.next_frame(min(credit, most))

    def _finish_frame(self) -> None:
        assert self._frame is not None
        subscription, self._frame = self._frame.subscription, None
        if subscription.ended:
            subscription.release()
        else:
            self.line_up(subscription)

    # --- its end -------------------------------------------------------------------------------

    def tick(self, now: float, heartbeat_s: float, dead_s: float, heard: bool) -> None:
        """Once in a while: says that we are there, and gives up who is not. `heard`: this process
        was away itself, so that silence means nothing."""
        if heard:
            self._heard = self._began = now
        in_doubt = self.codec.state is State.OPEN or self._ending
        silent = now - (self._heard if in_doubt else self._began) > dead_s
        if (self.reads or self._ending) and silent:
            self.streams.drop(self)
        elif self._stalled_since and self._frame is not None and (
            now - self._stalled_since > dead_s and self._frame.is_retired()
        ):  # fmt: skip
            self.streams.drop(self)  # else it would keep a segment that retention has taken
        elif now - self._said >= heartbeat_s and self._frame is None and not self._answers:
            self._beat(now)

    def _beat(self, now: float) -> None:
        if self.codec.state is State.OPEN and self.transport.flush():
            self._said = now
            sent = self.transport.send(_HEARTBEAT)
            if 0 < sent < len(_HEARTBEAT):
                self._answers += _HEARTBEAT[sent:]
                self._wake()

    def close_down(self) -> None:
        """Says Closing behind the frame that is on its way, then ends."""
        self.say(Closing())
        self._end()

    def close(self) -> None:
        """Ends at once; of the Streams, which know it no more."""
        frame, self._frame = self._frame, None
        if frame is not None and frame.subscription.ended:
            frame.subscription.release()
        self._end_subscriptions()
        self._line.clear()
        self.codec.close()
        self.transport.close()

    def _end_subscriptions(self) -> None:
        for subscription in list(self.subscriptions.values()):
            subscription.end()

    # --- for `status` --------------------------------------------------------------------------

    def describe(self, now: float) -> dict[str, Any]:
        """Who it is, and what it waits for."""
        begun = [s for s in self.subscriptions.values() if isinstance(s, Subscription)]
        starved = [s.partition.name for s in begun if not self.codec.credit_bytes(s.number)]
        waits = "records"
        if self._stalled_since:
            waits = f"the consumer to read its socket, for {now - self._stalled_since:.1f} s"
        elif self.codec.state is not State.OPEN:
            waits = "the consumer's greeting"
        elif starved:
            waits = f"the consumer's credit for {', '.join(sorted(starved)[:4])}"
        return {
            "peer": self.where,
            "name": self.name,
            "subscriptions": len(self.subscriptions),
            "sent_bytes": self.sent_bytes,
            "waits_for": waits,
        }


__all__ = ["FRAME_BYTES", "TURN_BYTES", "Peer"]
