"""A reader process that fails on command, and the connection of a client to it.

StreamDouble speaks the broker's side of docs/protocol.md (Stream) by the sans-IO StreamServer, out
of logs in memory; it cuts connections in the middle of frames, falls silent, and sends rubbish. The
DoubleConnection answers what a consumer asks of control from the same logs. Neither shares code
with the real ones but the codec.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ports import free_port

from shmbroker import errors
from shmbroker._core import batch, shm
from shmbroker._core.reader import EpochWord, Mapping, wake_all
from shmbroker.client.metadata import Metadata
from shmbroker.client.remote.data_port import DataPort
from shmbroker.client.remote.source import RemoteSource
from shmbroker.client.remote.streams import Streams
from shmbroker.wire.native.greeting import Hello, Welcome
from shmbroker.wire.native.state import State
from shmbroker.wire.native.stream_frames import (
    Batches,
    Closing,
    Credit,
    Ended,
    Ends,
    Failed,
    Heartbeat,
    Isolation,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from shmbroker.wire.native.stream_server import StreamServer

TOKEN, BROKER_ID = b"a token", bytes(range(16))


class Log:
    """One partition: its batches and its ends. Change it under the double's `changed`."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, int, bytes]] = []  # base, last offset, epoch, bytes
        self.start = self.end = self.durable = 0
        self.error: errors.ShmbrokerError | None = None  # that ends its streams
        self.truncated: dict[int, int] = {}  # leader epoch -> its end offset

    def ends(self) -> Ends:
        return Ends(self.start, self.durable, self.end)


