"""Streams of a running broker over real sockets: what is in the log arrives, once and in order,
from segments and from the ring, whatever happens to connections, writers and old records."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from stream_rig import LIMIT_S, ReaderRig, StreamConsumer, check_gapless, next_of
from waiting import eventually

from shmbroker.client.metadata import TopicInfo
from shmbroker.wire.native.stream_frames import (
    Batches,
    Credit,
    Ended,
    Heartbeat,
    Start,
    Subscribed,
    Unsubscribe,
)

from .conftest import Broker
from .streaming import SEGMENTS, SMALL_RINGS, fill, reader_of, shared_broker


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with shared_broker(tmp_path_factory, SMALL_RINGS) as made:
        yield made


@pytest.fixture
def rig(broker: Broker, tmp_path: Path) -> Iterator[ReaderRig]:
    with reader_of(broker, tmp_path) as made:
        yield made


@pytest.fixture
def topic(rig: ReaderRig) -> TopicInfo:
    """6,000 records of 500 bytes in four segments and a bit."""
    found = rig.client.create_topic("t", config=SEGMENTS)
    fill(rig, 8000)
    return found


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_what_is_in_segments_arrives_and_then_what_is_appended(
    rig: ReaderRig, topic: TopicInfo, kind: str
) -> None:
    with rig.connect(kind) as consumer, rig.client.producer() as producer:
        begun = consumer.subscribe(topic.id, start=Start.EARLIEST)
        assert isinstance(begun, Subscribed)
        assert begun.offset == 0
        assert begun.ends.high_watermark == begun.ends.log_end_offset == 8000
        data = consumer.read(8000)
        for n in range(50):
            producer.send("t", b"x").result(LIMIT_S)
            data += consumer.read(8001 + n)
    assert check_gapless(data, 0) == 8050


def test_a_stream_begins_wherever_it_is_asked_to(rig: ReaderRig, topic: TopicInfo) -> None:
    with rig.connect() as consumer:
        for number, offset in enumerate([0, 1, 17, 4000, 7990, 7999], 1):
            begun = consumer.subscribe(topic.id, offset, number=number)
            assert isinstance(begun, Subscribed)
            assert begun.offset == offset
            data = consumer.read(8000, number)
            assert check_gapless(data, offset) == 8000
            consumer.say(Unsubscribe(number))
        begun = consumer.subscribe(topic.id, number=9, start=Start.LATEST)
        assert isinstance(begun, Subscribed)
        assert begun.offset == 8000
        fill(rig, 1)
        assert check_gapless(consumer.read(8001, 9), 8000) == 8001


def test_a_stream_begins_at_a_time(rig: ReaderRig) -> None:
    topic = rig.client.create_topic("t", config=SEGMENTS)
    with rig.client.producer() as producer:
        for n in range(100):
            producer.send("t", b"x" * 3000, timestamp=1_000_000 + n).result(LIMIT_S)
    with rig.connect() as consumer:
        for number, (time_ms, offset) in enumerate([(0, 0), (1_000_050, 50), (2_000_000, 100)], 1):
            begun = consumer.subscribe(topic.id, time_ms, number=number, start=Start.TIME)
            assert isinstance(begun, Subscribed)
            assert begun.offset == offset


def test_a_consumer_goes_from_file_to_ring_and_back_without_a_gap(
    rig: ReaderRig, topic: TopicInfo
) -> None:
    """It is behind, catches up, falls behind the ring again, and so on."""
    with rig.connect() as consumer:
        consumer.subscribe(topic.id, limit=100_000)
        data, end = consumer.read(8000, window_bytes=100_000), 8000
        for count in (1, 3000, 1, 1, 1500, 20):
            fill(rig, count)
            end += count
            data += consumer.read(end, window_bytes=100_000)
    assert check_gapless(data, 0) == end


def test_no_more_comes_than_there_is_credit_for(rig: ReaderRig, topic: TopicInfo) -> None:
    got, limit = 0, 0
    with rig.connect() as consumer:
        consumer.subscribe(topic.id, limit=0)
        for _ in range(20):
            limit += 30_000
            consumer.say(Credit(1, limit))
            while got < limit:
                event = next(consumer.events())
                assert isinstance(event, Batches)
                got += len(event.data)
                assert got < limit + 100_000
            limit = got


def test_cut_connections_cost_nothing_and_double_nothing(rig: ReaderRig, topic: TopicInfo) -> None:
    rng, data, offset, cuts = random.Random(4), b"", 0, 0
    while offset < 8000:
        with rig.connect() as consumer:
            # Frames are as large as credit allows, and half a frame is thrown away.
            assert isinstance(consumer.subscribe(topic.id, offset, limit=150_000), Subscribed)
            left, limit = rng.randrange(1000, 900_000), 150_000
            while left > 0 and offset < 8000:
                piece = consumer.connection.recv(min(left, 70_000))
                left -= len(piece)
                consumer.codec.receive_data(piece)
                while (event := consumer.codec.next_event()) is not None:
                    if isinstance(event, Heartbeat):  # the machine was away
                        continue
                    assert isinstance(event, Batches)
                    data, limit = data + event.data, limit + len(event.data)
                    offset = next_of(event.data)
                    consumer.say(Credit(1, limit))
        cuts += 1
    assert check_gapless(data, 0) == 8000
    assert cuts > 5
    eventually(lambda: rig.status()["connections"] == 0, rig.status)


def test_an_unsubscription_in_the_middle_of_a_frame_is_answered_behind_it(
    rig: ReaderRig, topic: TopicInfo
) -> None:
    with rig.connect() as consumer:
        for _ in range(5):
            consumer.subscribe(topic.id, 0)
            consumer.say(Unsubscribe(1))
            assert any(isinstance(event, Ended) for event in consumer.events())
        assert isinstance(consumer.subscribe(topic.id, 0), Subscribed)
        assert check_gapless(consumer.read(8000), 0) == 8000
    eventually(lambda: rig.status()["partitions"] == 0, rig.status)


class TestSlowConsumers:
    def test_one_that_does_not_read_holds_nobody_up_and_costs_no_memory(
        self, rig: ReaderRig, topic: TopicInfo
    ) -> None:
        stopped = [rig.connect(kind) for kind in ("tcp", "unix") * 3]
        for consumer in stopped:
            consumer.subscribe(topic.id, 0)
        eventually(
            lambda: sum("read its socket" in p["waits_for"] for p in rig.status()["peers"]) >= 1,
            rig.status,
        )
        with rig.connect() as consumer:
            consumer.subscribe(topic.id, 0)
            assert check_gapless(consumer.read(8000), 0) == 8000
        for consumer in stopped:  # and when they read at last, nothing is missing
            assert check_gapless(consumer.read(8000), 0) == 8000
            consumer.close()

    def test_one_that_stopped_at_the_tail_gets_the_rest_when_the_ring_has_moved_on(
        self, rig: ReaderRig
    ) -> None:
        topic = rig.client.create_topic("t", config=SEGMENTS)
        with rig.connect("unix") as consumer:
            consumer.subscribe(topic.id, appended=True)
            fill(rig, 9000)
            assert check_gapless(consumer.read(9000), 0) == 9000

    def test_without_credit_it_says_so_in_status(self, rig: ReaderRig, topic: TopicInfo) -> None:
        with rig.connect() as consumer:
            consumer.subscribe(topic.id, 0, limit=0)
            (peer,) = rig.status()["peers"]
            assert peer["waits_for"] == "the consumer's credit for t-0"
            assert peer["name"] == "a test"


class TestSubscriptions:
    def test_a_thousand_share_a_connection_and_a_hundred_partitions(self, rig: ReaderRig) -> None:
        topic = rig.client.create_topic("many", partitions=100, config=SEGMENTS)
        with rig.connect() as consumer, rig.client.producer() as producer:
            for number in range(1, 1025):
                begun = consumer.subscribe(topic.id, number=number, partition=number % 100)
                assert isinstance(begun, Subscribed)
            for partition in range(100):
                producer.send("many", b"%d" % partition, partition=partition)
            producer.flush(LIMIT_S)
            seen: set[int] = set()
            for event in consumer.events():
                assert isinstance(event, Batches)
                assert event.subscription not in seen
                seen.add(event.subscription)
                if len(seen) == 1024:
                    break
            assert rig.status()["partitions"] == 100

    def test_partitions_of_one_connection_take_turns(self, rig: ReaderRig) -> None:
        topic = rig.client.create_topic("t", partitions=2, config=SEGMENTS)
        for partition in (0, 1):
            fill(rig, 8000, partition=partition)
        with rig.connect() as consumer:
            for number in (1, 2):
                consumer.subscribe(topic.id, number=number, partition=number - 1, limit=0)
            consumer.say(Credit(1, 1 << 40), Credit(2, 1 << 40))
            order = []
            ends = {1: 0, 2: 0}
            for event in consumer.events():
                assert isinstance(event, Batches)
                order.append(event.subscription)
                ends[event.subscription] = next_of(event.data)
                if ends == {1: 8000, 2: 8000}:
                    break
        assert order[:4] in ([1, 2, 1, 2], [1, 1, 2, 1], [2, 1, 2, 1])


def test_a_consumer_of_durable_records_sees_none_that_is_only_appended(
    broker: Broker, rig: ReaderRig, topic: TopicInfo
) -> None:
    with rig.connect() as consumer, rig.client.producer(acks="memory") as producer:
        consumer.subscribe(topic.id, 8000)
        consumer.subscribe(topic.id, 8000, number=2, appended=True)
        for _ in range(300):
            producer.send("t", b"z")
        ends = {1: 8000, 2: 8000}
        for event in consumer.events():
            assert isinstance(event, Batches)
            ends[event.subscription] = next_of(event.data)
            if event.subscription == 1:
                assert ends[1] <= event.ends.high_watermark
            assert ends[2] <= event.ends.log_end_offset or event.subscription == 1
            if ends == {1: 8300, 2: 8300}:
                break


def test_half_a_frame_is_left_when_the_consumer_goes(rig: ReaderRig, topic: TopicInfo) -> None:
    """Consumers that vanish in the middle of everything leave nothing behind."""
    for n in range(30):
        consumer: StreamConsumer = rig.connect("unix" if n % 2 else "tcp")
        consumer.subscribe(topic.id, n * 200)
        consumer.close()
    eventually(lambda: rig.status()["connections"] == 0, rig.status)
    eventually(lambda: rig.status()["partitions"] == 0, rig.status)
    eventually(lambda: rig.status()["open_segments_of"] == 0, rig.status)
