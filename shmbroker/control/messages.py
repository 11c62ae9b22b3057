"""The codec of control messages: one frame of JSON each, no sockets here.

    request  {"v": 1, "op": name, "id": n, argument: value, …}     attach has no "id"
    reply    {"v": 1, "id": n, "ok": {…}}  or  {"v": 1, "id": n, "error": {…}}
    event    {"v": 1, "event": name, argument: value, …}           one-way, never answered

Owns: this form, its version, and its bounds. What the operations are stands in
`docs/ARCHITECTURE.md`. Errors travel as `ShmbrokerError.to_wire` makes them.

Invariants: a message that is too long is refused before it is parsed; nothing that arrives raises
anything but InvalidRequest or UnsupportedVersion, with the request's id if it could be read, so
that the one who asked can be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import orjson

from shmbroker.errors import InvalidRequest, ShmbrokerError, UnsupportedVersion, from_wire

PROTOCOL_VERSION: Final = 1
MAX_REQUEST_BYTES: Final = 1 << 20
MAX_REPLY_BYTES: Final = 16 << 20  # the status of a broker with thousands of partitions
_ENVELOPE: Final = frozenset(("v", "id", "op", "event"))
_JSON_NAMES: Final = {str: "a text", int: "a whole number", bool: "true or false", dict: "a table"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _WithArguments:
    args: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def arg(self, name: str, kind: type[T]) -> T:
        """The argument `name`; InvalidRequest if it is missing or of another type."""
        value = self.optional(name, kind)
        if value is None:
            raise self._refuse(f"argument {name!r} is missing")
        return value

    def optional(self, name: str, kind: type[T]) -> T | None:
        """The argument `name`, None if it is absent or null."""
        value = self.args.get(name)
        if value is None:
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            kinds: Mapping[Any, str] = _JSON_NAMES
            what = kinds.get(kind, f"a {kind.__name__}")
            raise self._refuse(f"argument {name!r} must be {what}, and is {value!r:.60}")
        return value

    def _refuse(self, problem: str) -> InvalidRequest:
        return InvalidRequest(problem)


@dataclass(frozen=True, slots=True)
class Request(_WithArguments):
    """Something asked; `id` is given back in the reply."""

    op: str
    id: int | None = None

    def _refuse(self, problem: str) -> InvalidRequest:
        return InvalidRequest(f"request {self.op!r}: {problem}", request_id=self.id)


@dataclass(frozen=True, slots=True)
class Event(_WithArguments):
    """Something told."""

    name: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer: `ok`, or an error."""

    id: int | None
    ok: Mapping[str, Any] = field(default_factory=dict)
    error: ShmbrokerError | None = None

    def result(self) -> Mapping[str, Any]:
        """The answer; raises the error if it is one."""
        if self.error is not None:
            raise self.error
        return self.ok


Message = Request | Reply | Event


def encode_request(op: str, request_id: int | None = None, /, **args: Any) -> bytes:
    """A request; raises InvalidRequest if it would be too long or can't be JSON."""
    head: dict[str, Any] = {"v": PROTOCOL_VERSION, "op": op}
    if request_id is not None:
        head["id"] = request_id
    return _dump(head, args, MAX_REQUEST_BYTES)


def encode_event(name: str, /, **args: Any) -> bytes:
    """An event; bounded as a request is."""
    return _dump({"v": PROTOCOL_VERSION, "event": name}, args, MAX_REQUEST_BYTES)


def encode_reply(request_id: int | None, ok: Mapping[str, Any]) -> bytes:
    """A good answer; raises InvalidRequest if it would be too long."""
    return _dump(_reply_head(request_id) | {"ok": ok}, {}, MAX_REPLY_BYTES)


def encode_error(request_id: int | None, error: BaseException) -> bytes:
    """A bad answer; what is no error of ours goes out as the root class with its name."""
    if not isinstance(error, ShmbrokerError):
        error = ShmbrokerError(f"the broker failed: {type(error).__name__}: {error}")
    return _dump(_reply_head(request_id) | {"error": error.to_wire()}, {}, MAX_REPLY_BYTES)


