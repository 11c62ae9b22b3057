"""The attachment to a broker elsewhere: control over ZeroMQ, and a private copy of what it shares.

Owns: the watcher's work: heartbeats on control and what the broker says there, the way of batches
to ingress (`ingress_link.py`), what is heard of pressure. The broker is gone when the connection to
control breaks, when it has been silent for `dead_ms`, or knows this client no more.

Producers and consumers run on the same shared memory as a local client's, but it is this process's
own (`mirror.py`, and a feed for each stream that is read); rings are never lost, so what was
published and not answered goes out again by itself after a break.
"""

from __future__ import annotations

import operator
import os
import time
from typing import TYPE_CHECKING, Any, Final

import orjson
import zmq

from shmbroker.client.admin import process_context
from shmbroker.client.attach import program_name
from shmbroker.client.connection import Connection, drain
from shmbroker.client.remote.data_port import DataPort
from shmbroker.client.remote.hello import Credentials, Desk, RemoteAttachment, meet, shortened
from shmbroker.client.remote.ingress_link import IngressLink
from shmbroker.client.remote.mirror import Mirror
from shmbroker.client.remote.pressure import HeardPressures
from shmbroker.client.remote.streams import Streams
from shmbroker.errors import InvalidRequest, NoBroker

if TYPE_CHECKING:
    from shmbroker._core import shm
    from shmbroker._core.reader import Mapping
    from shmbroker.client.admin import Control
    from shmbroker.client.metadata import Metadata
    from shmbroker.client.pressure import PressureSource
    from shmbroker.client.source import Source

_LEAVE_S: Final = 1.0  # at close(): for what producers have published and not waited for
_LAST_ATTEMPT_S: Final = 0.5
_STALL_S: Final = 0.5  # how late the watcher may be before silence is its own
_PROGRAM: Final = program_name()