class _Peer:
    """One connection and its thread."""

    def __init__(self, double: StreamDouble, sock: socket.socket) -> None:
        self.double, self.sock = double, sock
        self.codec = StreamServer(lambda token: token == double.token)
        self.at: dict[int, tuple[Log, int, bool]] = {}
        self.asked: list[Subscribe] = []
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        self.left = double.cut_after  # bytes until it is cut
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        with contextlib.suppress(OSError, errors.ShmbrokerError), self.sock:
            poller = select.poll()
            poller.register(self.sock, select.POLLIN)
            poller.register(self.bell, select.POLLIN)
            while True:
                ready = [fd for fd, _ in poller.poll(self.double.heartbeat_ms / 3)]
                if self.bell in ready:
                    os.eventfd_read(self.bell)
                if self.double.stopped:
                    return
                if self.sock.fileno() in ready:
                    self.receive()
                if self.double.silent.is_set():
                    continue
                if not ready and self.codec.state is State.OPEN:
                    self.send(self.codec.send(Heartbeat()))
                if self.double.rubbish:
                    self.send(self.double.rubbish.pop())
                self.push_all()

    def receive(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionResetError
        self.codec.receive_data(data)
        try:
            while (event := self.codec.next_event()) is not None:
                self.answer(event)
        except errors.ShmbrokerError:
            self.sock.sendall(self.codec.farewell)
            raise

    def answer(self, event: object) -> None:
        if isinstance(event, Hello):
            double = self.double
            welcome = Welcome(
                double.data_dir_id,
                limit=double.limit,
                heartbeat_ms=double.heartbeat_ms,
                dead_ms=double.dead_ms,
            )
            self.send(self.codec.send(welcome))
        elif isinstance(event, Subscribe):
            self.asked.append(event)
            self.double.asked.append(event)
            self.subscribe(event)
        elif isinstance(event, Unsubscribe):
            self.at.pop(event.subscription, None)
            self.send(self.codec.send(Ended(event.subscription)))
        elif isinstance(event, Credit):
            self.double.credits += 1

    def subscribe(self, event: Subscribe) -> None:
        number = event.subscription
        with self.double.changed:
            log = self.double.logs.get((event.topic_id, event.partition))
            error: errors.ShmbrokerError | None = None
            if log is None:
                error = errors.UnknownTopic(event.topic_id.hex())
            elif log.error is not None:
                error = log.error
            elif log.truncated.get(event.leader_epoch, event.offset) < event.offset:
                end = log.truncated[event.leader_epoch]
                error = errors.LogTruncated("cut", offset=event.offset, end_offset=end)
            elif not log.start <= event.offset <= log.end:
                error = errors.OffsetOutOfRange("x", 0, event.offset, log.start, log.end)
            if error is not None:
                self.send(self.codec.send(Failed(number, error)))
                return
            assert log is not None
            self.at[number] = (log, event.offset, event.isolation is Isolation.APPENDED)
            epoch = log.batches[-1][2] if log.batches else 0
            self.send(self.codec.send(Subscribed(number, event.offset, log.ends(), epoch)))

    def push_all(self) -> None:
        for number in list(self.at):
            while number in self.at and self.push(number):
                pass

    def push(self, number: int) -> bool:
        log, offset, appended = self.at[number]
        with self.double.changed:
            if log.error is not None or offset < log.start:
                del self.at[number]
                gap = errors.OffsetOutOfRange("x", 0, offset, log.start, log.end)
                self.send(self.codec.send(Failed(number, log.error or gap)))
                return False
            end, credit = log.end if appended else log.durable, self.codec.credit_bytes(number)
            taken: list[bytes] = []
            size, most = 0, min(credit, self.double.frame_bytes)
            for base, last, _, raw in log.batches[self.double.find(log, offset) :]:
                if last >= end or not credit or (taken and size + len(raw) > most):
                    break
                assert base <= offset <= last or taken or base >= offset
                taken.append(raw)
                size, offset = size + len(raw), last + 1
            ends = log.ends()
        if not taken:
            return False
        self.at[number] = (log, offset, appended)
        self.send(self.codec.send(Batches(number, ends, b"".join(taken))))
        return True

    def send(self, data: bytes) -> None:
        part = data[: self.left]
        self.left -= len(part)
        self.sock.sendall(part)
        if len(part) < len(data) or not self.left:
            raise OSError("cut")


class StreamDouble:
    """Listens until `close`. The knobs may be turned at any time."""

    def __init__(self, address: str = "tcp") -> None:
        self.logs: dict[tuple[bytes, int], Log] = {}
        self.changed = threading.RLock()
        self.asked: list[Subscribe] = []
        self.peers: list[_Peer] = []
        self.rubbish: list[bytes] = []  # each is sent once, by somebody
        self.credits = 0
        self.silent = threading.Event()  # nothing is sent, not even heartbeats
        self.cut_after = 1 << 50  # bytes, of connections to come
        self.frame_bytes = 1 << 20
        self.limit = 1024
        self.token, self.data_dir_id = TOKEN, BROKER_ID
        self.heartbeat_ms, self.dead_ms = 3_000, 9_000
        self.stopped = False
        self.listen(address)

    def listen(self, address: str = "tcp") -> None:
        """Takes connections (again)."""
        if address == "tcp":
            port = free_port()
            self.listener = socket.create_server(("127.0.0.1", port))
            self.endpoint = f"tcp://127.0.0.1:{port}"
        elif address.startswith("tcp:"):
            self.listener = socket.create_server(("127.0.0.1", int(address.rpartition(":")[2])))
        else:
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(address)
            self.listener.listen()
            self.endpoint = f"unix://{address}"
        self.listening = True
        self.thread = threading.Thread(target=self._accept, args=(self.listener,))
        self.thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                self.peers.append(_Peer(self, sock))

    def deaf(self) -> None:
        """Refuses connections from now on; those that there are stay."""
        if self.listening:
            self.listening = False
            self.listener.shutdown(socket.SHUT_RDWR)
            self.thread.join()
            self.listener.close()

    def hang_up(self) -> None:
        """Cuts all connections."""
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
            peer.thread.join()
            os.close(peer.bell)
        self.peers.clear()

    def ring(self) -> None:
        for peer in list(self.peers):
            os.eventfd_write(peer.bell, 1)

    def find(self, log: Log, offset: int) -> int:
        low, high = 0, len(log.batches)
        while low < high:
            middle = (low + high) // 2
            if log.batches[middle][1] < offset:
                low = middle + 1
            else:
                high = middle
        return low

    def append(
        self, log: Log, *values: bytes | None, epoch: int = 0, durable: bool = True, at: int = -1
    ) -> None:
        """One batch more; `at`: its base offset, behind a gap."""
        with self.changed:
            base = log.end if at < 0 else at
            raw = batch.encode_values(
                list(values), 1000 + base, base_offset=base, leader_epoch=epoch
            )
            log.end = base + len(values)
            log.batches.append((base, log.end - 1, epoch, raw))
            if durable:
                log.durable = log.end
        self.ring()

    def close(self) -> None:
        self.stopped = True
        self.deaf()
        self.ring()
        self.hang_up()


class DoubleConnection:
    """What a client needs of a remote connection; `gone` and `back` are the broker's."""

    def __init__(self, double: StreamDouble, *, reconnect_s: float = 40.0) -> None:
        self.double, self.reconnect_s, self.timeout = double, reconnect_s, 5.0
        self.epoch = EpochWord()
        self.closed = self.closing = False
        self.topic_listeners: set[Any] = set()
        self.attachment = SimpleNamespace(instance="double", client=1)
        self.topics: dict[str, tuple[bytes, int]] = {}
        fd = os.memfd_create("park")
        os.ftruncate(fd, shm.PARK_BYTES)
        self.park = Mapping("park", fd, writable=True)
        os.close(fd)
        self._changed = threading.Condition()
        self._observers: list[Callable[[], None]] = []
        self._pid = os.getpid()
        self.lost = False
        self.streams = Streams(self.port, reconnect_s)

    def port(self) -> DataPort:
        return DataPort((self.double.endpoint,), TOKEN, BROKER_ID, None, "a test")

    def topic(self, name: str, partitions: int = 1) -> list[Log]:
        """Makes a topic."""
        number = uuid.uuid4().bytes
        self.topics[name] = (number, partitions)
        logs = [Log() for _ in range(partitions)]
        with self.double.changed:
            self.double.logs |= {(number, n): log for n, log in enumerate(logs)}
        return logs

    def delete(self, name: str) -> None:
        """And is gone: its streams are told."""
        number, partitions = self.topics.pop(name)
        with self.double.changed:
            for n in range(partitions):
                self.double.logs.pop((number, n)).error = errors.UnknownTopic(number.hex())
        for listener in self.topic_listeners:
            listener.on_topics(frozenset([name]))
        self.double.ring()

    def source(self, metadata: Metadata) -> RemoteSource:
        return RemoteSource(self, metadata, self.streams)  # type: ignore[arg-type]

    def request(self, op: str, timeout: float | None = None, **args: Any) -> dict[str, Any]:
        self.check()
        if op == "metadata":
            names = args["topics"] if args["topics"] is not None else list(self.topics)
            return {"topics": {n: self._described(n) for n in names if n in self.topics}}
        assert op == "offsets", op
        found = []
        number, _ = self.topics[args["topic"]]
        with self.double.changed:
            for n in args["partitions"]:
                log = self.double.logs[number, n]
                told = {
                    "partition": n,
                    "log_start_offset": log.start,
                    "high_watermark": log.durable,
                    "log_end_offset": log.end,
                    "leader_epoch": 0,
                }
                if "at_ms" in args:
                    told["offset"] = self._at(log, args["at_ms"])
                found.append(told)
        return {"partitions": found}

    def _at(self, log: Log, ms: int) -> int | None:
        for base, _, _, raw in log.batches:
            info = batch.next_batch(raw)
            if info is not None and info.max_timestamp >= ms:
                return base
        return None

    def _described(self, name: str) -> dict[str, Any]:
        number, partitions = self.topics[name]
        of_each = {"writer": 0, "slot_epoch": 1, "directory": ""}
        numbered = [{"partition": n, "slot": n} | of_each for n in range(partitions)]
        return {"id": number.hex(), "config": {}, "partitions": numbered}

    def check(self, what: str = "this client") -> None:
        if os.getpid() != self._pid:
            raise errors.ForkedError(what)
        if self.closed:
            raise errors.ClosedError(f"{what} is closed")

    def look(self, again: bool = False) -> int | None:
        self.check()
        if not self.epoch.value & 1:
            return self.epoch.value
        if self.lost and not again:
            raise errors.BrokerGone("gone")
        return None

    def attached(
        self, timeout: float | None = None, given_up: Callable[[], bool] | None = None
    ) -> int:
        with self._changed:
            done = self._changed.wait_for(
                lambda: (
                    self.closed or not self.epoch.value & 1 or (given_up is not None and given_up())
                ),
                min(self.reconnect_s, 1e6 if timeout is None else timeout),
            )
        self.check()
        if given_up is not None and given_up():
            raise errors.ClosedError("closed while the broker was gone")
        if not done:
            raise errors.TimedOut("gone") if timeout is not None else errors.BrokerGone("gone")
        return self.epoch.value

    def on_change(self, fn: Callable[[], None]) -> None:
        self._observers.append(fn)

    def notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
        for fn in self._observers:
            fn()

    def gone(self) -> None:
        """Control is lost."""
        self.epoch.set(self.epoch.value | 1)
        wake_all(self.park.address)
        self.notify()

    def back(self) -> None:
        """And found again."""
        self.epoch.set(self.epoch.value + 1)
        wake_all(self.park.address)
        self.notify()

    def close(self) -> None:
        if self.closed or os.getpid() != self._pid:
            return
        self.closed = True
        self.epoch.set(self.epoch.value | 1)
        wake_all(self.park.address)
        self.notify()
        self.streams.close()


__all__ = ["BROKER_ID", "TOKEN", "Closing", "DoubleConnection", "Log", "StreamDouble"]
