"""The frames of the reader's stream: what each is, and its bytes.

     byte 0       1           4               8               12
         +-------+-----------+---------------+---------------+
         | type  | zero      | subscription  | length uint32 |   then `length` bytes
         +-------+-----------+---------------+---------------+

A `Batches` frame is 12 + 24 bytes and then raw record batches, whole ones, and nothing else: the
36 bytes go out by send(MSG_MORE) and the batches by sendfile. All integers are big-endian. Each
class says what its fields mean; the bytes of each are drawn in `docs/protocol.md`.

Invariants: the length of every frame is bounded by its type and checked before the frame is
awaited; what is reserved is zero, and anything else is refused, so that it can mean something in a
later version; decoding raises InvalidRequest and nothing else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final, TypeVar

from shmbroker.errors import InvalidRequest, ShmbrokerError
from shmbroker.wire.native import problem
from shmbroker.wire.native.limits import STREAM_BYTES, TOPIC_ID_BYTES

_HEAD: Final = struct.Struct(">B3sII")
HEAD_BYTES: Final = _HEAD.size
_ZERO: Final = bytes(3)
_SUBSCRIBE: Final = struct.Struct(">16sIiqQBB2s")
_CREDIT: Final = struct.Struct(">Q")
_ENDS: Final = struct.Struct(">qqq")
_SUBSCRIBED: Final = struct.Struct(">qqqqi")
BATCHES_HEAD_BYTES: Final = HEAD_BYTES + _ENDS.size

_E = TypeVar("_E", bound=IntEnum)


class Isolation(IntEnum):
    """What a subscription sees."""

    DURABLE = 0  # below the high watermark
    APPENDED = 1  # below the log end offset


class Start(IntEnum):
    """What the `offset` of a Subscribe means."""

    OFFSET = 0
    EARLIEST = 1  # the log start offset; `offset` is 0
    LATEST = 2  # the end of what the isolation shows; `offset` is 0
    TIME = 3  # the first record of that time or later; `offset` is in ms since 1970


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a partition begins and ends, as of when the frame was made."""

    log_start_offset: int  # inclusive
    high_watermark: int  # exclusive end of what is durable
    log_end_offset: int  # exclusive end of what is appended


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Client: begin a stream. `subscription` is a number of the client's choice, not in use."""

    kind: ClassVar[int] = 1
    subscription: int
    topic_id: bytes  # 16 bytes, from the metadata: a topic made anew is another one
    partition: int
    offset: int  # of the first record wanted, inclusive; see Start
    limit_bytes: int  # credit: batch bytes that may come in all, from the beginning on
    leader_epoch: int = -1  # of the record before `offset`, to notice a truncation; -1: unknown
    isolation: Isolation = Isolation.DURABLE
    start: Start = Start.OFFSET

    def body(self) -> bytes:
        """Behind the frame's head."""
        if len(self.topic_id) != TOPIC_ID_BYTES:
            raise ValueError(f"a topic id of {len(self.topic_id)} bytes; it has {TOPIC_ID_BYTES}")
        return _SUBSCRIBE.pack(
            self.topic_id, self.partition, self.leader_epoch, self.offset, self.limit_bytes,
            self.isolation, self.start, bytes(2),
        )  # fmt: skip

    @classmethod
    def parse(cls, subscription: int, body: bytes) -> Subscribe:
        """The inverse of `body`."""
        topic_id, partition, epoch, offset, limit, isolation, start, zero = _SUBSCRIBE.unpack(body)
        _check_zero(zero)
        begin = _member(Start, start)
        if offset < 0 or epoch < -1 or (begin in (Start.EARLIEST, Start.LATEST) and offset):
            raise InvalidRequest(f"a subscription from offset {offset}, leader epoch {epoch}")
        return cls(subscription, topic_id, partition, offset, limit, epoch,
                   _member(Isolation, isolation), begin)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Credit:
    """Client: batch bytes may come up to this, counted from the subscription's beginning."""

    kind: ClassVar[int] = 2
    subscription: int
    limit_bytes: int

    def body(self) -> bytes:
        """Behind the frame's head."""
        return _CREDIT.pack(self.limit_bytes)

    @classmethod
    def parse(cls, subscription: int, body: bytes) -> Credit:
        """The inverse of `body`."""
        return cls(subscription, *_CREDIT.unpack(body))


