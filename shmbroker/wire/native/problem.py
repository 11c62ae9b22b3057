"""An error as the native protocol carries it: its number in binary, the rest as JSON.

     byte 0               4               8
         +---------------+---------------+----------------------------------------+
         | code int32    | length uint32 | JSON: {"name", "message", "fields"}    |
         +---------------+---------------+----------------------------------------+

The code is `ShmbrokerError.kafka_code`: Kafka's number where Kafka has the error. This form is the
same in all versions, since it also says that there is no common version.

Invariants: what is encoded is at most PROBLEM_BYTES, cut if it must be; what is decoded raises
InvalidRequest or is an error of errors.py, never an exception of another kind.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import orjson

from shmbroker.errors import InvalidRequest, ShmbrokerError, from_wire
from shmbroker.wire.native.limits import PROBLEM_BYTES

_HEAD: Final = struct.Struct(">iI")
HEAD_BYTES: Final = _HEAD.size
MAX_BYTES: Final = HEAD_BYTES + PROBLEM_BYTES
_MESSAGE_CHARS: Final = 1000  # of a message that has to be cut; at most 6 bytes each in JSON


def encode(error: ShmbrokerError) -> bytes:
    """The error's bytes; an error too long loses its fields and the end of its message."""
    wire = error.to_wire()
    code = wire.pop("code")
    text = _dump(wire)
    if text is None:
        wire = {"name": wire["name"], "message": wire["message"][:_MESSAGE_CHARS]}
        text = _dump(wire) or b"{}"
    return _HEAD.pack(code, len(text)) + text


def size(head: bytes) -> int:
    """Bytes of the whole error, from its first HEAD_BYTES; InvalidRequest if it is too long."""
    _, length = _HEAD.unpack(head)
    if length > PROBLEM_BYTES:
        raise InvalidRequest(f"an error of {length} bytes; at most {PROBLEM_BYTES}")
    return int(HEAD_BYTES + length)


def decode(data: bytes) -> ShmbrokerError:
    """The error that `encode` was given; raises InvalidRequest if `data` is none."""
    if not HEAD_BYTES <= len(data) <= MAX_BYTES:
        raise InvalidRequest(f"an error of {len(data)} bytes; {HEAD_BYTES} to {MAX_BYTES} may be")
    code, length = _HEAD.unpack_from(data)
    if length != len(data) - HEAD_BYTES:
        raise InvalidRequest(f"an error that says {length} bytes and has {len(data) - HEAD_BYTES}")
    try:
        wire = orjson.loads(data[HEAD_BYTES:])
    except ValueError as error:
        raise InvalidRequest(f"an error that is no JSON: {error}") from None
    if not isinstance(wire, dict):
        raise InvalidRequest("an error that is no JSON object")
    fields = wire.get("fields")
    plain = {
        key: value
        for key, value in (fields.items() if isinstance(fields, dict) else ())
        if isinstance(value, (str, int, float, type(None))) and key != "first"
    }
    return from_wire({"code": code, "name": wire.get("name"), "fields": plain,
                      "message": str(wire.get("message", ""))})  # fmt: skip


def _dump(wire: dict[str, Any]) -> bytes | None:
    """JSON of at most PROBLEM_BYTES, or None. What can't be UTF-8 (a file's name) is replaced."""
    try:
        text = orjson.dumps(wire)
    except TypeError:
        plain = {key: str(wire[key]).encode(errors="replace").decode() for key in wire
                 if key != "fields"}  # fmt: skip
        text = orjson.dumps(plain)
    return text if len(text) <= PROBLEM_BYTES else None


__all__ = ["HEAD_BYTES", "MAX_BYTES", "decode", "encode", "size"]
