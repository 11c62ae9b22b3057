"""Pressure end to end: a slow disk, a full one, an offline partition and a dead writer throttle and
explain themselves to exactly those whom they concern; a slow consumer to nobody."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
from waiting import LIMIT_S, eventually

from shmbroker import Pressure, errors
from shmbroker.client.metadata import TopicPartition
from shmbroker.client.pressure import Spot
from shmbroker.client.remote.pressure import HeardPressures

VALUE = b"x" * 10_000


@pytest.fixture
def broker_config() -> str:
    """A small ring, so that a slow disk fills it soon."""
    config = '[broker]\nwriters = 1\n[memory]\nbudget_bytes = "16MiB"\nring_max_bytes = "1MiB"\n'
    return config + '[log]\nmax.message.bytes = "256KiB"\n[pressure]\nstalled_ms = "300ms"\n'


@pytest.fixture
def hear() -> Iterator[Callable[[Any], Callable[[str], Any]]]:
    """Hears the events channel as a remote client does: `hear(client)` gives what is known of a
    topic's partition 0."""
    context = zmq.Context()
    heard: list[HeardPressures] = []

    def start(client: Any) -> Callable[[str], Any]:
        made = HeardPressures(context, f"ipc://{client.connection.attachment.events}")
        heard.append(made)

        def look(topic: str) -> Any:
            made.receive()
            spot = Spot(topic, 0, 0, 0, 0)
            return made.look([spot])[spot]

        return look

    yield start
    for made in heard:
        made.close()
    context.term()


def status_of(client: Any, topic: str) -> Any:
    (found,) = [p for p in client.status()["partitions"] if p["topic"] == topic]
    return found["pressure"]


def flood(producer: Any, topic: str, stop: threading.Event) -> threading.Thread:
    """A thread that sends as fast as it may."""

    def run() -> None:
        while not stop.is_set():
            producer.send(topic, VALUE)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_slow_disk_throttles_its_producers_who_can_say_why(
    slow_broker: Any, disk: Any, hear: Any
) -> None:
    with slow_broker.client() as client, slow_broker.client() as other:
        client.create_topic("t")
        heard = hear(client)
        with client.producer() as producer, other.producer() as idle:
            for one in (producer, idle):
                one.send("t", b"first").result(40)
            eventually(lambda: producer.pressure().state == "ok", producer.pressure)
            eventually(lambda: heard("t").state == "ok", lambda: heard("t"))
            disk.slow(400)
            stop = threading.Event()
            thread = flood(producer, "t", stop)
            try:
                eventually(lambda: idle.pressure().state == "hard", idle.pressure)
                level = idle.pressure().worst
                assert level is not None
                assert level.ring_fill is not None
                assert level.ring_bytes >= level.unsynced_bytes > 0
                eventually(lambda: heard("t").state == "hard", lambda: heard("t"))
                eventually(lambda: heard("t").reason, lambda: heard("t"))
                waits: list[Any] = []

                def explained() -> bool:
                    waits[:] = client.status()["waits"]
                    return any(w["topic"] == "t" and "disk" in w["why"] for w in waits)

                eventually(explained, client.status)
                assert {w["pid"] for w in waits} == {os.getpid()}
                eventually(lambda: status_of(client, "t")["state"] == "hard", client.status)
                eventually(lambda: producer.pressure().worst.ingress_fill > 0.5, producer.pressure)
                told = f"(pid {os.getpid()}) waits for t-0"
                eventually(lambda: told in slow_broker.run("status").stdout, client.status)
                eventually(
                    lambda: "pressure t-0 is hard for" in slow_broker.run("status").stdout,
                    client.status,
                )
            finally:
                stop.set()
                disk.fast()
                thread.join()
            eventually(lambda: producer.pressure().state == "ok", producer.pressure)
            eventually(lambda: heard("t").state == "ok", lambda: heard("t"))
            eventually(lambda: client.status()["waits"] == [], client.status)
            eventually(lambda: "nobody waits" in slow_broker.run("status").stdout)


def test_a_disk_that_stands_still_is_a_stall(slow_broker: Any, disk: Any) -> None:
    with slow_broker.client() as client:
        client.create_topic("t")
        with client.producer() as producer:
            producer.send("t", b"first").result(40)
            disk.slow(60_000)
            receipt = producer.send("t", b"second")
            eventually(lambda: producer.pressure().worst.cause == "stalled", producer.pressure)
            assert "nothing has become durable for" in producer.pressure().reason
            eventually(lambda: status_of(client, "t")["cause"] == "stalled", client.status)
            with client.producer(on_full="drop") as filler:
                # Who holds the write up, a flusher or the sequencer itself, is a matter of load.
                (wait,) = eventually(
                    lambda: (filler.send_many("t", [VALUE] * 10), client.status()["waits"])[1],
                    client.status,
                )
                disk.fast()
            assert (wait["pid"], wait["writer"]) == (os.getpid(), 0)
            assert any(w in wait["why"] for w in ("become durable", "said nothing", "not answer"))
            receipt.result(40)


