"""The attachment to a broker of this host: the attach socket, and its shared memory, mapped.

Owns: the Unix socket whose hang-up is the broker's death, and ours to the broker; the mapped park
words (writable) and writer tables (read-only).
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING, Final

import orjson

from shmbroker._core import shm
from shmbroker._core.reader import Mapping
from shmbroker.client.attach import MESSAGE_BYTES, attach
from shmbroker.client.connection import Connection, drain
from shmbroker.client.pressure import PressureSource, TablePressures
from shmbroker.errors import NoBroker, ShmbrokerError
from shmbroker.places import Places

if TYPE_CHECKING:
    from shmbroker.client.metadata import Metadata
    from shmbroker.client.source import Source

_LAST_ATTEMPT_S: Final = 0.5  # for a broker that listens and does not answer, past reconnect_s


class LocalConnection(Connection):
    """See the module."""

    def __init__(self, places: Places, *, timeout: float, reconnect_s: float) -> None:
        """Attaches; NoBroker when nobody answers within `timeout` seconds."""
        super().__init__(timeout=timeout, reconnect_s=reconnect_s)
        self.places = places
        self._map_lock = threading.Lock()
        self._tables: dict[int, Mapping] = {}
        self._pressures: TablePressures | None = None
        self.attachment, self._socket = attach(places, timeout, None)
        try:
            self.park = self._map("p", shm.KIND_PARK, writable=True)
        except (OSError, ValueError) as error:
            self._socket.close()
            raise NoBroker(places.instance, str(places.runtime_dir), str(error)) from error
        self._begin()

    @property
    def address(self) -> str:
        """See Connection: an absolute path, whatever the broker's name."""
        return str(self.places.runtime_dir)

    @property
    def broker(self) -> str:
        """See Connection."""
        pid = self.attachment.broker_pid
        return f"the broker of instance {self.places.instance!r} (pid {pid})"

    @property
    def way_back(self) -> str:
        """See Connection."""
        return "start it with: shmbroker up"

    @property
    def control_address(self) -> str:
        """See Connection."""
        return self.places.zmq_address("control")

    def table(self, writer: int) -> Mapping:
        """The table of a writer, mapped read-only at the first call."""
        self.check()
        with self._map_lock:
            found = self._tables.get(writer)
            if found is None:
                found = self._tables[writer] = self._map(f"w{writer}", shm.KIND_WRITER)
            return found

    def open_object(self, suffix: str, kind: int, *, writable: bool = False) -> shm.ShmObject:
        """Opens `<prefix>-<suffix>`; FileNotFoundError when it is not there."""
        a = self.attachment
        name = f"{a.prefix}-{suffix}"
        return shm.open_existing(name, kind, a.boot_id, a.dir_id, writable=writable)

    def keeps(self, name: str, inode: int) -> bool:
        """See Connection: as long as the name leads to the object that we mapped."""
        try:
            return os.stat(f"/dev/shm{name}").st_ino == inode
        except FileNotFoundError:
            return False

    def source(self, metadata: Metadata) -> Source:
        """Where one consumer's records come from."""
        from shmbroker.client.local_source import LocalSource  # not for who only produces

        return LocalSource(self, metadata)

    @property
    def pressures(self) -> PressureSource:
        """What is known of partitions' pressure here: out of the mapped tables, without asking."""
        with self._map_lock:
            if self._pressures is None:
                self._pressures = TablePressures(self)
            return self._pressures

    # --- maps -----------------------------------------------------------------------------

    def _map(self, suffix: str, kind: int, *, writable: bool = False) -> Mapping:
        found = self.open_object(suffix, kind, writable=writable)
        try:
            return Mapping(found.name, found.fileno(), writable=writable)
        finally:
            found.close()

    # --- the watcher's thread ------------------------------------------------------------------

    def _until_gone(self) -> bool:
        """See Connection: sleeps until the broker hangs up."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.register(self._wake_fd, select.POLLIN)
        while not self._closed:
            for fd, _ in poller.poll():
                if fd == self._wake_fd:
                    drain(self._wake_fd)
                    continue
                try:
                    message = self._socket.recv(MESSAGE_BYTES)
                except OSError:
                    message = b""
                if not message:
                    return True
                self._told(orjson.loads(message))
        return False

    def _hang_up(self) -> None:
        self._socket.close()

    def _find_again(self, deadline: float) -> bool:
        before = self.attachment
        patience = min(self.timeout, max(_LAST_ATTEMPT_S, deadline - time.monotonic()))
        try:
            attachment, sock = attach(self.places, patience, before)
        except NoBroker:
            raise
        except ShmbrokerError:  # the broker knows this client no more
            attachment, sock = attach(self.places, patience, None)
        self.attachment = attachment
        try:
            with self._map_lock:
                same = self.park.current and attachment.prefix == before.prefix
                if not same:
                    self.park = self._map("p", shm.KIND_PARK, writable=True)
                self._tables = {w: t for w, t in self._tables.items() if same and t.current}
        except BaseException:
            self.attachment = before
            sock.close()
            raise
        with self._changed:  # close() sees either
            self._socket = sock
            if self._closed:
                sock.close()
        return bool(same and attachment.adopted)

    def _forked_child(self) -> None:
        fd = self._socket.detach()
        if fd >= 0:
            os.close(fd)


__all__ = ["LocalConnection"]
