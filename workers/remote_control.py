"""Control for programs elsewhere: its sockets, their hello, and what they are told unasked.

    tcp://host:port        ZeroMQ ROUTER; beyond loopback with CURVE, whose keys a Gate looks at
    ipc://remote-control   the same in the runtime directory, 0600

What they say is docs/protocol.md, Control; what they ask is answered by requests.py. Sessions are
control/remote_clients.py's.

Invariants: nobody is answered anything but a refusal before hello, and hello needs the token (or,
with CURVE, an authorised key); a message is bounded before it is read, and so is what waits for a
peer that does not read; one peer's flood is looked at in small pieces.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import zmq

from shmbroker import errors
from shmbroker.addresses import format_tcp
from shmbroker.config import LoadedConfig
from shmbroker.control import messages
from shmbroker.control.authorized import DataTokens
from shmbroker.control.listening import Listening
from shmbroker.control.remote_clients import RemoteClient, RemoteClients
from shmbroker.control.zap import Gate, guard
from shmbroker.workers.logs import get_logger
from shmbroker.workers.loop import Loop
from shmbroker.workers.requests import ControlRequests, respond
from shmbroker.workers.routing import bind_unix, received, send
from shmbroker.workers.topics import Answer

_QUEUED: Final = 64  # answers and events that wait for one peer
_AT_ONCE: Final = 64  # messages, before the acceptor looks at something else
_NAME_MAX: Final = 200
_KEEPALIVE_S: Final = 3
_KEEPALIVES: Final = 3
_MANY: Final = 100  # clients whose heartbeats are looked at together, and how often
_REST_S: Final = 0.02
_log = get_logger("shmbroker.remote")


@dataclass(slots=True, eq=False)
class _Door:
    """One socket, and what those who came through it are told."""

    socket: zmq.Socket[bytes]
    is_tcp: bool
    has_keys: bool
    tells: dict[str, Any]


class RemoteControl:
    """All doors and who came through them. Belongs to the acceptor's one thread."""

    def __init__(
        self,
        listening: Listening | None,
        loaded: LoadedConfig,
        context: zmq.Context[zmq.Socket[bytes]],
        loop: Loop,
        requests: ControlRequests,
        describe: Callable[[], Mapping[str, Any]],
        next_id: Callable[[], int],
    ) -> None:
        """Opens nothing yet. `describe`: what every client is told of the broker."""
        self._listening, self._loaded, self._context = listening, loaded, context
        self._loop, self._requests, self._describe = loop, requests, describe
        listen = loaded.config.listen
        self._dead_s = listen.dead_ms / 1000
        self.sessions = RemoteClients(next_id, listen.max_connections, self._dead_s, time.monotonic)
        self._doors: list[_Door] = []
        self._gate: Gate | None = None
        self._tokens = DataTokens(b"") if listening is None else listening.tokens
        self._looking = False
        self._resting: set[_Door] = set()
        self._only_heartbeats = False  # in what was looked at last
        self.hellos_refused = 0  # without the token, or with a wrong one

    def open(self) -> None:
        """Binds what is asked for; ConfigError when that can't be."""
        listening = self._listening
        if listening is None:
            return
        if listening.ports is not None:
            if listening.curve is not None:
                self._gate = Gate(self._context, listening.curve.authorized)
                self._loop.watch(self._gate.socket, self._gate.answer)
            sock = self._socket()
            if listening.curve is not None:
                guard(sock, listening.curve)
            ip, port = listening.ip, listening.ports.control
            sock.setsockopt(zmq.IPV6, int(":" in ip))
            try:
                sock.bind(format_tcp(ip, port))
            except zmq.ZMQError as error:
                raise self._loaded.refused(
                    "listen.address", f"{format_tcp(ip, port)} can't be bound: {error}",
                    "another port, or port 0, which picks a free one",
                ) from None  # fmt: skip
            self._add(sock, listening, is_tcp=True)
        if listening.unix:
            sock = self._socket()
            bind_unix(sock, f"ipc://{listening.unix['control']}")
            self._add(sock, listening, is_tcp=False)

    def tell_changed(self, names: list[str]) -> None:
        """Clients ask anew for these topics."""
        event = messages.encode_event("topics", names=names)
        for client in self.sessions.clients.values():
            client.missed |= not self.tell(client, event)

    def tell_closing(self) -> None:
        """The broker goes; nobody is forgotten any more."""
        event = messages.encode_event("closing")
        for client in self.sessions.clients.values():
            self.tell(client, event)

    def status(self) -> list[dict[str, Any]]:
        """One entry a client."""
        return [
            {
                "client": c.client, "name": c.name, "key": c.key or None, "since_s": c.attached_s,
                "silent_s": round(self.sessions.silence_s(c), 3),
                "over": "tcp" if c.route[0].is_tcp else "unix",
            }
            for c in self.sessions.clients.values()
        ]  # fmt: skip

    @property
    def keys_refused(self) -> int:
        """Handshakes with a key that is not authorised."""
        return self._gate.refused if self._gate is not None else 0

    def close(self) -> None:
        """Closes all doors."""
        for door in self._doors:
            self._loop.unwatch(door.socket)
            door.socket.close(linger=0)
        self._doors.clear()
        if self._gate is not None:
            self._loop.unwatch(self._gate.socket)
            self._gate.close()

    def _socket(self) -> zmq.Socket[bytes]:
        sock = self._context.socket(zmq.ROUTER)
        sock.linger = 0
        sock.setsockopt(zmq.MAXMSGSIZE, messages.MAX_REQUEST_BYTES)
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)  # says when a peer's queue is full
        sock.set_hwm(_QUEUED)
        # Connections of hosts that vanished end by themselves, without a wake-up here for those
        # that live; and so do those that never begin to speak ZeroMQ.
        dead_ms = self._loaded.config.listen.dead_ms
        for option, value in (
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, max(1, dead_ms // 1000)),
            (zmq.TCP_KEEPALIVE_INTVL, _KEEPALIVE_S),
            (zmq.TCP_KEEPALIVE_CNT, _KEEPALIVES),
            (zmq.HANDSHAKE_IVL, dead_ms),
        ):
            sock.setsockopt(option, value)
        return sock

    def _add(self, sock: zmq.Socket[bytes], listening: Listening, *, is_tcp: bool) -> None:
        tells: dict[str, Any] = {"curve": False}
        for name in ("ingress", "data", "events"):
            endpoint = listening.tcp_endpoint(name)
            tells[name] = [endpoint] if is_tcp else listening.unix_endpoints(name)
        has_keys = is_tcp and listening.keys is not None
        if is_tcp and listening.tls is not None:
            tells |= {"curve": True, "data_certificate": listening.tls.certificate.read_text()}
        door = _Door(sock, is_tcp, has_keys, tells)
        self._doors.append(door)
        self._loop.watch(sock, partial(self._readable, door))

    def _readable(self, door: _Door) -> None:
        self._only_heartbeats = True
        found = _with_keys(door) if door.has_keys else _without(door)
        for identity, data, key in found:
            respond(
                data,
                partial(send, door.socket, identity),
                partial(self._do, door, identity, key),
            )
        is_all = len(found) < _AT_ONCE
        if is_all and self._only_heartbeats and len(self.sessions.clients) >= _MANY:
            self._rest(door)

    def _rest(self, door: _Door) -> None:
        """The heartbeats of many come one by one and cost a wake-up each, and nobody waits for
        their answers: what comes in the next moment is looked at together."""
        if door not in self._resting:
            self._resting.add(door)
            self._loop.unwatch(door.socket)
            self._loop.after(_REST_S, partial(self._wake, door))

    def _wake(self, door: _Door) -> None:
        self._resting.discard(door)
        if door in self._doors:
            self._loop.watch(door.socket, partial(self._readable, door))

    def _do(
        self, door: _Door, identity: bytes, key: str, request: messages.Request, answer: Answer
    ) -> None:
        if door.has_keys and self._gate is not None and not self._gate.authorized.knows(key):
            raise errors.AuthenticationFailed(f"the key {key!r} is authorised no more")
        self._only_heartbeats &= request.op == "heartbeat"
        if request.op == "hello":
            answer(self._hello(door, identity, key, request))
            return
        secret = request.optional("secret", str) or request.optional("token", str)
        client = self.sessions.get(request.optional("client", int), secret, key)
        if request.op == "heartbeat":
            answer({})
        elif request.op == "goodbye":
            self.sessions.forget(client)
            answer({})
        else:
            self._requests.run(client, request, answer)
        if client.missed:
            client.missed = not self.tell(client, messages.encode_event("topics", names=None))

    def _hello(
        self, door: _Door, identity: bytes, key: str, request: messages.Request
    ) -> dict[str, Any]:
        low = request.optional("min", int) or messages.PROTOCOL_VERSION
        high = request.optional("max", int) or low
        if not low <= messages.PROTOCOL_VERSION <= high:
            raise errors.UnsupportedVersion(
                f"the client speaks versions {low} to {high} of control and the broker "
                f"{messages.PROTOCOL_VERSION}; use the same shmbroker on both sides",
                request_id=request.id,
            )
        self._check_token(request.optional("token", str), door.has_keys)
        self._requests.check_running()
        client, claimed = self.sessions.hello(
            request.optional("client", int),
            request.optional("secret", str),
            (request.optional("name", str) or "")[:_NAME_MAX],
            key,
            (door, identity),
        )
        if not claimed:
            _log.info("remote client", client=client.client, program=client.name, key=key or None)
        self._look_later()
        broker = self._describe()
        listen = self._loaded.config.listen
        return {
            "version": messages.PROTOCOL_VERSION,
            "client": client.client,
            "secret": client.token,
            "claimed": claimed,
            "heartbeat_ms": listen.heartbeat_ms,
            "dead_ms": listen.dead_ms,
            "runtime_dir": str(broker["runtime_dir"]),
            "pressure": broker["pressure"],
            **{name: broker[name] for name in ("instance", "data_dir_id", "boot_id", "broker_pid")},
            "data_token": self._data_token(key if door.has_keys else None),
            **door.tells,
        }

    def _data_token(self, key: str | None) -> str:
        assert self._listening is not None
        return self._listening.data_token if key is None else self._tokens.of(key).decode()

    def _check_token(self, given: str | None, has_key: bool) -> None:
        assert self._listening is not None
        if given is None and has_key:
            return
        told = (given or "").encode("utf-8", "replace")
        if not hmac.compare_digest(told, self._listening.token.encode()):
            self.hellos_refused += 1
            problem = "the token is wrong" if given else "a token is needed"
            raise errors.AuthenticationFailed(
                f"{problem}: the broker's user finds it in the file `token` of its runtime "
                "directory (shmbroker status --json: .listen.token_file) and gives it to who may "
                "come"
            )

    def tell(self, client: RemoteClient, event: bytes) -> bool:
        """Sends an event to a program elsewhere; False if it has no room for it, or is gone."""
        door, identity = client.route
        return send(door.socket, identity, event)

    def _look_later(self) -> None:
        """Looks for the silent as long as there is anybody."""
        if not self._looking and self.sessions.clients:
            self._looking = True
            self._loop.after(self._dead_s / 4, self._look)

    def _look(self) -> None:
        self._looking = False
        for door in self._doors:  # after a pause of ours their words may be waiting here
            self._readable(door)
        for client in self.sessions.forget_silent():
            _log.info("remote client is silent and forgotten", client=client.client)
        for client in list(self.sessions.clients.values()):
            if (
                client.key
                and self._gate is not None
                and not self._gate.authorized.knows(client.key)
            ):
                self.sessions.forget(client)
                _log.info("remote client's key is revoked", client=client.client, key=client.key)
        self._look_later()


def _without(door: _Door) -> list[tuple[bytes, bytes, str]]:
    return [(identity, data, "") for identity, data in received(door.socket, _AT_ONCE)]


def _with_keys(door: _Door) -> list[tuple[bytes, bytes, str]]:
    """As `routing.received`, with the name of the peer's key as the Gate gave it."""
    found = []
    for _ in range(_AT_ONCE):
        try:
            frames = door.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            break
        if len(frames) == 2:
            key = str(frames[1].get("User-Id"))
            found.append((frames[0].bytes, frames[1].bytes, key))
    return found


__all__ = ["RemoteControl"]
