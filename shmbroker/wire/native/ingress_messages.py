"""The messages between remote producers and ingress, each one or two frames of ZeroMQ.

     byte 0       1       2       4               8               16
         +-------+-------+-------+---------------+---------------+
         | type  | acks  | zero  | word uint32   | session uint64|   then what the type has
         +-------+-------+-------+---------------+---------------+

A Produce has the record batch as a second frame, as it is; all others are one frame. All integers
are big-endian; the bytes of each are drawn in `docs/protocol.md`. A message that begins with the
magic `SHMI` or `shmi` is a greeting (greeting.py); no type is the number of its first letter.

Invariants: the length of every message is bounded by its type; what is reserved is zero; decoding
raises InvalidRequest and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

from shmbroker.errors import InvalidRequest, ShmbrokerError
from shmbroker.wire.native import problem
from shmbroker.wire.native.limits import (
    ACKNOWLEDGEMENTS,
    BATCH_BYTES,
    BATCH_OVERHEAD_BYTES,
    TOPIC_ID_BYTES,
)

_HEAD: Final = struct.Struct(">BB2sIQ")
HEAD_BYTES: Final = _HEAD.size
_PRODUCE: Final = struct.Struct(">Q16sI")
_HEAD_AND_PRODUCE: Final = struct.Struct(">BB2sIQQ16sI")
_ENTRY: Final = struct.Struct(">Qq")
_U64: Final = struct.Struct(">Q")
_MAGIC_V2: Final = 2
_BATCH_HEAD: Final = struct.Struct(">8xi4xb")  # its length and magic; see _core/batch.h


class Acks(IntEnum):
    """When a produce is acknowledged."""

    NONE = 0  # when it is in the writer's ring, with offset -1
    MEMORY = 1  # when it is appended
    DURABLE = 2  # when it is on stable storage


@dataclass(frozen=True, slots=True)
class Produce:
    """Client: append this batch. Producer id, epoch and sequence stand in the batch itself."""

    kind: ClassVar[int] = 1
    correlation: int  # rises from one to the next, also over sessions
    topic_id: bytes  # 16 bytes, from the metadata: a topic made anew is another one
    partition: int
    writer: int  # of the partition by the metadata: whose credit this takes
    batch: bytes | memoryview  # as it came: never copied here
    acks: Acks = Acks.DURABLE


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Client: this session is over. What was produced goes on; nobody waits for its answers."""

    kind: ClassVar[int] = 2


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Either side: still there."""

    kind: ClassVar[int] = 3


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Broker: these are complete, in the sense of their acks."""

    kind: ClassVar[int] = 16
    entries: tuple[tuple[int, int], ...]  # (correlation, base offset or -1: not known any more)


@dataclass(frozen=True, slots=True)
class Refused:
    """Broker: this one was not appended, and why; whether to try again is the error's word."""

    kind: ClassVar[int] = 17
    correlation: int
    error: ShmbrokerError


@dataclass(frozen=True, slots=True)
class WriterCredit:
    """Broker: batches for this writer may come up to this, counted from the session's beginning."""

    kind: ClassVar[int] = 18
    writer: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class HelloAgain:
    """Broker: the session of your message is none of mine; say Hello, then send again in order."""

    kind: ClassVar[int] = 19


@dataclass(frozen=True, slots=True)
class Closing:
    """Broker: it stops in order. What is not acknowledged is to be sent again later."""

    kind: ClassVar[int] = 20


@dataclass(frozen=True, slots=True)
class Failed:
    """Broker: the session has ended with an error."""

    kind: ClassVar[int] = 21
    error: ShmbrokerError


_ALL_ACKS: Final = tuple(Acks)
_NO_BYTES: Final = bytes(2)

FromClient = Produce | Goodbye | Heartbeat
FromBroker = Acknowledged | Refused | WriterCredit | Heartbeat | HelloAgain | Closing | Failed
Part = bytes | memoryview  # a batch may be a view of the socket's own memory
Parts = list[Part]
MAX_HEADER_BYTES: Final = HEAD_BYTES + max(
    ACKNOWLEDGEMENTS * _ENTRY.size, _U64.size + problem.MAX_BYTES
)


def encode(message: FromClient | FromBroker, session: int) -> Parts:
    """The frames; ValueError if a value does not fit into its place."""
    try:
        return _encode(message, session)
    except struct.error as error:
        raise ValueError(f"{type(message).__name__}: {error}") from None


def _encode(message: FromClient | FromBroker, session: int) -> Parts:
    acks = word = 0
    rest = b""
    batch: Parts = []
    match message:
        case Produce():
            if len(message.topic_id) != TOPIC_ID_BYTES:
                raise ValueError(f"a topic id of {len(message.topic_id)} bytes")
            _check_batch(message.batch, ValueError)
            acks, word, batch = message.acks, message.writer, [message.batch]
            rest = _PRODUCE.pack(message.correlation, message.topic_id, message.partition)
        case Acknowledged(entries):
            if not 0 < len(entries) <= ACKNOWLEDGEMENTS:
                raise ValueError(f"{len(entries)} acknowledgements; 1 to {ACKNOWLEDGEMENTS}")
            word = len(entries)
            rest = b"".join([_ENTRY.pack(*entry) for entry in entries])
        case Refused():
            rest = _U64.pack(message.correlation) + problem.encode(message.error)
        case WriterCredit():
            word, rest = message.writer, _U64.pack(message.limit_bytes)
        case Failed():
            rest = problem.encode(message.error)
    return [_HEAD.pack(message.kind, acks, bytes(2), word, session) + rest, *batch]


