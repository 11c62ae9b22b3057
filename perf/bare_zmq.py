"""What bare ZeroMQ does over loopback TCP: the limit of everything that goes through ingress.

A DEALER and a ROUTER, each in a process of its own (`Remote`), with pyzmq and nothing else. Both
ways of measuring are as fair as they get: messages are not copied on their way in or out, as many
are on their way as a session of ingress allows, and each is answered.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import zmq

from shmbroker.wire.native.limits import IN_FLIGHT

_HEAD: Final = bytes(44)  # before a batch, as a Produce has
_ANSWER: Final = bytes(32)


class BareRouter:
    """Takes what comes to a ROUTER and answers."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._port = self._socket.bind_to_random_port("tcp://127.0.0.1")

    def address(self) -> str:
        """Where it is."""
        return f"tcp://127.0.0.1:{self._port}"

    def serve(self, count: int) -> None:
        """Answers so many messages with a few bytes and throws them away."""
        for _ in range(count):
            identity = self._socket.recv_multipart(copy=False)[0]
            self._socket.send_multipart([identity.bytes, _ANSWER])

    def echo(self, count: int) -> None:
        """Gives so many messages back."""
        for _ in range(count):
            self._socket.send_multipart(self._socket.recv_multipart())

    def close(self) -> None:
        """Gives the port back."""
        self._context.destroy(linger=0)


class BareDealer:
    """Sends the same messages again and again to a BareRouter."""

    def __init__(self, address: str, messages: Sequence[bytes]) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(address)
        self._messages = messages

    def move(self, count: int) -> float:
        """Seconds until so many messages, each behind a head, are answered (`serve`)."""
        sock, messages = self._socket, self._messages
        began, sent = time.perf_counter(), 0
        for answered in range(count):
            while sent < min(count, answered + IN_FLIGHT):
                sock.send(_HEAD, zmq.SNDMORE)
                sock.send(messages[sent % len(messages)], copy=False)
                sent += 1
            sock.recv()
        return time.perf_counter() - began

    def round_trips(self, count: int) -> list[float]:
        """Microseconds until each of so many messages, one at a time, is back (`echo`)."""
        sock, messages, took = self._socket, self._messages, []
        for n in range(count):
            began = time.perf_counter_ns()
            sock.send(messages[n % len(messages)])
            sock.recv()
            took.append((time.perf_counter_ns() - began) / 1e3)
        return took

    def close(self) -> None:
        """Without a word."""
        self._context.destroy(linger=0)


__all__ = ["BareDealer", "BareRouter"]