class RemoteConnection(Connection):
    """See the module."""

    ring_bytes = 16 << 20
    batch_bytes = 512 << 10  # each costs some steps in Python here and in ingress
    frames_ahead = 4  # an answer is a round trip away, which a lone record is not to wait for
    attachment: RemoteAttachment

    def __init__(
        self, address: str, credentials: Credentials, *, timeout: float, reconnect_s: float
    ) -> None:
        """Says hello; NoBroker when nobody answers within `timeout` s, or the broker's error."""
        super().__init__(timeout=timeout, reconnect_s=reconnect_s)
        self._address, self._credentials = address, credentials
        self._context = process_context()
        try:
            self._desk = Desk(self._context, shortened(address), credentials)
        except ValueError as error:
            raise NoBroker(address, address, str(error)) from None
        try:
            self.attachment = meet(self._desk, address, credentials, timeout)
        except BaseException:
            self._desk.close()
            raise
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._mirror = Mirror(self._bell)
        self.park = self._mirror.park
        self._link = IngressLink(self._context, self._mirror, self.prepare, _PROGRAM)
        self._streams: Streams | None = None
        self._heard: HeardPressures | None = None
        self._poller, self._watched = zmq.Poller(), list[Any]([None])
        self._forgotten = False  # the broker refused a request: it knows this client no more
        self._begin()

    # --- see Connection ------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """See Connection."""
        return self._address

    @property
    def broker(self) -> str:
        """See Connection."""
        return f"the broker at {self._address}"

    @property
    def way_back(self) -> str:
        """See Connection."""
        return "look there with: shmbroker status"

    @property
    def control_address(self) -> str:
        """See Connection."""
        return shortened(self._address)

    def prepare(self, sock: zmq.Socket[bytes], endpoint: str) -> None:
        """See Connection."""
        sock.setsockopt(zmq.IPV6, 1)
        self._credentials.prepare(sock, endpoint)

    def table(self, writer: int) -> Mapping:
        """See Connection."""
        self.check()
        return self._mirror.table(writer)

    def open_object(self, suffix: str, kind: int, *, writable: bool = False) -> shm.ShmObject:
        """See Connection."""
        return self._mirror.open_object(suffix)

    def keeps(self, name: str, inode: int) -> bool:
        """See Connection: rings are this process's own."""
        return True

    def request(
        self,
        op: str,
        timeout: float | None = None,
        control: Control | None = None,
        **args: Any,
    ) -> dict[str, Any]:
        """See Connection; what is about rings is answered here."""
        if op == "open_ingress":
            self.check()
            return self._mirror.open_ingress(args["writer"], args["capacity"], args["slots"])
        if op == "close_ingress":
            self.check()
            return self._mirror.close_ingress(args["ingress"])
        try:
            answer = super().request(op, timeout, control, **args)
        except InvalidRequest:
            if self._known():
                raise
            answer = super().request(op, timeout, control, **args)
        return self._mirror.placed(answer)

    def source(self, metadata: Metadata) -> Source:
        """See Connection."""
        from shmbroker.client.remote.source import RemoteSource  # not for who only produces

        with self._changed:
            self.check()
            if self._streams is None:
                self._streams = Streams(self._data_port, self.reconnect_s)
        return RemoteSource(self, metadata, self._streams)

    @property
    def pressures(self) -> PressureSource:
        """See Connection: what was heard of it, from the first time that it is asked for."""
        with self._changed:
            self.check()
            if self._heard is None:
                self._hear()
            assert self._heard is not None
            return self._heard

    def close(self) -> None:
        """See Connection."""
        if not self._forked and self._pid == os.getpid() and self._streams is not None:
            self._streams.close()
        super().close()

    def _known(self) -> bool:
        """Whether the broker knows this client; if not, the watcher says hello again, and this
        returns when it is about to."""
        try:
            super().request("heartbeat")
        except InvalidRequest:
            self._forgotten = True
            os.eventfd_write(self._wake_fd, 1)
            with self._changed:
                self._changed.wait_for(lambda: self._closed or not self._forgotten, self.timeout)
            return False
        return True

    # --- the watcher's thread ------------------------------------------------------------------

    def _until_gone(self) -> bool:
        told, heard_s = self.attachment, time.monotonic()
        self._link.open(told.ingress, told.data_token, told.heartbeat_s, told.dead_s)
        said_s, link_at = heard_s, heard_s
        while not self._closed:
            now = time.monotonic()
            if now - heard_s > told.dead_s:
                return True
            if now - said_s >= told.heartbeat_s:
                if not self._desk.ask("heartbeat", {"client": told.client, "secret": told.token}):
                    return True
                said_s = now
            if now >= link_at:
                link_at = self._link.tick(now)
            due = min(said_s + told.heartbeat_s, heard_s + told.dead_s, link_at)
            waits_ms = int(max(0.0, due - now) * 1000) + 1
            if self._mirror.arm():
                self._link.pump()
                waits_ms = 0
            ready = self._poll(waits_ms)
            stood_s = time.monotonic() - max(due, now) - _STALL_S
            if stood_s > 0:  # we did, and could have heard nobody
                heard_s += stood_s
                self._link.stood(stood_s)
            if not self._turn(ready) or self._forgotten:
                return not self._closed
            if self._desk.socket in ready:
                heard_s = time.monotonic()
        self._link.leave(_LEAVE_S)
        self._desk.leave(told)
        return False

    def _turn(self, ready: dict[Any, int]) -> bool:
        """Sees to what is ready; False when the broker is gone."""
        if self._bell in ready:
            drain(self._bell)
            self._link.pump()  # a lone record is on its way before anything else is looked at
        if self._wake_fd in ready:
            drain(self._wake_fd)
        if self._desk.monitor in ready:
            return False
        if self._desk.socket in ready and not self._hear_desk():
            return False
        link = self._link
        if link.monitor in ready:
            link.look_at_monitor()
        if link.socket in ready and link.receive():
            link.pump()
        heard = self._heard
        if heard is not None and heard.socket in ready:
            heard.receive()
        return True

    def _poll(self, timeout_ms: int) -> dict[Any, int]:
        heard, link = self._heard, self._link
        watched: list[Any] = [self._bell, self._wake_fd, self._desk.socket, self._desk.monitor]
        watched += [link.socket, link.monitor, None if heard is None else heard.socket]
        if not all(map(operator.is_, watched, self._watched)):
            self._poller, self._watched = zmq.Poller(), watched
            for what in watched:
                if what is not None:
                    self._poller.register(what, zmq.POLLIN)
        return dict(self._poller.poll(timeout_ms))

    def _hear_desk(self) -> bool:
        """Takes what control says unasked; False when the broker knows us no more."""
        while True:
            try:
                message = orjson.loads(self._desk.socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return True
            except ValueError:
                continue
            if "event" in message:
                self._told(message)
            elif "error" in message:
                return False

    def _hang_up(self) -> None:
        self._desk.close()
        self._link.close()
        if self._closed:
            self._link.forget()
            self._mirror.close()
            if self._heard is not None:
                self._heard.close()
            os.close(self._bell)

    def _find_again(self, deadline: float) -> bool:
        before = self.attachment
        patience = min(self.timeout, max(_LAST_ATTEMPT_S, deadline - time.monotonic()))
        desk = Desk(self._context, shortened(self._address), self._credentials)
        try:
            told = meet(
                desk, self._address, self._credentials, patience, before, lambda: self._closed
            )
            if told.dir_id != before.dir_id:
                raise NoBroker(
                    self._address, self._address, "another broker answers there than before"
                )
        except BaseException:
            desk.close()
            raise
        self._desk, self.attachment, self._forgotten = desk, told, False
        if self._heard is not None:
            self._heard.close()
            self._hear()
        return True

    def _forked_child(self) -> None:
        """The copies of ZeroMQ's sockets are its threads', which are not here."""

    # --- helpers -------------------------------------------------------------------------------

    def _hear(self) -> None:
        told = self.attachment
        self._heard = HeardPressures(
            self._context,
            told.events,
            secret=told.data_token,
            configure=lambda sock: self._credentials.prepare(sock, told.events),
            connection=self,
            limits=told.pressure,
            dead_s=told.dead_s,
        )
        if hasattr(self, "_wake_fd"):
            os.eventfd_write(self._wake_fd, 1)

    def _data_port(self) -> DataPort:
        told = self.attachment
        return DataPort(told.data, told.data_token, told.dir_id, told.certificate, _PROGRAM)


__all__ = ["RemoteConnection"]
