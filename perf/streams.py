"""A reader process, bare consumers of its streams, and the bare loop that they are held against.

All are objects for `Remote`, so each is a process of its own. The consumer is the least that takes
a stream in: heads are read, batches go into one buffer over and over. The bare loop sends the same
files over as many connections with `sendfile` and nothing else, to the same consumer.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import ssl
import struct
import threading
import time
from pathlib import Path
from typing import Any, Final

import shmbroker
from shmbroker.config import ListenSection
from shmbroker.control.authorized import DataTokens
from shmbroker.control.listening import TlsFiles
from shmbroker.perf.clients import Address
from shmbroker.wire.native.greeting import STREAM_MAGIC, WELCOME_BYTES, Hello, encode_hello
from shmbroker.wire.native.stream_frames import (
    BATCHES_HEAD_BYTES,
    Batches,
    Heartbeat,
    Start,
    Subscribe,
    encode,
)
from shmbroker.workers.lifecycle import raise_file_limit
from shmbroker.workers.loop import Loop
from shmbroker.workers.streams.door import open_tcp
from shmbroker.workers.streams.server import Streams

TOKEN: Final = b"bench"
Part = tuple[str, int]  # topic id, partition
_HEAD: Final = struct.Struct(">B3xII")
_PLENTY: Final = 1 << 62
_BUFFER_BYTES: Final = 1 << 20
_LIMIT_S: Final = 120.0


class ReaderProcess:
    """What `workers/reader.py` runs, without an acceptor to talk to."""

    def __init__(self, address: Address, tls: TlsFiles | None = None) -> None:
        raise_file_limit()
        self._client = shmbroker.connect(address[0], data_dir=address[1])
        self._loop = Loop()
        door = open_tcp("127.0.0.1", 0, tls)
        self.port: int = door.port
        self._streams = Streams(
            self._client,
            [door],
            DataTokens(TOKEN),
            ListenSection(),
            self._loop.after,
            self._loop.stop,
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._loop.run_with(self._streams.turn)

    def where(self) -> int:
        """The port."""
        return self.port

    def usage(self) -> tuple[float, float, int]:
        """Seconds of processor in user and in kernel mode so far, and resident bytes."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return used.ru_utime, used.ru_stime, pages * resource.getpagesize()

    def close(self) -> None:
        """Ends it."""
        self._streams.jobs.tell(self._loop.stop)
        self._thread.join(_LIMIT_S)
        self._streams.close()
        self._client.close()


class BareSender:
    """One thread that sends files over as many connections as come, with nothing but sendfile."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))

    def where(self) -> int:
        """The port."""
        port: int = self._listening.getsockname()[1]
        return port

    def send(self, files: list[list[tuple[str, int]]]) -> None:
        """To each connection that comes: these files, so many bytes of each."""
        poller, sending = select.epoll(), {}
        with contextlib.ExitStack() as stack:
            stack.callback(poller.close)
            for parts in files:
                connection, _ = self._listening.accept()
                stack.enter_context(connection)
                connection.setblocking(False)
                sending[connection.fileno()] = _bare(connection.fileno(), parts)
                poller.register(connection.fileno(), select.EPOLLOUT)
            while sending:
                for fd, _ in poller.poll():
                    if next(sending[fd], None) is None:
                        poller.unregister(fd)
                        del sending[fd]

    def close(self) -> None:
        """Listens no more."""
        self._listening.close()


def _bare(to: int, parts: list[tuple[str, int]]) -> Any:
    """Yields each time the socket is full."""
    for path, size in parts:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            at = 0
            while at < size:
                try:
                    at += os.sendfile(to, fd, at, size - at)
                except BlockingIOError:
                    yield True
        finally:
            os.close(fd)


class Consumers:
    """As many connections as asked for, a thread each."""

    def take_streams(self, port: int, parts: list[list[Part]], sizes: list[list[int]],
                     certificate: str | None = None) -> tuple[float, int]:  # fmt: skip
        """Seconds until each connection has had `sizes` bytes of batches of its partitions, and
        the bytes of all."""
        return _timed([lambda p=p, s=s: _stream(port, p, s, certificate)
                       for p, s in zip(parts, sizes, strict=True)])  # fmt: skip

    def take_bare(self, port: int, sizes: list[int]) -> tuple[float, int]:
        """The same of a bare sender."""
        return _timed([lambda size=size: _bare_stream(port, size) for size in sizes])

    def idle(self, port: int, parts: list[Part], count: int) -> None:
        """Begins so many streams at the end of their partitions, in turn, and keeps them alive."""
        raise_file_limit()
        self._idle = []
        for n in range(count):
            connection = _greeted(port, None)
            topic, partition = parts[n % len(parts)]
            ask = Subscribe(1, bytes.fromhex(topic), partition, 0, _PLENTY, start=Start.LATEST)
            connection.sendall(encode(ask))
            _exactly(connection, 12 + 36)
            self._idle.append(connection)
        threading.Thread(target=self._keep_alive, daemon=True).start()

    def _keep_alive(self) -> None:
        beat = encode(Heartbeat())
        while True:
            for connection in self._idle:
                with contextlib.suppress(OSError):
                    connection.sendall(beat)
                time.sleep(3.0 / len(self._idle))  # spread, as programs' are


def _timed(calls: list[Any]) -> tuple[float, int]:
    got = [0] * len(calls)

    def run(n: int) -> None:
        got[n] = calls[n]()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(calls))]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, sum(got)


def _greeted(port: int, certificate: str | None) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), _LIMIT_S)
    if certificate is not None:
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False
        connection = context.wrap_socket(connection)
    connection.sendall(encode_hello(STREAM_MAGIC, Hello(TOKEN, "bench")))
    _exactly(connection, WELCOME_BYTES)
    return connection


def _stream(port: int, parts: list[Part], sizes: list[int], certificate: str | None) -> int:
    with _greeted(port, certificate) as connection:
        for number, (topic, partition) in enumerate(parts, 1):
            ask = Subscribe(number, bytes.fromhex(topic), partition, 0, _PLENTY,
                            start=Start.EARLIEST)  # fmt: skip
            connection.sendall(encode(ask))
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        fixed = BATCHES_HEAD_BYTES - _HEAD.size
        left, beat, beaten_s = sum(sizes), encode(Heartbeat()), time.monotonic()
        while left > 0:
            if time.monotonic() - beaten_s > 1:  # who says nothing is taken for dead
                connection.sendall(beat)
                beaten_s = time.monotonic()
            kind, _, length = _HEAD.unpack(_exactly(connection, _HEAD.size))
            if kind != Batches.kind:
                _exactly(connection, length)
                continue
            _exactly(connection, fixed)
            length -= fixed
            left -= length
            while length:
                got = connection.recv_into(buffer[: min(length, _BUFFER_BYTES)])
                if not got:
                    raise RuntimeError("the stream ended")
                length -= got
        return sum(sizes) - left


def _bare_stream(port: int, size: int) -> int:
    left, buffer = size, memoryview(bytearray(_BUFFER_BYTES))
    with socket.create_connection(("127.0.0.1", port), _LIMIT_S) as connection:
        while left > 0 and (got := connection.recv_into(buffer)):
            left -= got
    return size - left


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise RuntimeError("the stream ended")
        data += piece
    return data


__all__ = ["BareSender", "Consumers", "Part", "ReaderProcess"]
