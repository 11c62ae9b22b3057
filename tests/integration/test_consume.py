"""Consuming what a producer sent through a real broker: out of its memory, and over the network."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stream_rig import TOKEN, ReaderRig
from streamed import LISTENING, connect_remote

from shmbroker.client.client import Client
from shmbroker.client.consumer import Consumer
from shmbroker.client.metadata import TopicPartition
from shmbroker.client.remote.data_port import DataPort
from shmbroker.control.certificate import write_certificate
from shmbroker.control.listening import TlsFiles
from shmbroker.errors import BrokerGone, CorruptBatch, OffsetOutOfRange, UnknownTopic
from shmbroker.perf.streamed import StreamedConnection


@pytest.fixture(params=["local", "remote"])
def way(request: pytest.FixtureRequest) -> str:
    """How records come."""
    found: str = request.param
    return found


@pytest.fixture
def broker_config(way: str) -> str:
    return LISTENING if way == "remote" else ""


@pytest.fixture
def client(broker, way: str) -> Iterator[Client]:  # type: ignore[no-untyped-def]
    with connect_remote(broker) if way == "remote" else broker.client() as made:
        yield made


def read(consumer: Consumer, count: int) -> list[bytes | None]:
    """The next `count` values, and not one more that came with them."""
    found: list[bytes | None] = []
    while len(found) < count:
        batch = consumer.poll_batch(40)
        assert batch is not None
        found += batch.values()
    return found


def numbered(first: int, count: int, size: int = 100) -> list[bytes]:
    return [b"%0*d" % (size, n) for n in range(first, first + count)]


def send(client: Client, values: list[bytes], topic: str = "t") -> None:
    with client.producer() as producer:
        producer.send_many(topic, values, partition=0).result(40)


def test_what_was_acknowledged_is_read_back_in_order(client: Client) -> None:
    client.create_topic("t")
    sent = numbered(0, 200_000)
    send(client, sent)
    with client.consumer("t", start="earliest") as consumer:
        assert read(consumer, 200_000) == sent
        consumer.seek(123_456)
        record = consumer.poll(40)
        assert record is not None
        assert (record.offset, record.value) == (123_456, sent[123_456])
        assert consumer.lag() == {("t", 0): 200_000 - 123_457}


def test_a_waiting_consumer_gets_what_another_process_thread_sends(client: Client) -> None:
    client.create_topic("t")
    with client.consumer("t", idle="park") as consumer:
        thread = threading.Timer(0.1, send, (client, [b"woken"]))
        thread.start()
        record = consumer.poll(40)
        assert record is not None
        assert record.value == b"woken"
        thread.join()


def test_records_are_there_after_a_clean_restart_and_a_wait_goes_on(  # type: ignore[no-untyped-def]
    broker, client: Client
) -> None:
    client.create_topic("t")
    send(client, numbered(0, 1000))
    with client.consumer("t", start="earliest") as consumer:
        assert read(consumer, 1000) == numbered(0, 1000)
        restart = threading.Thread(target=broker.restart)
        restart.start()
        found: list[object] = []

        def wait() -> None:
            record = consumer.poll(40)
            found.append(None if record is None else (record.offset, record.value))

        waiting = threading.Thread(target=wait)
        waiting.start()
        restart.join()
        send(client, [b"after"])
        waiting.join(40)
        assert found == [(1000, b"after")]


def test_a_wait_goes_on_after_kill_9_of_everything(broker, client: Client) -> None:  # type: ignore[no-untyped-def]
    client.create_topic("t")
    send(client, numbered(0, 1000))
    with client.consumer("t", start="earliest") as consumer:
        assert read(consumer, 1000) == numbered(0, 1000)
        broker.kill9(everything=True)
        broker.start()
        send(client, [b"after"])
        record = consumer.poll(40)
        assert record is not None
        assert (record.offset, record.value) == (1000, b"after")


def test_a_deleted_topic_ends_the_wait(client: Client) -> None:
    client.create_topic("t")
    with client.consumer("t") as consumer:
        thread = threading.Timer(0.1, client.delete_topic, ("t",))
        thread.start()
        with pytest.raises(UnknownTopic):
            consumer.poll(40)
        thread.join()


def test_an_offset_that_never_was_is_out_of_range(client: Client) -> None:
    client.create_topic("t")
    with client.consumer("t", start=5) as consumer, pytest.raises(OffsetOutOfRange):
        consumer.poll(40)


def test_who_falls_behind_retention_is_told_both_offsets_and_never_jumps(client: Client) -> None:
    # `segment.bytes` as small as may be: retention drops whole segments.
    client.create_topic("t", config={"segment.bytes": 1 << 20, "retention.bytes": 1 << 20})
    send(client, numbered(0, 10))
    with (
        client.consumer("t", start="earliest") as strict,
        client.consumer("t", start="earliest", on_gap="earliest") as lenient,
    ):
        assert read(strict, 10) == read(lenient, 10) == numbered(0, 10)
        with client.producer() as producer:
            while strict.beginning_offsets()[TopicPartition("t", 0)] <= 5:
                producer.send_many("t", numbered(0, 5_000), partition=0).result(40)
        strict.seek(5)
        lenient.seek(5)
        with pytest.raises(OffsetOutOfRange) as told:
            strict.poll(40)
        assert told.value.offset == strict.position() == 5
        assert told.value.log_start_offset > 5
        with pytest.raises(OffsetOutOfRange):  # and again, until it is moved
            strict.poll(40)
        strict.seek(strict.beginning_offsets()[TopicPartition("t", 0)])
        assert strict.poll(40) is not None
        record = lenient.poll(40)
        assert record is not None
        assert record.offset >= told.value.log_start_offset


def test_many_consumers_follow_a_running_producer_over_rolls_and_retention(client: Client) -> None:
    client.create_topic("t", 2, config={"segment.bytes": 1 << 20})
    count, failed = 60_000, list[BaseException]()

    def follow(partition: int) -> None:
        try:
            with client.consumer("t", partitions=[partition], start="earliest") as consumer:
                assert read(consumer, count) == numbered(0, count)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=follow, args=(n % 2,)) for n in range(6)]
    for thread in threads:
        thread.start()
    with client.producer() as producer:
        for first in range(0, count, 500):
            for partition in range(2):
                producer.send_many("t", numbered(first, 500), partition=partition)
    for thread in threads:
        thread.join(60)
    assert not failed


def test_a_workers_death_under_load_is_a_pause_without_gap_or_repeat(  # type: ignore[no-untyped-def]
    broker, client: Client, way: str
) -> None:
    client.create_topic("t")
    sent = numbered(0, 100_000)
    with client.consumer("t", start="earliest") as consumer:
        producing = threading.Thread(target=send, args=(client, sent))
        producing.start()
        found: list[bytes | None] = []
        while len(found) < len(sent):
            batch = consumer.poll_batch(40)
            assert batch is not None
            found += batch.values()
            if len(found) > len(sent) // 2 and way == "remote":
                way = "killed"
                for process in broker.workers("reader"):
                    process.kill()
        producing.join()
        assert found == sent
        send(client, [b"after"])
        assert read(consumer, 1) == [b"after"]


@pytest.mark.parametrize("way", ["local"])
def test_streams_inside_tls_are_read_and_another_certificate_is_refused(  # type: ignore[no-untyped-def]
    broker, client: Client, way: str, tmp_path: Path
) -> None:
    files = [TlsFiles(tmp_path / f"{n}.crt", tmp_path / f"{n}.key") for n in range(2)]
    for made in files:
        write_certificate(made.certificate, made.key)
    client.create_topic("t")
    sent = numbered(0, 50_000)
    send(client, sent)
    broker_id = client.connection.attachment.dir_id
    with ReaderRig(str(broker.places.runtime_dir), tmp_path, tls=files[0]) as rig:
        for shown, good in ((files[0], True), (files[1], False)):
            endpoint, pem = f"tcp://127.0.0.1:{rig.port}", shown.certificate.read_text()
            port = DataPort((endpoint,), TOKEN, broker_id, pem, "a test")
            connection = StreamedConnection(broker.places, lambda p=port: p, reconnect_s=0.2)
            with Client(connection) as streamed, streamed.consumer("t", start=0) as consumer:
                if good:
                    assert read(consumer, 50_000) == sent
                    consumer.seek(49_999)
                    send(client, [b"and on"])
                    assert read(consumer, 2) == [sent[-1], b"and on"]
                else:
                    with pytest.raises(BrokerGone, match="certificate verify failed"):
                        consumer.poll(40)


@pytest.mark.parametrize("way", ["local"])
def test_damage_in_an_old_segment_is_an_error_and_nothing_behind_it_is_read_instead(
    broker: Any,
) -> None:
    with broker.client() as client:
        topic = client.create_topic("d", config={"segment.bytes": 1 << 20})
        with client.producer() as producer:
            for _ in range(5):
                producer.send_many("d", [os.urandom(1000)] * 900).result(40)
        broker.restart()  # into new rings, so that old records are in the files alone
        second = sorted(Path(topic.partitions[0].directory).glob("*.log"))[1]
        with second.open("r+b") as file:
            file.write(bytes(100))
        with client.consumer("d", start="earliest") as consumer:
            at = 0
            with pytest.raises(CorruptBatch):
                while batch := consumer.poll_batch(40):
                    assert batch.base_offset == at
                    at = batch.next_offset
            assert 0 < at < 4500


def test_the_last_records_of_each_partition_are_read_again(broker: Any) -> None:
    with broker.client() as client:
        client.create_topic("ticks", partitions=2)
        with client.producer() as producer:
            for n in range(30):
                producer.send("ticks", b"%d" % n, partition=int(n >= 20))
            producer.flush()
        with client.consumer("ticks", start=-3) as consumer:
            found = sorted(int(consumer.poll(20).value) for _ in range(6))
            assert found == [17, 18, 19, 27, 28, 29]
            assert consumer.poll(0.05) is None
            consumer.seek(-1, 1)
            assert consumer.poll(20).value == b"29"
            consumer.seek(-1000)
            assert sorted(int(consumer.poll(20).value) for _ in range(30)) == list(range(30))