def decode_from_client(parts: Sequence[Part]) -> tuple[FromClient, int]:
    """(message, session) out of the frames behind the peer's identity."""
    if len(parts) == 2 and len(parts[0]) == _HEAD_AND_PRODUCE.size:  # nearly all: in one go
        kind, acks, zero, word, session, *rest = _HEAD_AND_PRODUCE.unpack(parts[0])
        if kind == Produce.kind and acks < len(_ALL_ACKS) and zero == _NO_BYTES:
            _check_batch(parts[1], InvalidRequest)
            correlation, topic_id, partition = rest
            acks = _ALL_ACKS[acks]
            return Produce(correlation, topic_id, partition, word, parts[1], acks), session
    return _decode_other(parts)


def _decode_other(parts: Sequence[Part]) -> tuple[FromClient, int]:
    kind, acks, word, session, rest = _open(parts, (Produce.kind,))
    if kind == Produce.kind:
        if len(rest) != _PRODUCE.size:
            raise InvalidRequest(f"a produce header of {HEAD_BYTES + len(rest)} bytes")
        raise InvalidRequest(f"acks {acks}; there are {[*map(int, Acks)]}")
    _check_bare(kind, acks, word, rest)
    if kind == Goodbye.kind:
        return Goodbye(), session
    if kind == Heartbeat.kind:
        return Heartbeat(), session
    raise InvalidRequest(f"a message of type {kind} from a producer; there are 1, 2 and 3")


def decode_from_broker(parts: Sequence[bytes]) -> tuple[FromBroker, int]:
    """(message, session) out of the frames."""
    kind, acks, word, session, rest = _open(parts, ())
    if acks:
        raise InvalidRequest("an answer that names acks")
    if kind == Acknowledged.kind:
        if not 0 < word <= ACKNOWLEDGEMENTS or len(rest) != word * _ENTRY.size:
            raise InvalidRequest(f"{word} acknowledgements in {len(rest)} bytes")
        return Acknowledged(tuple(_ENTRY.iter_unpack(rest))), session
    if kind == WriterCredit.kind:
        if len(rest) != _U64.size:
            raise InvalidRequest(f"a credit of {len(rest)} bytes")
        return WriterCredit(word, *_U64.unpack(rest)), session
    if kind == Refused.kind:
        _check_bare(kind, acks, word, b"")
        if len(rest) < _U64.size:
            raise InvalidRequest("a refusal that names nothing")
        (correlation,) = _U64.unpack_from(rest)
        return Refused(correlation, problem.decode(rest[_U64.size :])), session
    if kind == Failed.kind:
        _check_bare(kind, acks, word, b"")
        return Failed(problem.decode(rest)), session
    _check_bare(kind, acks, word, rest)
    bare: dict[int, Heartbeat | HelloAgain | Closing] = {
        Heartbeat.kind: Heartbeat(), HelloAgain.kind: HelloAgain(), Closing.kind: Closing()
    }  # fmt: skip
    if kind not in bare:
        raise InvalidRequest(f"a message of type {kind} from the broker")
    return bare[kind], session


def _open(parts: Sequence[Part], with_batch: tuple[int, ...]) -> tuple[int, int, int, int, bytes]:
    """(type, acks, word, session, the rest of the header)."""
    if not parts or not HEAD_BYTES <= len(parts[0]) <= MAX_HEADER_BYTES:
        raise InvalidRequest(f"a header of {len(parts[0]) if parts else 0} bytes")
    kind, acks, zero, word, session = _HEAD.unpack_from(parts[0])
    if any(zero):
        raise InvalidRequest(f"bytes that must be zero are {zero.hex()}")
    if len(parts) != (2 if kind in with_batch else 1):
        raise InvalidRequest(f"a message of type {kind} in {len(parts)} frames")
    return kind, acks, word, session, bytes(parts[0][HEAD_BYTES:])


def _check_bare(kind: int, acks: int, word: int, rest: bytes) -> None:
    if acks or word or rest:
        raise InvalidRequest(f"a message of type {kind} with more in it than there may be")


def _check_batch(batch: Part, error: type[Exception]) -> None:
    """Only its length and its format: the writer validates the rest (DESIGN.md, invariant 15)."""
    size = len(batch)
    if not BATCH_OVERHEAD_BYTES <= size <= BATCH_BYTES:
        raise error(f"a batch of {size} bytes; {BATCH_OVERHEAD_BYTES} to {BATCH_BYTES} may be")
    length, magic = _BATCH_HEAD.unpack_from(batch)
    if length + 12 != size or magic != _MAGIC_V2:
        raise error(f"{size} bytes that are not one record batch v2")


__all__ = [
    "HEAD_BYTES",
    "MAX_HEADER_BYTES",
    "Acknowledged",
    "Acks",
    "Closing",
    "Failed",
    "FromBroker",
    "FromClient",
    "Goodbye",
    "Heartbeat",
    "HelloAgain",
    "Part",
    "Parts",
    "Produce",
    "Refused",
    "WriterCredit",
    "decode_from_broker",
    "decode_from_client",
    "encode",
]