class _Empty:
    __slots__ = ()

    def body(self) -> bytes:
        """Nothing is behind the frame's head."""
        return b""


@dataclass(frozen=True, slots=True)
class Unsubscribe(_Empty):
    """Client: no more of that. Answered by Ended, whatever has become of the subscription."""

    kind: ClassVar[int] = 3
    subscription: int

    @classmethod
    def parse(cls, subscription: int, _body: bytes) -> Unsubscribe:
        """From an empty frame."""
        return cls(subscription)


@dataclass(frozen=True, slots=True)
class Heartbeat(_Empty):
    """Either side: still there."""

    kind: ClassVar[int] = 4
    subscription: ClassVar[int] = 0

    @classmethod
    def parse(cls, subscription: int, _body: bytes) -> Heartbeat:
        """From an empty frame."""
        _check_connection(subscription)
        return cls()


@dataclass(frozen=True, slots=True)
class Subscribed:
    """Broker: the stream begins, and where."""

    kind: ClassVar[int] = 16
    subscription: int
    offset: int  # of the first record that will come, inclusive
    ends: Ends
    leader_epoch: int  # of the partition now

    def body(self) -> bytes:
        """Behind the frame's head."""
        ends = self.ends
        return _SUBSCRIBED.pack(
            self.offset, ends.log_start_offset, ends.high_watermark, ends.log_end_offset,
            self.leader_epoch,
        )  # fmt: skip

    @classmethod
    def parse(cls, subscription: int, body: bytes) -> Subscribed:
        """The inverse of `body`."""
        offset, *ends, epoch = _SUBSCRIBED.unpack(body)
        return cls(subscription, offset, Ends(*ends), epoch)


@dataclass(frozen=True, slots=True)
class Batches:
    """Broker: whole record batches, the next of the subscription. The first one may begin below
    the offset asked for, and control batches may be among them: whoever decodes skips both."""

    kind: ClassVar[int] = 17
    subscription: int
    ends: Ends
    data: bytes

    def body(self) -> bytes:
        """Behind the frame's head."""
        return _pack_ends(self.ends) + self.data

    @classmethod
    def parse(cls, subscription: int, body: bytes, data: bytes = b"") -> Batches:
        """The inverse of `body`, which comes without the `data` behind it."""
        return cls(subscription, Ends(*_ENDS.unpack(body)), data)


@dataclass(frozen=True, slots=True)
class Ended(_Empty):
    """Broker: the answer to Unsubscribe; the subscription's number is free again."""

    kind: ClassVar[int] = 18
    subscription: int

    @classmethod
    def parse(cls, subscription: int, _body: bytes) -> Ended:
        """From an empty frame."""
        return cls(subscription)


@dataclass(frozen=True, slots=True)
class Failed:
    """Broker: the subscription has ended with an error; with 0, the connection ends."""

    kind: ClassVar[int] = 19
    subscription: int
    error: ShmbrokerError

    def body(self) -> bytes:
        """Behind the frame's head."""
        return problem.encode(self.error)

    @classmethod
    def parse(cls, subscription: int, body: bytes) -> Failed:
        """The inverse of `body`."""
        return cls(subscription, problem.decode(body))


@dataclass(frozen=True, slots=True)
class Closing(_Empty):
    """Broker: it stops in order. What was sent stands; come again later."""

    kind: ClassVar[int] = 20
    subscription: ClassVar[int] = 0

    @classmethod
    def parse(cls, subscription: int, _body: bytes) -> Closing:
        """From an empty frame."""
        _check_connection(subscription)
        return cls()


ClientFrame = Subscribe | Credit | Unsubscribe | Heartbeat
BrokerFrame = Subscribed | Batches | Ended | Failed | Heartbeat | Closing
Kinds = dict[int, tuple[type[ClientFrame] | type[BrokerFrame], int, int]]

