"""Control to a broker elsewhere: hello, requests and their answers, heartbeats, events.

    ASKING --hello's answer--> OPEN --silence, a cut, "say hello"--> lost

Owns: the DEALER and what waits for an answer. In the connection's thread only, but `Asked`, in which
another thread waits. Each attempt has a socket of its own, so nothing that was queued for a dead
broker reaches its successor.

Invariants: nothing here waits; an `Asked` ends once, with an answer or because the broker was lost;
silence counts only while we looked.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from typing import Any, Final, Protocol

import orjson
import zmq

from shmbroker.client.remote.credentials import Credentials
from shmbroker.client.remote.peer_socket import Change, PeerSocket
from shmbroker.control.messages import MAX_REPLY_BYTES, PROTOCOL_VERSION
from shmbroker.errors import ShmbrokerError, from_wire
from shmbroker.wire.native.limits import DEAD_MS, HEARTBEAT_MS

_INVALID_REQUEST: Final = 42
_ANSWER_S: Final = 3.0  # for a hello: then another one is said, on a new connection


class Asked:
    """One request, and what became of it once `done` is set."""

    def __init__(self, op: str, args: Mapping[str, Any]) -> None:
        self.op, self.args = op, args
        self.done = threading.Event()
        self.ok: dict[str, Any] | None = None
        self.error: Exception | None = None
        self.sent = False  # without an answer: it may have been done


class Owner(Protocol):
    """Who is told. All in the thread."""

    def on_hello(self, ok: dict[str, Any]) -> None:
        """The broker has let us in."""

    def on_refused(self, error: ShmbrokerError) -> None:
        """It has not. The link is closed."""

    def on_lost(self, why: str) -> None:
        """It is gone, or knows us no more. The link is closed."""

    def on_event(self, event: dict[str, Any]) -> None:
        """It told us something."""


class ControlLink:
    """See the module."""

    def __init__(self, owner: Owner, credentials: Credentials, name: str) -> None:
        """Nothing said yet: `begin`."""
        self._owner, self._credentials, self._name = owner, credentials, name
        self._ids = itertools.count(1)
        self._asked: dict[int, Asked] = {}
        self._doubted: list[tuple[Asked, ShmbrokerError]] = []  # refused: do they know us?
        self._who: dict[str, Any] = {}
        self._hello = self._heartbeat = 0  # number of the one that is not answered
        self._said = self._heard = self._looked = 0.0
        self._heartbeat_s, self._dead_s = HEARTBEAT_MS / 1000, DEAD_MS / 1000
        self.peer: PeerSocket | None = None
        self.open = False
        self.why = ""  # nothing came of the present attempt yet

    def begin(self, context: zmq.Context[zmq.Socket[bytes]], now: float) -> None:
        """A new attempt; who we were the broker is told, if it ever knew us."""
        self.close()
        self.peer = PeerSocket(
            context, self._credentials.address, self._credentials.secure,
            round(self._heartbeat_s * 1000), round(self._dead_s * 1000), MAX_REPLY_BYTES,
        )  # fmt: skip
        self.why = "it could not be reached"
        more = {"token": self._credentials.token} if self._credentials.token else {}
        self._heard = self._looked = now
        self._hello = self._say(
            "hello", now, min=PROTOCOL_VERSION, max=PROTOCOL_VERSION, name=self._name, **more
        )

    def ask(self, asked: Asked, now: float) -> None:
        """Sends a request; ends it at once when there is nobody to send it to."""
        if not self.open:
            asked.done.set()
            return
        try:
            number = self._say(asked.op, now, **asked.args)
        except TypeError as error:  # what no JSON can say
            asked.error = error
            asked.done.set()
            return
        asked.sent = True
        self._asked[number] = asked

    def turn(self, now: float) -> None:
        """Takes in what has come, and sees whether it is time for anything."""
        peer = self.peer
        if peer is None:
            return
        for change in peer.changes():
            if change is Change.REFUSED and self._credentials.curve is None:
                self._lose("it does not talk to us; it may ask for keys: connect(…, keys=DIR)")
                return
            if change in (Change.CUT, Change.REFUSED):
                self._lose(change.value)
                return
            self.why = change.value
        self._receive(peer, now)
        if self.peer is peer:
            self._beat(now)

    def due_s(self, now: float) -> float:
        """When `turn` is to be called at the latest."""
        if self.peer is None:
            return 3600.0
        if not self.open:
            return max(0.0, self._heard + _ANSWER_S - now)
        next_beat = self._said + self._heartbeat_s
        return max(0.01, min(next_beat, self._heard + self._dead_s) - now)

    def close(self) -> None:
        """Hangs up; what waits for an answer ends without one."""
        if self.peer is not None:
            self.peer.close()
        self.peer, self.open = None, False
        asked, self._asked = self._asked, {}
        doubted, self._doubted = self._doubted, []
        for one in asked.values():
            one.done.set()
        for one, _ in doubted:
            one.sent = False  # refused unread: it may be sent again
            one.done.set()

    # --- what is said and heard ----------------------------------------------------------------

    def _say(self, op: str, now: float, **args: Any) -> int:
        assert self.peer is not None
        number = next(self._ids)
        message = {"v": PROTOCOL_VERSION, "id": number, "op": op, **self._who, **args}
        try:
            self.peer.socket.send(orjson.dumps(message), zmq.NOBLOCK)
        except zmq.Again:  # the broker reads nothing: silence will tell
            return number
        self._said = now
        return number

    def _receive(self, peer: PeerSocket, now: float) -> None:
        while self.peer is peer:
            try:
                parts = peer.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._heard = now
            try:
                said = orjson.loads(parts[0])
            except ValueError:
                continue
            if isinstance(said, dict):
                self._understand(said, now)

    def _understand(self, said: dict[str, Any], now: float) -> None:
        if "event" in said:
            self._owner.on_event(said)
            return
        number = said.get("id")
        problem = said.get("error")
        error = from_wire(problem) if isinstance(problem, dict) else None
        if number == self._hello:
            self._hello = 0
            self._answered(said.get("ok"), error)
        elif number == self._heartbeat:
            self._heartbeat = 0
            self._beaten(error)
        else:
            asked = self._asked.pop(number, None) if isinstance(number, int) else None
            if asked is not None:
                self._end(asked, said.get("ok"), error, now)

    def _answered(self, ok: dict[str, Any] | None, error: ShmbrokerError | None) -> None:
        if error is not None or ok is None:
            self.close()
            self._owner.on_refused(error or ShmbrokerError("the broker's answer makes no sense"))
            return
        self._who = {"client": ok["client"], "secret": ok["secret"]}
        self._heartbeat_s, self._dead_s = ok["heartbeat_ms"] / 1000, ok["dead_ms"] / 1000
        self.open = True
        self._owner.on_hello(ok)

    def _end(
        self, asked: Asked, ok: dict[str, Any] | None, error: ShmbrokerError | None, now: float
    ) -> None:
        if error is not None and error.kafka_code == _INVALID_REQUEST:
            self._doubted.append((asked, error))  # the request is wrong, or we are not known
            if not self._heartbeat:
                self._heartbeat = self._say("heartbeat", now)
            return
        asked.ok, asked.error = ok, error
        asked.done.set()

    # --- heartbeats ----------------------------------------------------------------------------

    def _beat(self, now: float) -> None:
        late = now - self._looked - self._heartbeat_s
        self._looked = now
        if late > 0:  # nobody looked meanwhile: that is not the broker's silence
            self._heard += late
        if not self.open:
            if now - self._heard >= _ANSWER_S:
                self._lose(self.why)
        elif now - self._heard >= self._dead_s:
            self._lose(f"nothing was heard of it for {self._dead_s:g} s")
        elif now - self._said >= self._heartbeat_s and not self._heartbeat:
            self._heartbeat = self._say("heartbeat", now)

    def _beaten(self, error: ShmbrokerError | None) -> None:
        doubted, self._doubted = self._doubted, []
        if error is not None:
            self._doubted = doubted
            self._lose("it knows this client no more")
            return
        for asked, refused in doubted:
            asked.error = refused
            asked.done.set()

    def _lose(self, why: str) -> None:
        self._hello = self._heartbeat = 0
        self.close()
        self._owner.on_lost(why)


__all__ = ["Asked", "ControlLink", "Owner"]
