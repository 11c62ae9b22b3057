"""The NATS client protocol on a plain socket: text lines, payloads by length.

`Wire` owns one connection. It does what a measurement needs and no more: requests of the JetStream
API, acknowledgements of what was published, values of what a consumer was sent. One thread uses it.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any, Final

_LIMIT_S: Final = 240.0
INBOX: Final = b"_INBOX.measured"
_CONNECT: Final = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True,
                   "lang": "python-socket", "version": "1"}  # fmt: skip
_CHUNK_BYTES: Final = 1 << 20
_KEEP_NS: Final = 30_000_000_000  # of a consumer whose reader hung up
_END: Final = b"\r\n"


class Record:
    """A value with its sequence in the stream."""

    __slots__ = ("sequence", "value")

    def __init__(self, head: bytes, value: bytes) -> None:
        # MSG subject sid $JS.ACK.stream.consumer.delivered.sequence.sequence.time.pending bytes
        self.sequence = int(head.rsplit(b".", 4)[1])
        self.value = value


class Wire:
    """A connection to the server at `port`, with a subject of its own for answers: `inbox`."""

    _made = 0

    def __init__(self, port: int, look_s: float = _LIMIT_S) -> None:
        Wire._made += 1
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=look_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.inbox = b"%b.%d.%d" % (INBOX, self._socket.getsockname()[1], Wire._made)
        self._rest = b""
        connect = json.dumps(_CONNECT).encode()
        self.send(b"CONNECT %b\r\nSUB %b 1\r\nPING\r\n" % (connect, self.inbox))
        while not self._rest.endswith(b"PONG\r\n"):  # INFO comes before it
            self._receive()
        self._rest = b""

    def send(self, data: bytes) -> None:
        """Whole protocol messages."""
        self._socket.sendall(data)

    def _receive(self, flags: int = 0) -> None:
        data = self._socket.recv(_CHUNK_BYTES, flags)
        if not data:
            raise ConnectionError(f"the server hung up: {self._rest[-200:]!r}")
        self._rest += data

    def request(self, subject: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JetStream API's answer; raises RuntimeError where that is an error."""
        self.send(publication(subject.encode(), json.dumps(body).encode(), self.inbox))
        while not (found := self._messages()):
            self._receive()
        answer: dict[str, Any] = json.loads(found[-1])
        if "error" in answer:
            raise RuntimeError(f"{subject}: {answer['error']}")
        return answer

    def consumer(self, topic: str, policy: str, to: bytes = b"") -> str:
        """The name of a new consumer without acknowledgements, from "all" or "new" on.

        Its messages are pulled, or with `to` are sent to that subject as they come.
        """
        config = {"deliver_policy": policy, "ack_policy": "none", "mem_storage": True,
                  "inactive_threshold": _KEEP_NS}  # fmt: skip
        if to:
            config["deliver_subject"] = to.decode()
        body = {"stream_name": topic, "config": config}
        name: str = self.request(f"$JS.API.CONSUMER.CREATE.{topic}", body)["name"]
        return name

    def acks(self, wait: bool) -> list[int]:
        """Stream sequences that were acknowledged since the last call; waits for one if asked to.

        Raises RuntimeError for a record that was refused.
        """
        if wait:
            self._receive()
        else:
            with contextlib.suppress(BlockingIOError):
                self._receive(socket.MSG_DONTWAIT)
        return [_sequence(ack) for ack in self._messages()]

    def values(self, heads: list[bytes] | None = None) -> list[bytes]:
        """Of messages that came; none when nothing did for `look_s`. `heads` gets their heads."""
        try:
            self._receive()
        except TimeoutError:
            return []
        return self._messages(heads)

    def _messages(self, heads: list[bytes] | None = None) -> list[bytes]:
        """Payloads of the whole messages that are there; answers pings in between."""
        data, at, found = self._rest, 0, []
        length = len(data)
        while (line := data.find(_END, at)) >= 0:
            head, start, kind = at, line + 2, data[at : at + 4]
            if kind == b"MSG ":  # MSG subject sid [reply] bytes
                stop = start + int(data[data.rindex(b" ", at, line) : line])
                if stop + 2 > length:
                    break
                found.append(data[start:stop])
                at = stop + 2
            elif kind == b"HMSG":  # HMSG subject sid [reply] header-bytes bytes
                header, total = (int(word) for word in data[at:line].split()[-2:])
                if start + total + 2 > length:
                    break
                if header == total:
                    raise RuntimeError(f"the server says {data[start : start + header]!r}")
                found.append(data[start + header : start + total])
                at = start + total + 2
            else:
                self._other(data[at:line])
                at = start
                continue
            if heads is not None:
                heads.append(data[head:line])
        self._rest = data[at:]
        return found

    def _other(self, line: bytes) -> None:
        if line == b"PING":
            self.send(b"PONG\r\n")
        elif line.startswith(b"-ERR"):
            raise RuntimeError(f"the server says {line.decode()}")

    def close(self) -> None:
        """Hangs up."""
        self._socket.close()


def publication(subject: bytes, value: bytes, reply: bytes = b"") -> bytes:
    """What publishes a value; with `reply`, its acknowledgement goes there."""
    return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(value), value)


def of_batch(subject: bytes, value: bytes, batch: bytes, number: int, commit: bytes) -> bytes:
    """A message of an atomic batch, counted from 1; with `commit`, the last: its answer goes
    there."""
    head = b"NATS/1.0\r\nNats-Batch-Id:%b\r\nNats-Batch-Sequence:%d\r\n" % (batch, number)
    head += b"Nats-Batch-Commit:1\r\n\r\n" if commit else b"\r\n"
    sizes = len(head), len(head) + len(value)
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, commit, *sizes, head, value)


def _sequence(ack: bytes) -> int:
    found = json.loads(ack)
    if "error" in found:
        raise RuntimeError(f"a record was refused: {found['error']}")
    sequence: int = found["seq"]
    return sequence


__all__ = ["Record", "Wire", "of_batch", "publication"]
