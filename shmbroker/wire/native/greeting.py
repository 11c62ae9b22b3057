"""How both native protocols begin: what each side speaks, who asks, and whether they are let in.

    Hello, from the client:
     byte 0               4       6       8       10      12
         +---------------+-------+-------+-------+-------+--------+-------+
         | magic         |  min  |  max  | token | name  | token  | name  |
         |               |version|version| bytes | bytes |        | UTF-8 |
         +---------------+-------+-------+-------+-------+--------+-------+

    Welcome, from the broker:
     byte 0               4       6       8       10      12
         +---------------+-------+-------+-------+-------+
       0 | magic         |version|  min  |  max  | zero  |
         |               |chosen |version|version|       |
         +---------------+-------+-------+-------+-------+---------------+
      12 | heartbeat ms  | dead ms       | session                       |
         |    uint32     |    uint32     |    uint64, 0 for a stream     |
         +---------------+---------------+-------------------------------+
      28 | limit uint32  | data directory's id, 16 bytes                 |
         +---------------+-----------------------------------------------+
      48 or, when the chosen version is 0, from byte 12 on an error (problem.py) and nothing else

The magic is `SHMS` for the reader's stream and `SHMI` for ingress; the broker answers with `shms`
or `shmi`, so that who has connected to itself, or to another client, notices. All integers are
big-endian.

Invariants: both forms are the same in every version for ever, so that any two versions can tell
each other what they speak; the version chosen is the highest that both speak.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from shmbroker.errors import InvalidRequest, ShmbrokerError, UnsupportedVersion
from shmbroker.wire.native import problem
from shmbroker.wire.native.limits import (
    DEAD_MS,
    HEARTBEAT_MS,
    IN_FLIGHT,
    MAX_VERSION,
    MIN_VERSION,
    NAME_BYTES,
    SUBSCRIPTIONS,
    TOKEN_BYTES,
    U32_MAX,
    U64_MAX,
)

STREAM_MAGIC: Final = b"SHMS"
INGRESS_MAGIC: Final = b"SHMI"
STREAM_ANSWER: Final = b"shms"
INGRESS_ANSWER: Final = b"shmi"
DATA_DIR_ID_BYTES: Final = 16
_ANSWERS: Final = {STREAM_MAGIC: STREAM_ANSWER, INGRESS_MAGIC: INGRESS_ANSWER}
_LIMITS: Final = {STREAM_MAGIC: SUBSCRIPTIONS, INGRESS_MAGIC: IN_FLIGHT}

_HELLO: Final = struct.Struct(">4sHHHH")
_ANSWER: Final = struct.Struct(">4sHHHH")
_WELCOME: Final = struct.Struct(">IIQI16s")
HELLO_HEAD_BYTES: Final = _HELLO.size
HELLO_MAX_BYTES: Final = _HELLO.size + TOKEN_BYTES + NAME_BYTES
ANSWER_HEAD_BYTES: Final = _ANSWER.size
WELCOME_BYTES: Final = _ANSWER.size + _WELCOME.size
ANSWER_MAX_BYTES: Final = _ANSWER.size + problem.MAX_BYTES


@dataclass(frozen=True, slots=True)
class Hello:
    """Who asks to be let in."""

    token: bytes
    name: str = ""  # of the program, for `status`
    min_version: int = MIN_VERSION  # inclusive
    max_version: int = MAX_VERSION  # inclusive


@dataclass(frozen=True, slots=True)
class Welcome:
    """The broker's answer to those whom it lets in."""

    data_dir_id: bytes  # 16 bytes: which broker this is, over all restarts
    session: int = 0  # ingress: what every message repeats
    limit: int = 0  # ingress: batches in flight; stream: subscriptions of a connection
    heartbeat_ms: int = HEARTBEAT_MS
    dead_ms: int = DEAD_MS
    version: int = MAX_VERSION
    min_version: int = MIN_VERSION
    max_version: int = MAX_VERSION


def encode_hello(magic: bytes, hello: Hello) -> bytes:
    """The client's first message; ValueError if the token is too long. A long name is cut."""
    if len(hello.token) > TOKEN_BYTES:
        raise ValueError(f"a token of {len(hello.token)} bytes; at most {TOKEN_BYTES}")
    name = hello.name.encode(errors="replace")[:NAME_BYTES].decode(errors="ignore").encode()
    head = _HELLO.pack(magic, hello.min_version, hello.max_version, len(hello.token), len(name))
    return head + hello.token + name


def hello_size(magic: bytes, head: bytes) -> int:
    """Bytes of the whole Hello, from its first HELLO_HEAD_BYTES; InvalidRequest if it is none."""
    found, least, most, token_bytes, name_bytes = _HELLO.unpack(head)
    check_magic(magic, found)
    if token_bytes > TOKEN_BYTES or name_bytes > NAME_BYTES:
        raise InvalidRequest(
            f"a greeting with a token of {token_bytes} and a name of {name_bytes} bytes; "
            f"at most {TOKEN_BYTES} and {NAME_BYTES}"
        )
    if not 1 <= least <= most:
        raise InvalidRequest(f"a greeting that speaks versions {least} to {most}")
    return int(HELLO_HEAD_BYTES + token_bytes + name_bytes)


