"""The stream's codecs on real sockets, with segments sent by sendfile: what leaves a log arrives as
it stands there, however the connection ends."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from log_rig import MakeRig, Rig, make_fixture  # noqa: F401

from shmbroker import errors
from shmbroker._core.batch import batch_headers
from shmbroker.log.reader import SegmentReader
from shmbroker.topic_settings import TopicSettings
from shmbroker.wire.native.greeting import Hello, Welcome
from shmbroker.wire.native.stream_client import StreamClient
from shmbroker.wire.native.stream_frames import (
    Batches,
    Credit,
    Ended,
    Ends,
    Failed,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from shmbroker.wire.native.stream_server import StreamServer

TOKEN, TOPIC = b"a token", bytes(16)
LIMIT_S = 40.0
FRAME_BYTES = 20_000


class Sender:
    """What a reader does for one connection, in a thread and with a log that stands still.

    `cut_after` bytes the connection is cut, wherever that is.
    """

    def __init__(self, connection: socket.socket, rig: Rig, cut_after: int) -> None:
        self.connection, self.rig, self.left = connection, rig, cut_after
        self.codec = StreamServer(lambda token: token == TOKEN)
        self.ends = Ends(0, rig.offset, rig.offset)
        self.at: dict[int, int] = {}

    def run(self) -> None:
        with self.connection, SegmentReader(str(self.rig.path)) as self.reader:
            with contextlib.suppress(OSError, errors.ShmbrokerError):
                while True:
                    self.codec.receive_data(self.connection.recv(65536))
                    while (event := self.codec.next_event()) is not None:
                        self.answer(event)
                    if self.codec.state.name == "CLOSED":
                        break
                    for number in self.codec.subscriptions:
                        while self.push(number):
                            pass
            with contextlib.suppress(OSError):
                self.connection.sendall(self.codec.farewell)

    def answer(self, event: object) -> None:
        if isinstance(event, Hello):
            self.send(self.codec.send(Welcome(bytes(16), limit=8)))
        elif isinstance(event, Subscribe) and event.offset > self.rig.offset:
            gap = errors.OffsetOutOfRange("t", 0, event.offset, 0, self.rig.offset)
            self.send(self.codec.send(Failed(event.subscription, gap)))
        elif isinstance(event, Subscribe):
            self.at[event.subscription] = event.offset
            self.send(self.codec.send(Subscribed(event.subscription, event.offset, self.ends, 0)))
        elif isinstance(event, Unsubscribe):
            self.send(self.codec.send(Ended(event.subscription)))

    def push(self, number: int) -> bool:
        credit = self.codec.credit_bytes(number)
        span = self.reader.span(self.at[number], min(credit, FRAME_BYTES)) if credit else None
        if span is None:
            return False
        self.send(self.codec.batches_head(number, self.ends, span.size_bytes), socket.MSG_MORE)
        done = 0
        while done < span.size_bytes:
            done += os.sendfile(
                self.connection.fileno(),
                span.fd,
                span.position + done,
                self.spend(span.size_bytes - done),
            )
        self.at[number] = span.next_offset
        return True

    def send(self, data: bytes, flags: int = 0) -> None:
        self.connection.sendall(data[: self.spend(len(data))], flags)

    def spend(self, size: int) -> int:
        if not self.left:
            raise OSError("cut")
        size = min(size, self.left)
        self.left -= size
        return size


class Consumer:
    """A client over a blocking socket, and what it was given."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.codec = connection, StreamClient()
        connection.settimeout(LIMIT_S)
        connection.sendall(self.codec.send(Hello(TOKEN, "a test")))

    def events(self) -> Iterator[object]:
        """All that come, until the connection ends."""
        while self.codec.state.name != "CLOSED":
            try:
                self.codec.receive_data(self.connection.recv(30_000))
            except ConnectionError:
                self.codec.receive_data(b"")
            while (event := self.codec.next_event()) is not None:
                yield event

    def say(self, *frames: Subscribe | Credit | Unsubscribe) -> None:
        self.connection.sendall(b"".join(self.codec.send(frame) for frame in frames))


Connect = Callable[..., Consumer]


