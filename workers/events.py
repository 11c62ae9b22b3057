"""The events channel: what the acceptor tells everybody who wants to hear it, and nobody waits for.

ZeroMQ's publish and subscribe. A message is two frames, a prefix by which ZeroMQ filters and an
event of the control codec; which there are is in docs/protocol.md (Events). A subscription is to
`<secret>/<prefix>`, and without a secret (the Unix socket that only this user can open) to the
prefix itself, so that a plain SUB socket will do there: the acceptor looks at each (XPUB, manual)
and lets through what knows the secret.

Invariants: sending never waits and never grows: each subscriber has a queue of QUEUE_MESSAGES, what
it has no room for is dropped for it alone, and the next snapshot puts it right. A subscriber that
comes hears a snapshot at once; many that come together hear one. Whoever sends too many
subscriptions without the secret costs everybody one reconnection, and no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import zmq

from shmbroker.addresses import format_tcp
from shmbroker.config import LoadedConfig
from shmbroker.control.authorized import DataTokens
from shmbroker.control.listening import Listening
from shmbroker.control.zap import guard
from shmbroker.workers.logs import get_logger
from shmbroker.workers.loop import Loop, Timer
from shmbroker.workers.routing import bind_unix

QUEUE_MESSAGES: Final = 64  # of one subscriber
SUBSCRIPTION_BYTES: Final = 512
REFUSED_MAX: Final = 1_000  # what libzmq keeps of refused subscriptions is dropped after so many
_REOPEN_S: Final = 0.01  # between two looks whether an address is free again
_JOIN_S: Final = 0.02  # subscribers that come within it hear one snapshot
_log = get_logger("shmbroker.events")

Configure = Callable[[zmq.Socket[bytes]], None]


@dataclass(slots=True, eq=False)
class _Door:
    """One endpoint."""

    socket: zmq.Socket[bytes]
    asked: str
    tokens: DataTokens | None
    configure: Configure | None
    refused: int = 0


class Events:
    """See the module. Belongs to the loop's thread."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], loop: Loop, on_joined: Callable[[], None]
    ) -> None:
        """`on_joined` is called soon after somebody has subscribed to something."""
        self._context, self._loop, self._on_joined = context, loop, on_joined
        self._doors: list[_Door] = []  # that are open
        self._opening: dict[_Door, Timer] = {}  # whose address is not free yet
        self._joining: Timer | None = None

    def bind(
        self,
        endpoint: str,
        tokens: DataTokens | None = None,
        configure: Configure | None = None,
    ) -> str:
        """Serves subscribers at one more endpoint; returns it as bound (port 0 picks one).

        `tokens`: what their subscriptions begin with one of; None: nothing. `configure` sets
        options on the socket before it is bound (CURVE). Raises ZMQError.
        """
        door = _Door(self._open(endpoint, configure), endpoint, tokens, configure)
        self._doors.append(door)
        self._loop.watch(door.socket, lambda: self._readable(door))
        return door.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def listen(self, listening: Listening, loaded: LoadedConfig) -> None:
        """Serves programs elsewhere, who show the data token. ConfigError when that can't be."""
        tokens = listening.tokens
        at = listening.tcp("events")

        def configure(sock: zmq.Socket[bytes]) -> None:
            listen = loaded.config.listen
            sock.setsockopt(zmq.HEARTBEAT_IVL, listen.heartbeat_ms)
            sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, listen.dead_ms)
            sock.setsockopt(zmq.HANDSHAKE_IVL, listen.dead_ms)
            sock.setsockopt(zmq.IPV6, int(":" in listening.ip))
            if listening.curve is not None:
                guard(sock, listening.curve)

        if at is not None:
            try:
                self.bind(format_tcp(*at), tokens, configure)
            except zmq.ZMQError as error:
                problem = f"{format_tcp(*at)} can't be bound: {error}"
                raise loaded.refused("listen.events_port", problem, "another port") from None
        if listening.unix:
            self.bind(f"ipc://{listening.unix['events']}", tokens)

    def send(self, messages: Iterable[tuple[bytes, bytes]]) -> None:
        """To everybody who subscribed to a beginning of the first frame; never waits."""
        for frames in messages:
            for door in self._doors:
                door.socket.send_multipart(frames, zmq.NOBLOCK)

    def close(self) -> None:
        """Nobody is told any more; what is on its way is dropped."""
        if self._joining is not None:
            self._joining.cancel()
        for timer in self._opening.values():
            timer.cancel()
        self._opening.clear()
        for door in self._doors:
            self._loop.unwatch(door.socket)
            door.socket.close(linger=0)
        self._doors.clear()

    def _open(self, endpoint: str, configure: Configure | None) -> zmq.Socket[bytes]:
        sock = self._context.socket(zmq.XPUB)
        try:
            sock.linger = 0
            sock.setsockopt(zmq.SNDHWM, QUEUE_MESSAGES)
            sock.setsockopt(zmq.XPUB_MANUAL, 1)
            sock.setsockopt(zmq.MAXMSGSIZE, SUBSCRIPTION_BYTES)
            if configure is not None:
                configure(sock)
            if endpoint.startswith("ipc://"):
                bind_unix(sock, endpoint)
            else:
                sock.bind(endpoint)
        except BaseException:
            sock.close(linger=0)
            raise
        return sock

    def _readable(self, door: _Door) -> None:
        while True:
            try:
                message = door.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._asked(door, message)
            if door.refused > REFUSED_MAX:
                self._reopen(door)
                return

    def _asked(self, door: _Door, message: bytes) -> None:
        """A subscription (1), its end (0), or something that is neither."""
        kind, wanted = message[:1], message[1:]
        prefix = _without(door.tokens, wanted)
        if prefix is None or kind not in (b"\0", b"\1"):
            door.refused += 1
        elif kind == b"\0":
            door.socket.setsockopt(zmq.UNSUBSCRIBE, prefix)
        else:
            door.socket.setsockopt(zmq.SUBSCRIBE, prefix)
            if self._joining is None:
                self._joining = self._loop.after(_JOIN_S, self._joined)

    def _joined(self) -> None:
        self._joining = None
        self._on_joined()

    def _reopen(self, door: _Door) -> None:
        """Drops every connection, and what libzmq remembers of them; subscribers come again."""
        _log.warning("events channel opened anew", reason="too many subscriptions were refused")
        endpoint = door.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._loop.unwatch(door.socket)
        self._doors.remove(door)
        door.socket.unbind(endpoint)
        door.socket.close(linger=0)
        self._open_again(door, endpoint)

    def _open_again(self, door: _Door, endpoint: str) -> None:
        """As soon as libzmq, which closes in a thread of its own, has let go of the address."""
        self._opening.pop(door, None)
        try:
            door.socket, door.refused = self._open(endpoint, door.configure), 0
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE:
                raise
            again = self._loop.after(_REOPEN_S, lambda: self._open_again(door, endpoint))
            self._opening[door] = again
            return
        self._doors.append(door)
        self._loop.watch(door.socket, lambda: self._readable(door))


def _without(tokens: DataTokens | None, wanted: bytes) -> bytes | None:
    """The prefix that a subscription is to; None if it does not show a token that lets in."""
    if tokens is None:
        return wanted
    shown, slash, prefix = wanted.partition(b"/")
    return prefix if slash and tokens.admits(shown) else None


__all__ = ["QUEUE_MESSAGES", "REFUSED_MAX", "SUBSCRIPTION_BYTES", "Events"]