def decode(data: bytes | memoryview) -> Message:
    """Whatever arrived, checked; see the module for what it raises."""
    if len(data) > MAX_REPLY_BYTES:
        raise InvalidRequest(f"a message of {len(data)} bytes; at most {MAX_REPLY_BYTES}")
    try:
        message = orjson.loads(data)
    except ValueError as error:
        raise InvalidRequest(f"a message that is no JSON: {error}") from None
    if not isinstance(message, dict):
        raise InvalidRequest("a message that is no JSON object")
    message_id = message.get("id")
    if isinstance(message_id, bool) or not isinstance(message_id, (int, type(None))):
        raise InvalidRequest("a message whose id is no whole number")
    if message.get("v") != PROTOCOL_VERSION:
        raise UnsupportedVersion(
            f"a control message of version {message.get('v')!r:.20}, and this side speaks version "
            f"{PROTOCOL_VERSION}; use the same shmbroker on both sides",
            request_id=message_id,
        )
    return _classify(message, message_id, len(data))


def decode_request(data: bytes | memoryview) -> Request:
    """A request, or InvalidRequest if it is something else."""
    if len(data) > MAX_REQUEST_BYTES:
        raise InvalidRequest(f"a request of {len(data)} bytes; at most {MAX_REQUEST_BYTES}")
    message = decode(data)
    if not isinstance(message, Request):
        raise InvalidRequest("a message that is no request")
    return message


def decode_reply(data: bytes | memoryview) -> Reply:
    """A reply, or InvalidRequest if it is something else."""
    message = decode(data)
    if not isinstance(message, Reply):
        raise InvalidRequest("a message that is no reply")
    return message


def _classify(message: dict[str, Any], message_id: int | None, size: int) -> Message:
    kinds = [key for key in ("op", "event", "ok", "error") if key in message]
    # An argument may be called "ok" or "error": what makes a request or an event comes first.
    kind = kinds[0] if kinds else ""
    body = message.get(kind)
    if kind in ("op", "event"):
        if not isinstance(body, str) or not body:
            raise InvalidRequest(f"a message whose {kind!r} is no name", request_id=message_id)
        if size > MAX_REQUEST_BYTES:
            raise InvalidRequest(
                f"{kind} {body!r:.60} of {size} bytes; at most {MAX_REQUEST_BYTES}",
                request_id=message_id,
            )
        args = {key: value for key, value in message.items() if key not in _ENVELOPE}
        return Request(body, message_id, args=args) if kind == "op" else Event(body, args=args)
    if not isinstance(body, dict):
        raise InvalidRequest(
            "a message without op, event, ok or error, or with one that is no table",
            request_id=message_id,
        )
    if kind == "error":
        return Reply(message_id, error=from_wire(body))
    return Reply(message_id, body)


def _reply_head(request_id: int | None) -> dict[str, Any]:
    head: dict[str, Any] = {"v": PROTOCOL_VERSION}
    if request_id is not None:
        head["id"] = request_id
    return head


def _dump(head: dict[str, Any], args: Mapping[str, Any], limit: int) -> bytes:
    clash = _ENVELOPE & args.keys()
    if clash:
        raise InvalidRequest(f"an argument can't be called {min(clash)!r}")
    try:
        data = orjson.dumps(head | dict(args))
    except TypeError as error:
        raise InvalidRequest(f"a message that can't be JSON: {error}") from None
    if len(data) > limit:
        raise InvalidRequest(f"a message of {len(data)} bytes; at most {limit}")
    return data


__all__ = [
    "MAX_REPLY_BYTES",
    "MAX_REQUEST_BYTES",
    "PROTOCOL_VERSION",
    "Event",
    "Message",
    "Reply",
    "Request",
    "decode",
    "decode_reply",
    "decode_request",
    "encode_error",
    "encode_event",
    "encode_reply",
    "encode_request",
]
