"""One connection to a reader process: its socket, its greeting, its subscriptions, its end.

    CONNECTING --writable--> [SECURING --TLS--] GREETING --Welcome--> OPEN

Owns: the socket, the codec (`wire/native/stream_client.py`) and the inlet that puts batches into
feeds. In the receiver's thread only. What ends the connection is raised by `turn` (OSError,
ShmbrokerError); the receiver closes it then and subscribes anew elsewhere.

Invariants: nothing here blocks; what is to be said waits in `_out`, which is small, since only
answers to what came and new subscriptions are said.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from collections.abc import Callable
from typing import Final

from shmbroker._core import feed as core
from shmbroker.client.remote.data_port import DataPort, connect, secured
from shmbroker.client.remote.subscription import Subscription
from shmbroker.errors import AuthenticationFailed, BrokerGone, CorruptBatch, InvalidRequest
from shmbroker.wire.native.greeting import Hello, Welcome
from shmbroker.wire.native.limits import DEAD_MS, HEARTBEAT_MS
from shmbroker.wire.native.stream_client import Event, StreamClient
from shmbroker.wire.native.stream_frames import (
    ClientFrame,
    Closing,
    Credit,
    Ended,
    Failed,
    Heartbeat,
    Subscribed,
    Unsubscribe,
)

_READABLE: Final = select.POLLIN | select.POLLHUP | select.POLLERR
_GREETING_BYTES: Final = 4096


class StreamLink:
    """See the module."""

    def __init__(self, port: DataPort, endpoint: str, on_begun: Callable[[], None]) -> None:
        """Connects. `on_begun` is called when a subscription has begun: the broker is there."""
        self._port, self._on_begun = port, on_begun
        self.endpoint: Final = endpoint
        self.subscriptions: dict[int, Subscription] = {}  # asked for and not ended, by number
        self.open = False
        self.silent_s = 0.0  # time in which we looked and heard nothing
        self.quiet_s = 0.0  # time in which we said nothing
        self.empty_s = 0.0  # time without a subscription
        self.heartbeat_s, self.dead_s = HEARTBEAT_MS / 1000, DEAD_MS / 1000
        self._codec, self._inlet = StreamClient(), core.Inlet()
        self._heard = 0
        self._out = bytearray()
        self._next_number = 1
        self._step: Callable[[], None] = self._connected
        self._wants_write = True
        self._socket: socket.socket = connect(endpoint)

    # --- for the receiver ----------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more subscriptions it takes."""
        limit = core.SUBSCRIPTIONS
        if self._codec.welcome is not None:
            limit = min(limit, self._codec.welcome.limit)
        return max(0, limit - len(self.subscriptions))

    def watched(self) -> tuple[int, core.Inlet | None, bool]:
        """How `_core.feed.wait` is to look at it."""
        plain = self.open and not isinstance(self._socket, ssl.SSLSocket)
        return self._socket.fileno(), self._inlet if plain else None, self._wants_write

    def turn(self, found: int) -> None:
        """Sees to what `wait` found. Raises what ends the connection."""
        event, flags = found & 0xFF, found >> 8
        if event:
            self._see_to(event, self._receive)
        elif self.open and flags & _READABLE and isinstance(self._socket, ssl.SSLSocket):
            self._decrypt(self._socket)
        elif not self.open and flags:
            self._step()
        if flags & select.POLLOUT and self.open:
            self._flush()

    def passed(self, slept_s: float) -> None:
        """So long was looked at the socket. Raises BrokerGone when the peer is dead."""
        self.quiet_s += slept_s
        self.silent_s = 0.0 if self._inlet.heard != self._heard else self.silent_s + slept_s
        self._heard = self._inlet.heard
        self.empty_s = 0.0 if self.subscriptions or not self.open else self.empty_s + slept_s
        if self.silent_s >= self.dead_s:
            raise BrokerGone(f"{self.endpoint} said nothing for {self.dead_s:g} s")
        if self.open and self.quiet_s >= self.heartbeat_s:
            self._say(Heartbeat())

    def due_s(self) -> float:
        """When `passed` is to be called at the latest."""
        return max(0.0, min(self.dead_s - self.silent_s, self.heartbeat_s - self.quiet_s))

    def subscribe(self, wanted: Subscription, spare_bytes: int) -> None:
        """Asks for it; it is OPEN and has `room`."""
        while self._next_number in self._codec.subscriptions:
            self._next_number = self._next_number % core.SUBSCRIPTIONS + 1
        number = self._next_number
        self._next_number = number % core.SUBSCRIPTIONS + 1
        self.subscriptions[number] = wanted
        self._say(wanted.asked(number, spare_bytes))

    def unsubscribe(self, dropped: Subscription) -> None:
        """It is no longer wanted; its number is free when the broker says so."""
        number, dropped.number = dropped.number, 0
        del self.subscriptions[number]
        self._inlet.drop(number, False)
        self._say(Unsubscribe(number))

    def grant(self, granted: Subscription, spare_bytes: int) -> None:
        """More credit, if there is any to give."""
        limit = granted.feed.grant(spare_bytes)
        if limit > granted.limit_bytes:
            granted.limit_bytes = limit
            self._say(Credit(granted.number, limit))

    def close(self) -> None:
        """Hangs up; the subscriptions stay as they are, and nothing is put into their feeds."""
        self._codec.close()
        self._inlet = core.Inlet()
        self._socket.close()

    def let_go(self) -> None:
        """After `close`, of all subscriptions: nobody goes on with them."""
        for number in self.subscriptions:
            self._inlet.drop(number, False)
        self.subscriptions.clear()

    def forked(self) -> None:
        """In a child: a copy of the socket would hide the parent's end from the broker."""
        fd = self._socket.detach()
        if fd >= 0:
            os.close(fd)

    # --- the beginning -------------------------------------------------------------------------

    def _connected(self) -> None:
        why = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if why:
            raise OSError(why, os.strerror(why))
        if self._port.certificate is not None and self.endpoint.startswith("tcp"):
            self._socket = secured(self._socket, self._port.certificate)
            self._step = self._handshake
            self._handshake()
        else:
            self._greet()

    def _handshake(self) -> None:
        assert isinstance(self._socket, ssl.SSLSocket)
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            self._wants_write = False
            return
        except ssl.SSLWantWriteError:
            self._wants_write = True
            return
        shown = self._socket.getpeercert(binary_form=True)
        if shown is None or ssl.DER_cert_to_PEM_cert(shown).split() != (
            (self._port.certificate or "").split()
        ):
            raise AuthenticationFailed(
                f"{self.endpoint} shows another certificate than the broker's"
            )
        self._greet()

    def _greet(self) -> None:
        self._step = self._answered
        self._out += self._codec.send(Hello(self._port.token, self._port.name))
        self._flush()

    def _answered(self) -> None:
        if self._out:
            self._flush()
        try:
            data = self._socket.recv(_GREETING_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, f"{self.endpoint} hung up")
        self.silent_s = 0.0
        self._codec.receive_data(data)
        welcome = self._codec.next_event()
        if welcome is None:
            return
        assert isinstance(welcome, Welcome)
        if welcome.data_dir_id != self._port.data_dir_id:
            raise AuthenticationFailed(f"{self.endpoint} is another broker than control is")
        self.heartbeat_s, self.dead_s = welcome.heartbeat_ms / 1000, welcome.dead_ms / 1000
        self.open = True
        self._see_to(self._inlet.put(self._codec.unread()), self._look)

    # --- what comes ----------------------------------------------------------------------------

    def _receive(self) -> int:
        return self._inlet.receive(self._socket.fileno())

    def _look(self) -> int:
        return self._inlet.came(0)

    def _decrypt(self, tls: ssl.SSLSocket) -> None:
        """Until there is no more: what was decrypted already, no poll tells of."""
        while True:
            try:
                n = tls.recv_into(self._inlet.place())
            except ssl.SSLWantReadError:
                return
            except ssl.SSLWantWriteError:
                self._wants_write = True
                return
            if not n:
                raise ConnectionResetError(errno.ECONNRESET, f"{self.endpoint} hung up")
            self._see_to(self._inlet.came(n), self._look)

    def _see_to(self, event: int, more: Callable[[], int]) -> None:
        while event != core.MORE:
            if event == core.FRAME:
                self._codec.receive_data(self._inlet.frame())
                while (said := self._codec.next_event()) is not None:
                    self._heard_of(said)
            elif event == core.FAULT:
                self._fault(self._inlet.number, self._inlet.fault)
            elif event == core.END:
                why = self._inlet.fault or errno.ECONNRESET
                raise OSError(why, os.strerror(why))
            else:
                raise InvalidRequest(f"{self.endpoint} sends what is no frame of a stream")
            event = more()

    def _heard_of(self, said: Event) -> None:
        if isinstance(said, Subscribed):
            begun = self.subscriptions.get(said.subscription)
            if begun is not None:
                self._inlet.list(said.subscription, begun.feed)
                self._on_begun()
        elif isinstance(said, Ended):
            self._inlet.drop(said.subscription, True)
        elif isinstance(said, Failed):
            self._failed(said)
        elif isinstance(said, Closing):
            raise BrokerGone(f"{self.endpoint} stops")

    def _failed(self, said: Failed) -> None:
        if not said.subscription:
            raise said.error
        self._inlet.drop(said.subscription, True)
        failed = self.subscriptions.pop(said.subscription, None)
        if failed is not None:
            failed.fail(said.error)
        self._on_begun()  # the broker is there and answers

    def _fault(self, number: int, fault: int) -> None:
        """A batch that is none: its consumer is told, the connection goes on."""
        failed = self.subscriptions.pop(number, None)
        if failed is None:
            return
        self._say(Unsubscribe(number))
        failed.fail(
            CorruptBatch(
                f"{failed.topic}-{failed.partition}: what {self.endpoint} sent for offset "
                f"{failed.feed.next_offset} is no batch ({core.fault_text(fault)}); read it again, "
                f"and if that fails too look on the broker's host with: shmbroker log dump"
            )
        )

    # --- what is said --------------------------------------------------------------------------

    def _say(self, frame: ClientFrame) -> None:
        self._out += self._codec.send(frame)
        self._flush()

    def _flush(self) -> None:
        self.quiet_s = 0.0
        self._wants_write = False
        while self._out:
            try:
                del self._out[: self._socket.send(self._out)]
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wants_write = True
                return
            except ssl.SSLWantReadError:
                return


__all__ = ["StreamLink"]