def test_drop_counts_are_exact_beside_a_slow_disk(slow_broker: Any, disk: Any) -> None:
    with slow_broker.client() as client:
        client.create_topic("t")
        with client.producer(on_full="drop", acks="memory") as producer:
            producer.send("t", b"first").result(40)
            disk.slow(100)
            begun, offered = time.monotonic(), 1
            while time.monotonic() - begun < 1.0 or not producer.dropped():
                producer.send("t", VALUE)
                producer.send_many("t", [VALUE] * 9)
                offered += 10
            lost = producer.dropped()[TopicPartition("t", 0)]
            disk.fast()
            producer.flush(LIMIT_S)
            (partition,) = client.status()["partitions"]
            assert partition["log_end_offset"] + lost == offered


def test_a_consumer_that_does_not_read_throttles_nobody(slow_broker: Any) -> None:
    with slow_broker.client() as client, slow_broker.client() as lazy:
        client.create_topic("t")
        with client.producer(max_block_ms=20_000) as producer:
            producer.send("t", b"first").result(40)
            with lazy.consumer("t", start="earliest") as consumer:
                assert consumer.poll(40).value == b"first"
                for _ in range(20):  # ten rings full, each durable before the next
                    producer.send_many("t", [VALUE] * 50).result(LIMIT_S)
                # A disk that took its time for a moment has its say, and no longer.
                eventually(lambda: producer.pressure().state == "ok", producer.pressure)
                eventually(lambda: client.status()["waits"] == [], client.status)
                assert not [c for c in slow_broker.run("status").stdout.splitlines()
                            if c.startswith("waiting")]  # fmt: skip
                assert consumer.poll(40).value == VALUE


def test_who_sends_to_another_partition_behind_a_stuck_batch_is_told_of_it(
    slow_broker: Any, disk: Any
) -> None:
    with slow_broker.client() as client:
        client.create_topic("stuck")
        client.create_topic("well")
        with client.producer() as producer:
            for topic in ("stuck", "well"):
                producer.send(topic, b"first").result(40)
            disk.slow(60_000)
            end = time.monotonic() + LIMIT_S

            def pressed() -> Any:
                return producer.pressure().partitions[TopicPartition("well", 0)]

            filler = client.producer(on_full="drop")
            while pressed().cause != "ingress":
                filler.send_many("stuck", [VALUE] * 10)
                assert time.monotonic() < end, producer.pressure()
            eventually(lambda: "the batch in front is for stuck-0" in pressed().reason, pressed)
            disk.fast()
            filler.close()


def test_a_dead_writer_is_told_of_at_once_and_comes_back(slow_broker: Any, hear: Any) -> None:
    with slow_broker.client() as client:
        client.create_topic("t")
        heard = hear(client)
        with client.producer() as producer:
            producer.send("t", b"first").result(40)
            eventually(lambda: heard("t").state == "ok", lambda: heard("t"))
            (writer,) = slow_broker.workers()
            writer.send_signal(signal.SIGSTOP)
            eventually(lambda: heard("t").cause == "writer", lambda: heard("t"))
            assert "said nothing for" in heard("t").reason
            eventually(lambda: producer.pressure().worst.cause == "writer", producer.pressure)
            producer.send("t", b"second")
            (wait,) = eventually(lambda: client.status()["waits"], client.status)
            assert (wait["topic"], wait["writer"]) == (None, 0)
            assert "said nothing" in wait["why"]
            writer.send_signal(signal.SIGKILL)
            producer.flush(LIMIT_S)
            eventually(lambda: heard("t").state == "ok", lambda: heard("t"))
            eventually(lambda: producer.pressure().state == "ok", producer.pressure)


def test_an_offline_partition_says_so_and_the_others_go_on(slow_broker: Any, hear: Any) -> None:
    with slow_broker.client() as client:
        for topic in ("bad", "good"):
            client.create_topic(topic, config={"segment.bytes": 1 << 20})
        heard = hear(client)
        with client.producer() as producer:
            for topic in ("bad", "good"):
                producer.send(topic, b"first").result(40)
            directory = slow_broker.places.data_dir / "bad-0"
            directory.rename(directory.with_name("away"))  # the next segment can't be made
            with pytest.raises(errors.ShmbrokerError):
                for _ in range(400):
                    producer.send("bad", VALUE).result(40)
            directory.with_name("away").rename(directory)
            eventually(lambda: heard("bad").state == "offline", lambda: heard("bad"))
            words = os.strerror(errno.ENOENT)
            eventually(lambda: words in heard("bad").reason, lambda: heard("bad"))
            eventually(lambda: heard("good").state == "ok", lambda: heard("good"))
            spot = TopicPartition("good", 0)
            eventually(
                lambda: producer.pressure().partitions[spot].state == "ok", producer.pressure
            )
            found = producer.pressure()
            assert isinstance(found, Pressure)
            assert found.worst is not None
            assert (found.worst.topic, found.state) == ("bad", "offline")
            producer.send("good", b"second").result(40)
            eventually(lambda: status_of(client, "bad")["state"] == "offline", client.status)


def test_while_the_broker_is_gone_a_producer_is_told_so(slow_broker: Any) -> None:
    with slow_broker.client(reconnect_s=LIMIT_S) as client:
        client.create_topic("t")
        with client.producer() as producer:
            producer.send("t", b"first").result(40)
            slow_broker.kill9(everything=True)
            eventually(lambda: producer.pressure().state == "hard", producer.pressure)
            assert producer.pressure().worst.cause == "unknown"
            assert "the broker is gone" in producer.pressure().reason
            slow_broker.start()
            eventually(lambda: producer.pressure().state == "ok", producer.pressure)