@pytest.fixture(params=["tcp", "unix"])
def connect(request: pytest.FixtureRequest, rig: Rig) -> Iterator[Connect]:
    """Makes a connection to a Sender of its own."""
    with contextlib.ExitStack() as stack:

        def make_one(cut_after: int = 1 << 40) -> Consumer:
            if request.param == "unix":
                near, far = socket.socketpair()
            else:
                with socket.create_server(("127.0.0.1", 0)) as listening:
                    far = socket.create_connection(listening.getsockname(), LIMIT_S)
                    near, _ = listening.accept()
            thread = threading.Thread(target=Sender(near, rig, cut_after).run)
            thread.start()
            stack.callback(thread.join, LIMIT_S)
            stack.callback(far.close)
            return Consumer(far)

        yield make_one


@pytest.fixture
def rig(make: MakeRig) -> Rig:
    """A log of three segments."""
    rig = make(TopicSettings(segment_bytes=1 << 20))
    for _ in range(3):
        for count in (1, 40, 7, 3, 60, 2) * 3:
            rig.append(count, size=150)
        rig.roll()
    rig.append(9)
    return rig


def next_of(data: bytes) -> int:
    return [*batch_headers(data)][-1].last_offset + 1


def test_what_stands_in_the_segments_arrives_byte_by_byte(connect: Connect, rig: Rig) -> None:
    consumer, whole = connect(), b""
    for event in consumer.events():
        if isinstance(event, Welcome):
            consumer.say(Subscribe(1, TOPIC, 0, 0, 1 << 40))
        elif isinstance(event, Batches):
            whole += event.data
            if next_of(event.data) == rig.offset:
                consumer.say(Unsubscribe(1))
        elif isinstance(event, Ended):
            break
    assert whole == rig.written()


def test_a_cut_in_the_middle_of_a_batch_costs_nothing_and_doubles_nothing(
    connect: Connect, rig: Rig
) -> None:
    whole, offset, connections = b"", 0, 0
    while offset < rig.offset:
        connections += 1
        consumer = connect(cut_after=25_000 + 1009 * connections)
        for event in consumer.events():
            if isinstance(event, Welcome):
                consumer.say(Subscribe(1, TOPIC, 0, offset, 1 << 40))
            elif isinstance(event, Batches):
                whole, offset = whole + event.data, next_of(event.data)
                if offset == rig.offset:
                    break
        consumer.connection.close()
    assert whole == rig.written()
    assert connections > 2


def test_no_more_comes_than_there_is_credit_for(connect: Connect, rig: Rig) -> None:
    consumer, whole, limit, grants = connect(), b"", 5000, 0
    for event in consumer.events():
        if isinstance(event, Welcome):
            consumer.say(Subscribe(1, TOPIC, 0, 0, limit))
        elif isinstance(event, Batches):
            largest = max(header.size for header in batch_headers(event.data))
            whole += event.data
            assert len(whole) < limit + largest
            if next_of(event.data) == rig.offset:
                break
            if len(whole) >= limit - largest:
                limit, grants = len(whole) + 5000, grants + 1
                consumer.say(Credit(1, limit))
    assert whole == rig.written()
    assert grants > 10


def test_subscriptions_share_a_connection_and_one_fails_alone(connect: Connect, rig: Rig) -> None:
    consumer, got = connect(), {1: b"", 2: b""}
    failed = None
    for event in consumer.events():
        if isinstance(event, Welcome):
            consumer.say(
                Subscribe(1, TOPIC, 0, 0, 1 << 40),
                Subscribe(3, TOPIC, 0, rig.offset + 7, 1 << 40),
                Subscribe(2, TOPIC, 0, 0, 1 << 40),
            )
        elif isinstance(event, Failed):
            failed = event.error
        elif isinstance(event, Batches):
            got[event.subscription] += event.data
            if got[1] == got[2] == rig.written():
                break
    assert isinstance(failed, errors.OffsetOutOfRange)
    assert (failed.log_start_offset, failed.log_end_offset) == (0, rig.offset)
    assert got[1] == got[2] == rig.written()


def test_rubbish_on_the_socket_ends_it_with_the_reason(connect: Connect) -> None:
    consumer, seen = connect(), []
    for event in consumer.events():
        seen.append(event)
        if isinstance(event, Welcome):
            consumer.connection.sendall(b"\xff" * 100)
    assert isinstance(seen[-1], Failed)
    assert seen[-1].subscription == 0
    assert isinstance(seen[-1].error, errors.InvalidRequest)