def decode_hello(magic: bytes, data: bytes) -> Hello:
    """The Hello that `data` is, the whole of it; InvalidRequest if it is none."""
    if len(data) < HELLO_HEAD_BYTES or len(data) != hello_size(magic, data[:HELLO_HEAD_BYTES]):
        raise InvalidRequest(f"a greeting of {len(data)} bytes that says another length")
    _, least, most, token_bytes, _ = _HELLO.unpack_from(data)
    token = data[HELLO_HEAD_BYTES : HELLO_HEAD_BYTES + token_bytes]
    name = data[HELLO_HEAD_BYTES + token_bytes :].decode(errors="replace")
    return Hello(token, name, least, most)


def check_magic(magic: bytes, found: bytes) -> None:
    """InvalidRequest if the first bytes are not those of this protocol."""
    if not magic.startswith(found[: len(magic)]):
        what = {STREAM_MAGIC: "the port for consumers", INGRESS_MAGIC: "the port for producers"}
        other = next((what[m] for m in what if m == found and m != magic), None)
        said = f"this belongs to {other}" if other else f"not what begins with {bytes(found)!r}"
        raise InvalidRequest(f"{what[magic]} expects a shmbroker client: {said}")


def check_answer(magic: bytes, found: bytes) -> None:
    """InvalidRequest if the first bytes are not a broker's answer to a greeting with `magic`."""
    if not _ANSWERS[magic].startswith(found[: len(magic)]):
        raise InvalidRequest(
            f"no shmbroker answers there, but what begins with {bytes(found)!r}: look at the port"
        )


def choose_version(hello: Hello) -> int:
    """The highest version that both sides speak; UnsupportedVersion, naming both, if none."""
    version = min(hello.max_version, MAX_VERSION)
    if version < max(hello.min_version, MIN_VERSION):
        raise UnsupportedVersion(
            f"the client speaks versions {hello.min_version} to {hello.max_version} of the native "
            f"protocol and the broker {MIN_VERSION} to {MAX_VERSION}; "
            f"use a newer shmbroker on the {'client' if version < MIN_VERSION else 'broker'}'s side"
        )
    return version


def encode_welcome(magic: bytes, welcome: Welcome) -> bytes:
    """The broker's first message, to those whom it lets in."""
    head = _ANSWER.pack(
        _ANSWERS[magic], welcome.version, welcome.min_version, welcome.max_version, 0
    )
    return head + _WELCOME.pack(
        welcome.heartbeat_ms,
        welcome.dead_ms,
        welcome.session,
        welcome.limit,
        welcome.data_dir_id,
    )


def encode_refusal(magic: bytes, error: ShmbrokerError) -> bytes:
    """The broker's first and last message to all others."""
    return _ANSWER.pack(_ANSWERS[magic], 0, MIN_VERSION, MAX_VERSION, 0) + problem.encode(error)


def answer_size(magic: bytes, head: bytes) -> int:
    """Bytes of the whole answer if its head says it is a Welcome, 0 if it is a refusal, whose size
    its error says; InvalidRequest if it is neither."""
    found, version, least, most, zero = _ANSWER.unpack(head)
    check_answer(magic, found)
    if zero or not 1 <= least <= most:
        raise InvalidRequest("an answer to the greeting that makes no sense")
    return WELCOME_BYTES if version else 0


def decode_answer(magic: bytes, data: bytes) -> Welcome | ShmbrokerError:
    """What the broker answered, the whole of it; InvalidRequest if it is neither."""
    if len(data) < ANSWER_HEAD_BYTES:
        raise InvalidRequest(f"an answer to the greeting of {len(data)} bytes")
    size = answer_size(magic, data[:ANSWER_HEAD_BYTES])
    if not size:
        return problem.decode(data[ANSWER_HEAD_BYTES:])
    if len(data) != size:
        raise InvalidRequest(f"a welcome of {len(data)} bytes; it has {size}")
    _, version, least, most, _ = _ANSWER.unpack_from(data)
    heartbeat_ms, dead_ms, session, limit, data_dir_id = _WELCOME.unpack_from(
        data, ANSWER_HEAD_BYTES
    )
    if not MIN_VERSION <= version <= MAX_VERSION:
        raise UnsupportedVersion(
            f"the broker chose version {version} of the native protocol, and this client speaks "
            f"{MIN_VERSION} to {MAX_VERSION}; use the same shmbroker on both sides"
        )
    if not 0 < heartbeat_ms < dead_ms or not 0 < limit <= _LIMITS[magic]:
        raise InvalidRequest("a welcome whose numbers make no sense")
    return Welcome(data_dir_id, session, limit, heartbeat_ms, dead_ms, version, least, most)


def check_welcome(magic: bytes, welcome: Welcome) -> None:
    """ValueError if no client would take it."""
    if (
        len(welcome.data_dir_id) != DATA_DIR_ID_BYTES
        or not 0 <= welcome.session <= U64_MAX
        or not 0 < welcome.limit <= _LIMITS[magic]
        or not 0 < welcome.heartbeat_ms < welcome.dead_ms <= U32_MAX
    ):
        raise ValueError(f"no client would take {welcome}")


__all__ = [
    "ANSWER_HEAD_BYTES",
    "HELLO_HEAD_BYTES",
    "INGRESS_ANSWER",
    "INGRESS_MAGIC",
    "STREAM_ANSWER",
    "STREAM_MAGIC",
    "Hello",
    "Welcome",
    "answer_size",
    "check_answer",
    "check_magic",
    "check_welcome",
    "choose_version",
    "decode_answer",
    "decode_hello",
    "encode_hello",
    "encode_refusal",
    "encode_welcome",
    "hello_size",
]
