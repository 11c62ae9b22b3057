"""What a remote client knows of pressure: it hears the broker's events channel.

Owns: the subscription (an XSUB socket: what is subscribed to begins with a secret that what comes
does not bear, see docs/protocol.md, Events) and the picture of all partitions that arises from it.

Threads: `receive` and `close` belong to the connection's I/O thread, which polls `socket`; `look`,
of a `PressureSource`, may be called from any. Nothing here waits; ZeroMQ connects again by itself
and repeats the subscriptions.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import zmq

from shmbroker.client.pressure import USUAL, Spot, gone
from shmbroker.control.pressure import PartitionPressure, Thresholds
from shmbroker.control.pressure_messages import MAX_EVENT_BYTES, SNAPSHOT, Board, prefix_of
from shmbroker.errors import InvalidRequest, UnsupportedVersion
from shmbroker.units import about_s

_log = logging.getLogger("shmbroker")
_QUEUE_MESSAGES: Final = 64


class HeardPressures:
    """The `PressureSource` of a remote connection.

    Until the first snapshot has come, some milliseconds after it was made, what is not known to be
    otherwise is `ok` with the cause `unknown`.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        *,
        secret: bytes = b"",
        configure: Callable[[zmq.Socket[bytes]], None] | None = None,
        connection: Any = None,
        limits: Thresholds | None = None,
        dead_s: float = 9.0,
    ) -> None:
        """Subscribes at `endpoint`; waits for nothing.

        `secret`: what hello calls `data_token`, b"" on the broker's own Unix socket. `configure`
        sets options on the socket before it connects (CURVE). `connection`: its look() says
        whether the broker is gone. `limits`: of the own ring; from this many seconds of silence
        on, `dead_s`, nothing is known any more.
        """
        self.limits = limits or USUAL
        self._connection, self._dead_s = connection, dead_s
        self._lock = threading.Lock()
        self._board = Board()
        self._since_s = time.monotonic()
        self._beginning = secret + b"/" if secret else b""
        self._context, self._configure = context, configure
        self.socket = self._open(endpoint)

    def receive(self) -> list[PartitionPressure]:
        """Takes in what has come; returns the partitions of which it tells something new."""
        news: list[PartitionPressure] = []
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return news
            try:
                with self._lock:
                    news += self._board.hear(frames, time.monotonic())
            except (InvalidRequest, UnsupportedVersion) as error:
                _log.debug("an event that makes no sense: %s", error)

    def move(self, endpoint: str) -> zmq.Socket[bytes]:
        """Hears the broker at another endpoint from now on; returns the new socket to be polled."""
        self.socket.close(linger=0)
        self.socket = self._open(endpoint)
        return self.socket

    def look(self, spots: Iterable[Spot]) -> dict[Spot, PartitionPressure]:
        """See PressureSource."""
        away = None if self._connection is None else gone(self._connection)
        if away is not None:
            return {spot: away(spot) for spot in spots}
        with self._lock:
            now_s = time.monotonic()
            heard_s = self._since_s if self._board.heard_s is None else self._board.heard_s
            silent_s = now_s - heard_s
            if silent_s < self._dead_s:
                return {spot: self._level(spot, now_s) for spot in spots}
        reason = f"nothing has been heard of it from the broker for {about_s(silent_s)}"
        return {
            spot: PartitionPressure(spot.topic, spot.partition, "hard", "unknown", reason)
            for spot in spots
        }

    def _level(self, spot: Spot, now_s: float) -> PartitionPressure:
        level = self._board.level(spot.topic, spot.partition, now_s)
        if self._board.complete or level.cause != "none":
            return level
        return replace(level, cause="unknown", reason="nothing has been heard of it yet")

    @property
    def complete(self) -> bool:
        """Whether all there is to know has been heard once."""
        with self._lock:
            return self._board.complete

    def close(self) -> None:
        """Hears nothing any more; look() goes on with what was heard."""
        self.socket.close(linger=0)

    def _open(self, endpoint: str) -> zmq.Socket[bytes]:
        sock = self._context.socket(zmq.XSUB)
        try:
            sock.linger = 0
            sock.setsockopt(zmq.RCVHWM, _QUEUE_MESSAGES)
            sock.setsockopt(zmq.MAXMSGSIZE, MAX_EVENT_BYTES)
            sock.setsockopt(zmq.IPV6, 1)
            if self._configure is not None:
                self._configure(sock)
            sock.connect(endpoint)
            for prefix in (SNAPSHOT, prefix_of()):
                sock.send(b"\1" + self._beginning + prefix)
        except BaseException:
            sock.close(linger=0)
            raise
        return sock


__all__ = ["HeardPressures"]
