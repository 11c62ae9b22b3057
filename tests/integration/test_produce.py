"""The producer against a real broker: what was acknowledged is there once, also across deaths."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shmbroker._core import shm
from shmbroker.errors import BrokerGone, PartitionOffline, UnknownTopic

if TYPE_CHECKING:
    from conftest import Broker

    from shmbroker.client.client import Client


def values(client: Client, topic: str) -> list[bytes | None]:
    found: list[bytes | None] = []
    with client.consumer(topic, start="earliest") as consumer:
        ends = sum(consumer.end_offsets().values())
        for batch in consumer.batches(timeout=40):
            found += batch.values()
            if len(found) >= ends:
                break
    return found


@pytest.mark.parametrize("reach", ["local", "ipc", "tcp"])
def test_every_way_to_send_arrives_in_order(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("one", partitions=1)
        with client.producer() as producer:
            first = producer.send("one", b"0")
            assert first.result(40).offset == 0
            many = producer.send_many("one", [b"%d" % i for i in range(1, 100_000)])
            for i in range(100_000, 110_000):
                producer.send("one", b"%d" % i)
            last = producer.send_and_wait("one", b"110000", timeout=40)
            assert last.offset == 110_000
            assert many.result(0).base_offsets == {0: 1}
        assert values(client, "one") == [b"%d" % i for i in range(110_001)]


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_batches_come_back(broker: Broker, compression: str) -> None:
    sent = [b"value %d" % (i % 9) for i in range(20_000)]
    with broker.client() as client:
        client.create_topic("packed", partitions=1)
        with client.producer(compression=compression) as producer:
            producer.send_many("packed", sent)
        assert values(client, "packed") == sent


@pytest.mark.parametrize("reach", ["local", "tcp"])
def test_a_record_that_needs_a_larger_ring_arrives(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("big", partitions=1, config={"max.message.bytes": 4 << 20})
        big = os.urandom(3 << 20)
        with client.producer() as producer:
            producer.send("big", b"before")
            producer.send("big", big).result(40)
            producer.send("big", b"after")
        assert values(client, "big") == [b"before", big, b"after"]


@pytest.mark.parametrize("reach", ["local", "tcp"])
def test_a_deleted_topic_is_unknown_at_the_next_send(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("gone", partitions=1)
        with client.producer() as producer:
            producer.send_and_wait("gone", b"", timeout=40)
            client.delete_topic("gone")
            with pytest.raises((UnknownTopic, PartitionOffline)):
                for _ in range(3):
                    producer.send_and_wait("gone", b"", timeout=40)
            client.create_topic("gone", partitions=1)
            assert producer.send_and_wait("gone", b"again", timeout=40).offset == 0


@pytest.mark.parametrize("reach", ["local", "tcp"])
def test_records_outlive_kill_9_of_everything_under_load(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("load", partitions=2)
        with client.producer() as producer:
            stop = threading.Event()
            receipts = []

            def work() -> None:
                i = 0
                while not stop.is_set():
                    receipts.append(producer.send("load", b"%d" % i, partition=i & 1))
                    i += 1
                    if i % 100 == 0:
                        time.sleep(0.001)

            thread = threading.Thread(target=work)
            thread.start()
            for _ in range(3):
                time.sleep(0.3)  # load, on its way when all dies
                broker.kill9(everything=True)
                broker.start()
            time.sleep(0.3)
            stop.set()
            thread.join(90)
            assert not thread.is_alive()
            producer.flush(40)
        got = [int(v) for v in values(client, "load") if v is not None]
        assert sorted(got) == list(range(len(receipts)))
        for parity in (0, 1):
            mine = [v for v in got if v & 1 == parity]
            assert mine == sorted(mine)


@pytest.mark.parametrize("reach", ["local", "ipc"])
def test_records_go_on_after_an_orderly_restart(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("again", partitions=1)
        with client.producer() as producer:
            for i in range(3):
                producer.send_and_wait("again", b"%d" % i, timeout=40)
                if i < 2:
                    broker.restart()
        assert values(client, "again") == [b"0", b"1", b"2"]


def test_a_killed_writer_costs_a_pause(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("pause", partitions=1)
        with client.producer() as producer:
            for i in range(1000):
                producer.send("pause", b"%d" % i)
                if i == 500:
                    for writer in broker.workers():
                        writer.send_signal(signal.SIGKILL)
            producer.flush(40)
        assert values(client, "pause") == [b"%d" % i for i in range(1000)]


def test_a_ring_that_a_killed_writer_had_made_and_not_put_in_is_in_nobody_s_way(
    broker: Broker,
) -> None:
    """The partition went offline: its first ring could not be made, its name was taken."""
    with broker.client() as client:
        client.create_topic("stray", partitions=1)
        (entry,) = client.status()["partitions"]
        a = client.connection.attachment
        name = f"{a.prefix}-l{entry['writer']}.{entry['slot']}.{entry['generation'] + 1}"
        shm.create(name, shm.KIND_LOG, 0, shm.log_bytes(65536), a.boot_id, a.dir_id).close()
        with client.producer() as producer:
            assert producer.send_and_wait("stray", b"fine", timeout=40).offset == 0


@pytest.mark.parametrize("reach", ["local", "tcp"])
def test_waits_end_with_broker_gone_when_it_stays_away(broker: Broker) -> None:
    with broker.client(reconnect_s=0.5) as client:
        client.create_topic("away", partitions=1)
        producer = client.producer()
        producer.send_and_wait("away", b"", timeout=40)
        broker.kill9(everything=True)
        receipt = producer.send("away", b"x")
        begun = time.monotonic()
        with pytest.raises(BrokerGone):
            receipt.result(40)
        assert time.monotonic() - begun < 20  # and not the 30 s of the default
        broker.start()
        assert receipt.result(40).offset == 1
        producer.close()


@pytest.mark.parametrize("reach", ["local", "tcp"])
def test_a_closed_connection_leaves_nothing_mapped_and_nothing_open(broker: Broker) -> None:
    """Its rings used to stay, five mappings and their memory, for as long as the program ran."""

    def come_and_go() -> tuple[int, int]:
        with broker.client() as client, client.producer() as producer:
            client.create_topic("t", if_not_exists=True)
            producer.send_and_wait("t", b"x", timeout=40)
            with client.consumer("t", start="earliest") as consumer:
                assert consumer.poll(40) is not None
        del client, producer, consumer
        gc.collect()
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines()
                  if "shmb" in line or "memfd" in line]  # fmt: skip
        return len(mapped), len(os.listdir("/proc/self/fd"))

    come_and_go()  # what a process makes once
    left = come_and_go()
    for _ in range(3):
        assert come_and_go() <= left
