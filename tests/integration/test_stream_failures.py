"""Streams that fail, and streams that outlive what happens to writers, segments and topics."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from stream_rig import LIMIT_S, ReaderRig, StreamConsumer, check_gapless, next_of
from waiting import eventually

from shmbroker import errors
from shmbroker._core import reader as core
from shmbroker._core import shm
from shmbroker.client.metadata import TopicInfo
from shmbroker.config import ListenSection
from shmbroker.wire.native.stream_frames import (
    Batches,
    Credit,
    Failed,
    Heartbeat,
    Start,
    Subscribed,
)

from .conftest import Broker
from .streaming import SEGMENTS, SMALL_RINGS, fill, reader_of, shared_broker

PAGE, SLOT_BYTES, STATE_AT, GENERATION_AT = 65536, 512, 24, 32  # layout.h


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


class TestFailures:
    def test_an_offset_that_is_not_there_is_refused(self, rig: ReaderRig, topic: TopicInfo) -> None:
        rig.client.delete_records("t", partition=0, before_offset=5000)
        with rig.connect() as consumer:
            for offset in (0, 4999, 8001):
                failed = consumer.subscribe(topic.id, offset)
                assert isinstance(failed, Failed)
                assert isinstance(failed.error, errors.OffsetOutOfRange)
                assert failed.error.offset == offset
                assert failed.error.log_start_offset == 5000
                assert failed.error.log_end_offset == 8000
            assert isinstance(consumer.subscribe(topic.id, 5000), Subscribed)
            assert check_gapless(consumer.read(8000), 5000) == 8000

    def test_what_retention_takes_from_under_a_stream_is_told(
        self, rig: ReaderRig, topic: TopicInfo
    ) -> None:
        with rig.connect() as consumer:
            consumer.subscribe(topic.id, 0, limit=1)
            assert isinstance(next(consumer.events()), Batches)
            rig.client.delete_records("t", partition=0, before_offset=6000)
            consumer.say(Credit(1, 1 << 40))
            failed = next(e for e in consumer.events() if not isinstance(e, Batches))
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, errors.OffsetOutOfRange)

    def test_topics_and_partitions_that_there_are_not(
        self, rig: ReaderRig, topic: TopicInfo
    ) -> None:
        with rig.connect() as consumer:
            failed = consumer.subscribe("ab" * 16)
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, errors.UnknownTopic)
            failed = consumer.subscribe(topic.id, partition=1)
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, errors.UnknownTopic)
            assert failed.error.partition == 1
            rig.client.alter_topic("t", partitions=2)
            assert isinstance(consumer.subscribe(topic.id, partition=1), Subscribed)

    def test_a_topic_that_is_deleted_fails_its_streams_and_no_other(
        self, rig: ReaderRig, topic: TopicInfo
    ) -> None:
        other = rig.client.create_topic("other")
        with rig.connect() as consumer:
            consumer.subscribe(topic.id, 8000)
            consumer.subscribe(topic.id, 0, number=2, limit=0)
            consumer.subscribe(other.id, number=3)
            rig.client.delete_topic("t")
            failed = {}
            for event in consumer.events():
                assert isinstance(event, Failed)
                failed[event.subscription] = type(event.error)
                if len(failed) == 2:
                    break
            assert failed == {1: errors.UnknownTopic, 2: errors.UnknownTopic}
            again = rig.client.create_topic("t")  # of the same name, and another one
            gone = consumer.subscribe(topic.id, number=4)
            assert isinstance(gone, Failed)
            assert isinstance(gone.error, errors.UnknownTopic)
            assert isinstance(consumer.subscribe(again.id, number=5), Subscribed)
            fill(rig, 1, topic="other")
            assert check_gapless(consumer.read(1, 3), 0) == 1

    def test_a_leader_epoch_that_the_log_does_not_have_is_a_truncation(
        self, rig: ReaderRig, topic: TopicInfo
    ) -> None:
        with rig.connect() as consumer:
            begun = consumer.subscribe(topic.id, 4000)
            assert isinstance(begun, Subscribed)
            now = begun.leader_epoch
            begun = consumer.subscribe(topic.id, 4000, number=2, epoch=now)
            assert isinstance(begun, Subscribed)
            failed = consumer.subscribe(topic.id, 4000, number=3, epoch=now + 1)
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, errors.LogTruncated)
            assert failed.error.offset == 4000


class TestWriters:
    @pytest.fixture
    def broker(self, isolated_env: dict[str, str], tmp_path: Path) -> Iterator[Broker]:
        """One to kill."""
        made = Broker(isolated_env, tmp_path, SMALL_RINGS)
        made.start()
        try:
            yield made
        finally:
            made.finish()

    @pytest.mark.parametrize("appended", [False, True])
    def test_a_killed_writer_costs_streams_a_pause(
        self, broker: Broker, rig: ReaderRig, topic: TopicInfo, appended: bool
    ) -> None:
        stop, sent = threading.Event(), [8000]

        def produce() -> None:
            with rig.client.producer() as producer:
                while not stop.is_set():
                    producer.send_many("t", [b"y" * 300] * 50).result(LIMIT_S)
                    sent[0] += 50

        with rig.connect() as consumer:
            consumer.subscribe(topic.id, 7000, appended=appended)
            thread = threading.Thread(target=produce)
            thread.start()
            try:
                data = consumer.read(9000)
                for _ in range(2):
                    (writer,) = broker.workers()
                    writer.send_signal(signal.SIGKILL)
                    data += consumer.read(next_of(data) + 3000)
            finally:
                stop.set()
                thread.join()
            data += consumer.read(sent[0]) if next_of(data) < sent[0] else b""
        assert check_gapless(data, 7000) == sent[0]


class TestRetention:
    def test_segments_recycled_during_catch_up_send_no_foreign_byte(self, rig: ReaderRig) -> None:
        """A consumer that lags gets what was there, or is told that it is gone; never other
        records, though retired segments are written over all the time."""
        topic = rig.client.create_topic("t", config=SEGMENTS | {"retention.bytes": 2 << 20})
        stop = threading.Event()

        def produce() -> None:
            while not stop.is_set():
                fill(rig, 500, size=2000)

        thread = threading.Thread(target=produce)
        thread.start()
        losses = rounds = 0
        try:
            while rounds < 60:
                with rig.connect() as consumer:
                    begun = consumer.subscribe(topic.id, start=Start.EARLIEST)
                    assert isinstance(begun, Subscribed)
                    at = begun.offset
                    for event in consumer.events(5000):
                        if isinstance(event, Failed):
                            assert isinstance(event.error, errors.OffsetOutOfRange)
                            losses += 1
                            break
                        assert isinstance(event, Batches)
                        at = check_gapless(event.data, at)
                        rounds += 1
                        if rounds % 10 == 0:
                            break
        finally:
            stop.set()
            thread.join()


class TestTakenFrames:
    """Retention takes what a frame that has begun still has to send: the frame is cut, which the
    consumer sees as half a frame; when it comes again it is told what is gone."""

    @pytest.fixture
    def rig(self, broker: Broker, tmp_path: Path) -> Iterator[ReaderRig]:
        with reader_of(broker, tmp_path, ListenSection(heartbeat_ms=200, dead_ms=1000)) as made:
            yield made

    def half_a_frame(self, consumer: StreamConsumer) -> int:
        """What is left on the connection, which ends within a frame: its whole batches' end."""
        end = 0
        for event in consumer.events():
            assert isinstance(event, (Batches, Heartbeat))
            if isinstance(event, Batches):
                end = check_gapless(event.data, end)
        return end

    def goes_on(self, rig: ReaderRig, topic: TopicInfo, at: int, start: int, end: int) -> None:
        """A consumer that has records below `at` is told that they begin at `start`."""
        with rig.connect() as again:
            failed = again.subscribe(topic.id, at)
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, errors.OffsetOutOfRange)
            assert failed.error.log_start_offset == start
            begun = again.subscribe(topic.id, number=2, start=Start.EARLIEST)
            assert isinstance(begun, Subscribed)
            assert check_gapless(again.read(end, 2), start) == end

    def test_a_slow_consumer_keeps_no_retired_segment(
        self, rig: ReaderRig, topic: TopicInfo
    ) -> None:
        first = sorted(Path(topic.partitions[0].directory).glob("*.log"))[0]
        segment = os.open(first, os.O_RDONLY)
        with rig.connect("unix") as slow:
            slow.subscribe(topic.id, 0)
            eventually(lambda: "read its socket" in rig.status()["peers"][0]["waits_for"])
            end = time.monotonic() + 2.0
            while time.monotonic() < end:  # as long as it is there, it is only slow
                slow.say(Heartbeat())
                time.sleep(0.1)
            assert rig.status()["connections"] == 1
            assert rig.client.delete_records("t", partition=0, before_offset=6000) == {0: 6000}
            assert os.fstat(segment).st_nlink == 0, "it was taken, and is still held by the reader"
            os.close(segment)

            def dropped() -> bool:
                with suppress(OSError):
                    slow.say(Heartbeat())
                return bool(rig.status()["connections"] == 0)

            eventually(dropped, rig.status)
            assert rig.status()["open_segments_of"] == 0
            at = self.half_a_frame(slow)
        assert at < 6000
        self.goes_on(rig, topic, at, 6000, 8000)

    def test_a_frame_whose_rest_is_nowhere_any_more_is_cut(self, rig: ReaderRig) -> None:
        """It was begun out of the ring, which has gone round, and the segments behind it went."""
        topic = rig.client.create_topic("t", config=SEGMENTS)
        with rig.connect("unix") as slow, rig.client.producer() as producer:
            slow.subscribe(topic.id, limit=0)
            for _ in range(12):
                producer.send_many("t", [os.urandom(1000)] * 20).result(LIMIT_S)
            slow.say(Credit(1, 1 << 40))  # 240 kB in one frame, more than its socket takes
            eventually(lambda: "read its socket" in rig.status()["peers"][0]["waits_for"])
            for _ in range(120):
                producer.send_many("t", [os.urandom(1000)] * 20).result(LIMIT_S)
            found = rig.client.delete_records("t", {0: "latest"})
            assert found == {0: 2640}
            slow.say(Heartbeat())
            assert self.half_a_frame(slow) == 0
            eventually(lambda: rig.status()["connections"] == 0, rig.status)
            producer.send_many("t", [b"after"] * 10).result(LIMIT_S)
        self.goes_on(rig, topic, 0, 2640, 2650)


