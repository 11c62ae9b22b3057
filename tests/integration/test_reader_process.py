"""The reader processes of `up --listen`: started, found over control, watched over, stopped."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import living
from remote_peer import RemotePeer
from stream_rig import LIMIT_S, StreamConsumer, check_gapless, next_of
from waiting import eventually

from shmbroker.client.client import Client
from shmbroker.control.tokens import find_token
from shmbroker.wire.native.stream_frames import Batches, Closing, Heartbeat, Start, Subscribed

from .conftest import Broker

MIB = 1 << 20


@pytest.fixture
def broker_config() -> str:
    return (
        '[broker]\nwriters = 1\n[memory]\nring_max_bytes = "256KiB"\n'
        '[listen]\naddress = "tcp://127.0.0.1:0"\nunix = true\nreaders = 2\n'
        '[log]\n"max.message.bytes" = 100000\n"segment.bytes" = "4MiB"\n'
    )


class Elsewhere:
    """A program elsewhere: what control told it, and connections to the streams."""

    def __init__(self, broker: Broker) -> None:
        with broker.client() as client:
            listening = client.status()["listen"]
        with RemotePeer(listening["control"][0]) as peer:
            self.data: list[str] = listening["data"]
            self.told: dict[str, Any] = peer.hello(find_token(listening["control"][0]))

    def connect(self, n: int = 0) -> StreamConsumer:
        """To endpoint n: the shared port, or one of the Unix sockets."""
        kind, _, rest = self.data[n].partition("://")
        if kind == "unix":
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(rest)
            except OSError:
                connection.close()
                raise
        else:
            host, _, port = rest.rpartition(":")
            connection = socket.create_connection((host, int(port)), LIMIT_S)
        return StreamConsumer(connection, self.told["data_token"].encode())


@pytest.fixture
def elsewhere(broker: Broker) -> Elsewhere:
    return Elsewhere(broker)


@pytest.fixture
def client(broker: Broker) -> Iterator[Client]:
    with broker.client() as made:
        yield made


def fill(client: Client, size: int) -> tuple[str, int]:
    """About `size` bytes in records of 1,000: the topic's id, and its end."""
    topic = client.create_topic("t")
    count = size // 1000 // 60 * 60
    with client.producer() as producer:
        for _ in range(count // 60):
            producer.send_many("t", [os.urandom(1000)] * 60)
    return topic.id, count


def test_both_readers_serve_the_port_and_each_its_own_socket(
    elsewhere: Elsewhere, client: Client
) -> None:
    topic, end = fill(client, 3 * MIB)
    assert [e.partition(":")[0] for e in elsewhere.data] == ["tcp", "unix", "unix"]
    for n in range(3):
        with elsewhere.connect(n) as consumer:
            assert isinstance(consumer.subscribe(topic, start=Start.EARLIEST), Subscribed)
            assert check_gapless(consumer.read(end), 0) == end
    workers = client.status()["listen"]["workers"]
    sent = sum(w["sent_bytes"] for w in workers if w["role"] == "reader")
    assert sent > 3 * 3 * MIB


def test_a_killed_reader_is_replaced_and_streams_go_on_where_they_were(
    broker: Broker, elsewhere: Elsewhere, client: Client
) -> None:
    topic, end = fill(client, 12 * MIB)
    with elsewhere.connect(1) as consumer:
        consumer.subscribe(topic, limit=3 * MIB)
        data = b""
        for event in consumer.events():
            assert isinstance(event, Batches)
            data += event.data
            break
        (reader,) = broker.workers("reader-0")
        reader.send_signal(signal.SIGKILL)
        for event in consumer.events():
            if isinstance(event, Batches):
                data += event.data
    at = next_of(data)

    def is_back() -> bool:
        try:
            with elsewhere.connect(1) as consumer:
                return consumer.welcome is not None
        except OSError:
            return False

    eventually(is_back, lambda: broker.output)
    with elsewhere.connect(1) as consumer:
        consumer.subscribe(topic, at)
        data += consumer.read(end)
    assert check_gapless(data, 0) == end


def test_the_death_of_the_broker_ends_its_readers(
    broker: Broker, elsewhere: Elsewhere, client: Client
) -> None:
    topic, end = fill(client, MIB)
    readers = broker.workers("reader-[01]")
    assert len(readers) == 2
    with elsewhere.connect(1) as consumer:
        consumer.subscribe(topic, 0)
        consumer.read(end)
        broker.kill9()
        assert [*consumer.events()] == []
    assert not living(readers)


def test_an_orderly_end_is_announced_to_consumers(
    broker: Broker, elsewhere: Elsewhere, client: Client
) -> None:
    topic, _ = fill(client, MIB)
    with elsewhere.connect(1) as consumer, elsewhere.connect(0) as other:
        consumer.subscribe(topic, start=Start.LATEST)
        other.subscribe(topic, 0, limit=1)
        broker.stop()
        for one in (consumer, other):
            seen = [e for e in one.events() if not isinstance(e, (Batches, Heartbeat))]
            assert isinstance(seen[-1], Closing)


def test_no_batch_passes_through_user_memory_on_its_way_out_of_a_segment(
    broker: Broker, elsewhere: Elsewhere, client: Client, tmp_path: Path
) -> None:
    topic, end = fill(client, 24 * MIB)
    with elsewhere.connect(1) as consumer:
        (reader,) = broker.workers("reader-0")
        trace = tmp_path / "trace"
        calls = (
            "read,pread64,readv,preadv,preadv2,recvfrom,recvmsg,mmap,sendto,sendmsg,write,sendfile"
        )
        tracer = subprocess.Popen(
            ["strace", "-qq", "-f", "-y", "-o", str(trace), "-e", f"trace={calls}",
             "-p", str(reader.pid)],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            eventually(lambda: tracer_of(reader.pid) == tracer.pid, lambda: "no tracer")
            consumer.subscribe(topic, start=Start.EARLIEST)
            data = consumer.read(end)
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(LIMIT_S)
    assert check_gapless(data, 0) == end
    moved: dict[str, int] = {}
    for line in trace.read_text().splitlines():
        found = re.match(r"\d+ +(\w+)\((.*)= (\d+)$", line)
        if found is not None and found[1] != "mmap":
            moved[found[1]] = moved.get(found[1], 0) + int(found[3])
        assert found is None or found[1] != "mmap" or ".log>" not in line
    assert moved["sendfile"] > len(data) * 0.95  # the rest was in the ring
    assert sum(n for call, n in moved.items() if call not in ("sendfile", "sendto")) < (
        len(data) // 50
    )


def tracer_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"TracerPid:\t(\d+)", status)
    return int(found[1]) if found else 0
