"""A reader of the test's own in a thread, and consumers of its streams over blocking sockets."""

from __future__ import annotations

import socket
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from shmbroker._core.batch import batch_headers
from shmbroker.client.client import Client, connect
from shmbroker.config import ListenSection
from shmbroker.control.authorized import DataTokens
from shmbroker.control.listening import TlsFiles
from shmbroker.wire.native.greeting import Hello, Welcome
from shmbroker.wire.native.stream_client import StreamClient
from shmbroker.wire.native.stream_frames import (
    Batches,
    ClientFrame,
    Credit,
    Failed,
    Heartbeat,
    Isolation,
    Start,
    Subscribe,
    Subscribed,
)
from shmbroker.workers.loop import Loop
from shmbroker.workers.streams.door import open_tcp, open_unix
from shmbroker.workers.streams.server import Streams

TOKEN = b"a token"
LIMIT_S = 40.0
PLENTY = 1 << 50
HEARTBEATS = ListenSection(heartbeat_ms=9000, dead_ms=27_000)  # no test waits so long


class ReaderRig:
    """`Streams` on an ephemeral port and on a Unix socket, run by a thread of this process."""

    def __init__(
        self, address: str, directory: Path, listen: ListenSection = HEARTBEATS,
        tls: TlsFiles | None = None,
    ) -> None:  # fmt: skip
        self.client: Client = connect(address)
        self.unix = directory / f"data-{uuid.uuid4().hex[:6]}"
        self.loop = Loop()
        doors = [open_tcp("127.0.0.1", 0, tls), open_unix(self.unix)]
        self.port = doors[0].port
        self.gone = threading.Event()
        self.streams = Streams(
            self.client, doors, DataTokens(TOKEN), listen, self.loop.after, self._broker_gone
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.loop.run_with(self.streams.turn)
        finally:
            self.streams.close()
            self.loop.close()

    def _broker_gone(self) -> None:
        self.gone.set()
        self.loop.stop()

    def do(self, call: Any) -> Any:
        """`call()` in the reader's thread, and what it returns."""
        done, result = threading.Event(), []

        def run() -> None:
            result.append(call())
            done.set()

        self.streams.jobs.tell(run)
        assert done.wait(LIMIT_S)
        return result[0]

    def status(self) -> dict[str, Any]:
        """What the reader says of itself."""
        found: dict[str, Any] = self.do(self.streams.describe)
        return found

    def connect(self, kind: str = "tcp", **options: Any) -> StreamConsumer:
        """A consumer, let in."""
        return StreamConsumer(self.socket(kind), **options)

    def socket(self, kind: str = "tcp") -> socket.socket:
        """A connection that has said nothing yet."""
        if kind == "unix":
            made = socket.socket(socket.AF_UNIX)
            made.settimeout(LIMIT_S)
            made.connect(str(self.unix))
            return made
        return socket.create_connection(("127.0.0.1", self.port), LIMIT_S)

    def close(self) -> None:
        """Ends the thread and all connections."""
        if self._thread.is_alive():
            self.streams.jobs.tell(self.loop.stop)
            self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        self.client.close()

    def __enter__(self) -> ReaderRig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()


class StreamConsumer:
    """A client, and what it was given: the codec over a blocking socket."""

    def __init__(self, connection: socket.socket, token: bytes = TOKEN) -> None:
        self.connection, self.codec = connection, StreamClient()
        self.got: Counter[int] = Counter()  # bytes of batches that `read` has returned
        connection.settimeout(LIMIT_S)
        connection.sendall(self.codec.send(Hello(token, "a test")))
        self.welcome: Welcome | None = None
        for event in self.events():
            assert isinstance(event, Welcome)
            self.welcome = event
            break

    def events(self, size: int = 200_000) -> Iterator[object]:
        """All that come, until the connection ends."""
        while True:
            while (event := self.codec.next_event()) is not None:
                yield event
            if self.codec.state.name == "CLOSED":
                return
            try:
                self.codec.receive_data(self.connection.recv(size))
            except ConnectionError:
                self.codec.receive_data(b"")

    def say(self, *frames: ClientFrame) -> None:
        self.connection.sendall(b"".join(self.codec.send(frame) for frame in frames))

    def subscribe(
        self, topic_id: str, offset: int = 0, *, number: int = 1, partition: int = 0,
        limit: int = PLENTY, epoch: int = -1, appended: bool = False, start: Start = Start.OFFSET,
    ) -> object:  # fmt: skip
        """Asks, and the answer: Subscribed or Failed."""
        isolation = Isolation.APPENDED if appended else Isolation.DURABLE
        self.say(Subscribe(number, bytes.fromhex(topic_id), partition, offset, limit, epoch,
                           isolation, start))  # fmt: skip
        for event in self.events():
            if isinstance(event, (Subscribed, Failed)) and event.subscription == number:
                return event
        raise AssertionError("the connection ended")

    def read(self, until: int, number: int = 1, window_bytes: int = 0) -> bytes:
        """The batches up to that offset; with `window_bytes` so much is granted ahead of them."""
        whole = b""
        for event in self.events():
            assert isinstance(event, (Batches, Heartbeat)), event
            if isinstance(event, Heartbeat) or event.subscription != number:
                continue
            whole += event.data
            self.got[number] += len(event.data)
            if window_bytes:
                self.say(Credit(number, self.got[number] + window_bytes))
            if next_of(event.data) >= until:
                return whole
        raise AssertionError("the connection ended")

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> StreamConsumer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def next_of(data: bytes) -> int:
    """The offset behind whole batches."""
    return [*batch_headers(data, verify=False)][-1].last_offset + 1


def check_gapless(data: bytes, first: int) -> int:
    """Every CRC, and that batches follow each other from `first` on; the offset behind them."""
    at = -1
    for header in batch_headers(data):
        assert header.base_offset == at if at >= 0 else header.base_offset <= first
        at = header.last_offset + 1
    return at