class TestTrouble:
    """What can't be had by asking for it: written into the slot, or over the files."""

    def poke(self, rig: ReaderRig, topic: TopicInfo, at: int, data: bytes) -> bytes:
        """Writes into the partition's slot as its writer would; returns what was there."""
        place = topic.partitions[0]
        table = rig.client.connection.open_object(
            f"w{place.writer}", shm.KIND_WRITER, writable=True
        )
        try:
            start = PAGE + SLOT_BYTES * place.slot + at
            with mmap.mmap(table.fileno(), 0) as memory:
                before = memory[start : start + len(data)]
                memory[start : start + len(data)] = data
            return before
        finally:
            table.close()

    def test_an_offline_partition_is_read_to_its_end_and_then_fails_with_the_reason(
        self, rig: ReaderRig, topic: TopicInfo
    ) -> None:
        offline = core.STATE_NAMES.index("offline").to_bytes(4, sys.byteorder)
        with rig.connect() as waiting, rig.connect() as late:
            waiting.subscribe(topic.id, 8000)
            before = self.poke(rig, topic, STATE_AT, offline)
            try:
                rig.client.connection.wake_all()
                late.subscribe(topic.id, 0)
                assert check_gapless(late.read(8000), 0) == 8000
                for consumer in (waiting, late):
                    failed = next(e for e in consumer.events() if not isinstance(e, Heartbeat))
                    assert isinstance(failed, Failed)
                    assert isinstance(failed.error, errors.PartitionOffline)
                    assert failed.error.reason
            finally:
                self.poke(rig, topic, STATE_AT, before)

    def test_damage_in_a_segment_ends_the_stream_and_names_the_place(
        self, rig: ReaderRig, topic: TopicInfo
    ) -> None:
        second = sorted(Path(topic.partitions[0].directory).glob("*.log"))[1]
        with second.open("r+b") as file:
            file.write(bytes(100))
        with rig.connect() as consumer:
            consumer.subscribe(topic.id, 0)
            failed = next(e for e in consumer.events() if isinstance(e, Failed))
            assert isinstance(failed.error, errors.DamagedLog)
            assert failed.error.path.endswith(".log")
            assert isinstance(consumer.subscribe(topic.id, 7990, number=2), Subscribed)

    def test_a_recovery_that_cut_nothing_goes_unnoticed(
        self, rig: ReaderRig, topic: TopicInfo
    ) -> None:
        """The generation says that the log was recovered from disk: every stream of appended
        records asks whether those it has sent are still there."""
        with rig.connect() as consumer:
            consumer.subscribe(topic.id, 7990, appended=True)
            data = consumer.read(8000)
            generation = self.poke(rig, topic, GENERATION_AT + 4, (7).to_bytes(4, sys.byteorder))
            try:
                rig.client.connection.wake_all()
                with rig.client.producer() as producer:
                    producer.send("t", b"after").result(LIMIT_S)
            finally:
                self.poke(rig, topic, GENERATION_AT + 4, generation)
            rig.client.connection.wake_all()
            data += consumer.read(8001)
            assert check_gapless(data, 7990) == 8001