# Type -> class, least and greatest length.
FROM_CLIENT: Final[Kinds] = {
    Subscribe.kind: (Subscribe, _SUBSCRIBE.size, _SUBSCRIBE.size),
    Credit.kind: (Credit, _CREDIT.size, _CREDIT.size),
    Unsubscribe.kind: (Unsubscribe, 0, 0),
    Heartbeat.kind: (Heartbeat, 0, 0),
}
FROM_BROKER: Final[Kinds] = {
    Heartbeat.kind: (Heartbeat, 0, 0),
    Subscribed.kind: (Subscribed, _SUBSCRIBED.size, _SUBSCRIBED.size),
    Batches.kind: (Batches, _ENDS.size + 1, _ENDS.size + STREAM_BYTES),
    Ended.kind: (Ended, 0, 0),
    Failed.kind: (Failed, problem.HEAD_BYTES, problem.MAX_BYTES),
    Closing.kind: (Closing, 0, 0),
}
CLIENT_FRAME_BYTES: Final = HEAD_BYTES + max(most for _, _, most in FROM_CLIENT.values())
BROKER_FRAME_BYTES: Final = HEAD_BYTES + max(most for _, _, most in FROM_BROKER.values())


def encode(frame: ClientFrame | BrokerFrame) -> bytes:
    """The frame's bytes; ValueError if a number does not fit into its place."""
    try:
        body = frame.body()
        return _HEAD.pack(frame.kind, _ZERO, frame.subscription, len(body)) + body
    except struct.error as error:
        raise ValueError(f"{frame!r:.200}: {error}") from None


def encode_batches_head(subscription: int, ends: Ends, size_bytes: int) -> bytes:
    """What precedes `size_bytes` of batches that are sent by other means."""
    head = _HEAD.pack(Batches.kind, _ZERO, subscription, _ENDS.size + size_bytes)
    return head + _pack_ends(ends)


def decode_head(kinds: Kinds, head: bytes) -> tuple[int, int, int]:
    """(type, subscription, length) of the frame that begins with `head`; InvalidRequest if there
    is none of this type, or not with this length."""
    kind, zero, subscription, length = _HEAD.unpack(head)
    known = kinds.get(kind)
    if known is None:
        raise InvalidRequest(f"a frame of type {kind}; there are {sorted(kinds)}")
    _check_zero(zero)
    cls, least, most = known
    if not least <= length <= most:
        raise InvalidRequest(f"a {cls.__name__} frame of {length} bytes; {least} to {most} may be")
    return kind, subscription, length


def fixed_bytes(kind: int, length: int) -> int:
    """How much of a frame's `length` precedes its batches: all of it where there are none."""
    return _ENDS.size if kind == Batches.kind else length


def decode_body(
    kinds: Kinds, kind: int, subscription: int, body: bytes, data: bytes
) -> ClientFrame | BrokerFrame:
    """The frame whose head `decode_head` has read, with the bytes behind it, in two parts as
    `fixed_bytes` says."""
    if kind == Batches.kind:
        return Batches.parse(subscription, body, data)
    return kinds[kind][0].parse(subscription, body)


def _pack_ends(ends: Ends) -> bytes:
    return _ENDS.pack(ends.log_start_offset, ends.high_watermark, ends.log_end_offset)


def _check_zero(reserved: bytes) -> None:
    if any(reserved):
        raise InvalidRequest(f"bytes that must be zero are {reserved.hex()}")


def _check_connection(subscription: int) -> None:
    if subscription:
        raise InvalidRequest(f"a frame about the connection names subscription {subscription}")


def _member(kind: type[_E], number: int) -> _E:
    try:
        return kind(number)
    except ValueError:
        raise InvalidRequest(f"{kind.__name__} {number}; there are {[*map(int, kind)]}") from None


__all__ = [
    "BATCHES_HEAD_BYTES",
    "BROKER_FRAME_BYTES",
    "CLIENT_FRAME_BYTES",
    "FROM_BROKER",
    "FROM_CLIENT",
    "HEAD_BYTES",
    "Batches",
    "BrokerFrame",
    "ClientFrame",
    "Closing",
    "Credit",
    "Ended",
    "Ends",
    "Failed",
    "Heartbeat",
    "Isolation",
    "Kinds",
    "Start",
    "Subscribe",
    "Subscribed",
    "Unsubscribe",
    "decode_body",
    "decode_head",
    "encode",
    "encode_batches_head",
    "fixed_bytes",
]
