"""A program elsewhere, as bare as can be: control over ZeroMQ, by hand."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import zmq

from shmbroker.control.keys import KeyPair

LIMIT_S = 40.0


class RemotePeer:
    """A DEALER on control; says nothing by itself."""

    def __init__(
        self,
        address: str,
        *,
        server_key: bytes | None = None,
        pair: KeyPair | None = None,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._limit_s = limit_s  # for an answer
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        if pair is not None and server_key is not None:
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, server_key)
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret or b"")
        self._socket.setsockopt(zmq.IPV6, int("[" in address))
        self._socket.connect(address)
        self._ids = itertools.count(1)
        self.who: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> RemotePeer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close(linger=0)
        self._context.term()

    def hello(self, token: str | None = None, **args: Any) -> dict[str, Any]:
        """Says it, and remembers who it is from then on."""
        given = {"token": token} if token is not None else {}
        ok = self.ask("hello", **{"min": 1, "max": 1, "name": "peer", **given, **args})
        self.who = {"client": ok["client"], "secret": ok["secret"]}
        return ok

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        """The good answer; AssertionError for an error."""
        answer = self._exchange(op, args)
        assert "ok" in answer, answer
        ok: dict[str, Any] = answer["ok"]
        return ok

    def refused(self, op: str, **args: Any) -> dict[str, Any]:
        """The error."""
        error: dict[str, Any] = self._exchange(op, args)["error"]
        return error

    def event(self, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The next event, one that came in between first."""
        if self.events:
            return self.events.pop(0)
        answer = self.receive(limit_s)
        assert answer is not None, "no event came"
        assert "event" in answer, answer
        return answer

    def send(self, *frames: bytes, flags: int = 0) -> None:
        """These very frames."""
        self._socket.send_multipart(frames, flags)

    def receive(self, limit_s: float) -> dict[str, Any] | None:
        """Whatever comes next; None when nothing does."""
        if not self._socket.poll(limit_s * 1000):
            return None
        answer: dict[str, Any] = orjson.loads(self._socket.recv())
        return answer

    def _exchange(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        number = next(self._ids)
        self.send(orjson.dumps({"v": 1, "id": number, "op": op, **self.who, **args}))
        while (answer := self.receive(self._limit_s)) is not None:
            if answer.get("id") == number:
                return answer
            if "event" in answer:
                self.events.append(answer)
        raise TimeoutError(f"no answer to {op}")
