"""The consumer over a fake broker: rings, files, and where they meet."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from consumer_fakes import FakeBroker, FakePartition

from shmbroker._core import shm
from shmbroker.client.client import Client
from shmbroker.client.consumer import Consumer
from shmbroker.client.local_connection import LocalConnection
from shmbroker.client.metadata import TopicPartition
from shmbroker.errors import (
    ClosedError,
    ConcurrentUse,
    CorruptBatch,
    LogTruncated,
    OffsetOutOfRange,
    PartitionOffline,
    UnknownTopic,
)

RING = 1 << 16


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeBroker]:
    with FakeBroker(tmp_path, partitions=2) as broker:
        yield broker


@pytest.fixture
def log(fake: FakeBroker) -> FakePartition:
    fake.partitions = fake.partitions[:1]
    fake.partitions[0].make_ring(RING)
    return fake.partitions[0]


@pytest.fixture
def client(fake: FakeBroker) -> Iterator[Client]:
    with Client(LocalConnection(fake.places, timeout=5.0, reconnect_s=10.0)) as made:
        yield made


def values(consumer: Consumer) -> list[bytes | None]:
    """Everything that is there now."""
    return [value for batch in consumer.batches(timeout=0) for value in batch.values()]


def numbered(first: int, count: int, size: int = 10) -> list[bytes]:
    return [b"%0*d" % (size, n) for n in range(first, first + count)]


def soon(call: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(0.05, call)
    timer.start()
    return timer


def test_durable_isolation_sees_only_what_is_flushed(log: FakePartition, client: Client) -> None:
    log.append(b"a", b"b")
    with (
        client.consumer("t", start="earliest") as durable,
        client.consumer("t", start="earliest", isolation="appended") as appended,
    ):
        assert durable.poll(0) is None
        assert values(appended) == [b"a", b"b"]
        log.flush()
        assert values(durable) == [b"a", b"b"]


def test_a_record_carries_all_its_fields(log: FakePartition, client: Client) -> None:
    log.append(b"a", None)
    log.flush()
    with client.consumer("t", start="earliest") as consumer:
        first, second = consumer.poll(40), consumer.poll(40)
    assert first is not None
    assert second is not None
    assert (first.topic, first.partition, first.offset) == ("t", 0, 0)
    assert (first.timestamp, first.key, first.value, first.headers) == (1000, None, b"a", [])
    assert second.value is None
    assert second.offset == 1


def test_latest_begins_at_the_end_as_it_is(log: FakePartition, client: Client) -> None:
    log.append(b"old")
    log.flush()
    with client.consumer("t") as consumer:
        log.append(b"new")
        log.flush()
        record = consumer.poll(40)
        assert record is not None
        assert record.value == b"new"


@pytest.mark.parametrize("idle", ["spin", "adaptive", "park"])
def test_a_wait_ends_with_the_next_record(log: FakePartition, client: Client, idle: str) -> None:
    def publish() -> None:
        log.append(b"woken")
        log.flush()

    with client.consumer("t", idle=idle) as consumer:  # type: ignore[arg-type]
        timer = soon(publish)
        record = consumer.poll(40)
        assert record is not None
        assert record.value == b"woken"
        timer.join()


def test_poll_returns_none_after_its_timeout(log: FakePartition, client: Client) -> None:
    with client.consumer("t") as consumer:
        assert consumer.poll(0) is None
        assert consumer.poll(0.02) is None
        with pytest.raises(ValueError):
            consumer.poll(-1)


def test_small_batches_come_as_one_and_a_start_within_them_is_exact(
    log: FakePartition, client: Client
) -> None:
    for value in numbered(0, 50):
        log.append(value)
    log.append(*numbered(50, 10))
    log.flush()
    with client.consumer("t", start=55) as consumer:
        (batch,) = consumer.batches(timeout=0)
        assert (batch.base_offset, batch.next_offset, len(batch)) == (55, 60, 5)
        assert batch.values() == numbered(55, 5)
        assert batch.offsets().tolist() == list(range(55, 60))
        assert [r.offset for r in batch.records()] == list(range(55, 60))
    with client.consumer("t", start=3) as consumer:
        (batch,) = consumer.batches(timeout=0)
        assert batch.values() == numbered(3, 57)
        assert len(batch) == 57
        assert batch.timestamps().tolist()[:2] == [1003, 1004]
        assert len(batch.batches()) == 48


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_batches_are_read_like_others(
    log: FakePartition, client: Client, codec: str
) -> None:
    log.append(b"plain")
    log.append(*numbered(1, 9), compression=codec)
    log.append(b"more")
    log.flush()
    with client.consumer("t", start=4) as consumer:
        assert values(consumer) == [*numbered(4, 6), b"more"]
        consumer.seek(0)
        assert [r.value for r in consumer.batches(0).__next__().records()][:2] == [
            b"plain",
            *numbered(1, 1),
        ]


def test_reading_goes_around_the_ring_many_times(log: FakePartition, client: Client) -> None:
    with client.consumer("t", isolation="appended") as consumer:
        for n in range(60):
            log.append(*numbered(n * 50, 50, size=100))
            log.flush()
            assert values(consumer) == numbered(n * 50, 50, size=100)


def test_who_is_lapped_goes_on_from_the_file_and_then_in_the_ring_again(
    log: FakePartition, client: Client
) -> None:
    for n in range(40):
        log.append(*numbered(n * 50, 50, size=100))
    log.flush()
    with client.consumer("t", start="earliest") as consumer:
        assert values(consumer) == numbered(0, 2000, size=100)
        log.append(b"and on")
        log.flush()
        assert values(consumer) == [b"and on"]


def test_a_partition_without_a_ring_is_read_from_its_files_to_the_last_byte(
    log: FakePartition, client: Client
) -> None:
    log.append(*numbered(0, 10))
    log.append(*numbered(10, 10))
    log.flush()
    log.slot.ring_bytes = 0
    log.slot.generation += 1
    with client.consumer("t", start="earliest") as consumer:
        assert values(consumer) == numbered(0, 20)


@pytest.mark.parametrize("size", [10, 300, 5000])
@pytest.mark.parametrize("start", [0, 1, 7, 18, 19])
def test_a_new_ring_whose_index_is_empty_is_read_where_the_file_ends(
    log: FakePartition, client: Client, start: int, size: int
) -> None:
    for n in range(10):
        log.append(*numbered(2 * n, 2, size=size))
    log.flush()
    log.make_ring(2 * RING)
    with client.consumer("t", start=start) as consumer:
        assert values(consumer) == numbered(start, 20 - start, size=size)
        log.append(b"next")
        log.flush()
        assert values(consumer) == [b"next"]


def test_a_ring_that_is_replaced_while_reading_is_followed(
    log: FakePartition, client: Client
) -> None:
    with client.consumer("t", isolation="appended") as consumer:
        for n in range(6):
            log.append(*numbered(n * 10, 10))
            assert values(consumer) == numbered(n * 10, 10)
            log.flush()
            log.make_ring(RING << n % 2)


def test_rolls_leave_gaps_that_readers_step_over(log: FakePartition, client: Client) -> None:
    with client.consumer("t", isolation="appended") as consumer:
        for n in range(5):
            log.append(*numbered(n * 10, 5))
            log.append(*numbered(n * 10 + 5, 5))
            log.roll()
        assert values(consumer) == numbered(0, 50)
        log.flush()
        consumer.seek(23)
        assert values(consumer) == numbered(23, 27)
    log.slot.ring_bytes = 0
    log.slot.generation += 1
    with client.consumer("t", start=23) as consumer:
        assert values(consumer) == numbered(23, 27)


def test_an_offset_before_the_log_start_is_told_with_both_offsets(
    log: FakePartition, client: Client
) -> None:
    log.append(*numbered(0, 10))
    log.flush()
    log.slot.log_start_offset = 4
    with client.consumer("t", start=1) as consumer:
        with pytest.raises(OffsetOutOfRange) as caught:
            consumer.poll(40)
        assert (caught.value.offset, caught.value.log_start_offset) == (1, 4)
        consumer.seek("earliest")
        assert consumer.position() == 4
        assert values(consumer) == numbered(4, 6)
    with client.consumer("t", start=1, on_gap="earliest") as consumer:
        assert values(consumer) == numbered(4, 6)


def test_an_offset_past_the_end_is_out_of_range(log: FakePartition, client: Client) -> None:
    log.append(b"a")
    log.flush()
    with client.consumer("t", start=7) as consumer, pytest.raises(OffsetOutOfRange):
        consumer.poll(40)


def test_one_offset_for_several_partitions_is_an_error(fake: FakeBroker, client: Client) -> None:
    with pytest.raises(ValueError, match="one offset for 2 partitions"):
        client.consumer("t", start=0)
    with pytest.raises(ValueError, match="names the partitions"):
        client.consumer("t", start={0: 1})
    with pytest.raises(UnknownTopic, match="no partition 9"):
        client.consumer("t", partitions=[9])
    with pytest.raises(UnknownTopic):
        client.consumer("nothing")


def test_several_partitions_are_read_in_turn_and_waited_on_together(
    fake: FakeBroker, client: Client
) -> None:
    a, b = fake.partitions
    for log in (a, b):
        log.make_ring(RING)
        log.append(*numbered(0, 3))
        log.flush()
    with client.consumer("t", start={0: 1, 1: 2}) as consumer:
        seen = {(r.partition, r.offset) for batch in consumer.batches(0) for r in batch}
        assert seen == {(0, 1), (0, 2), (1, 2)}
        for log in (b, a):
            timer = soon(lambda log=log: (log.append(b"x"), log.flush()))
            record = consumer.poll(40)
            assert record is not None
            assert record.partition == log.number
            timer.join()


def test_positions_are_those_of_what_was_handed_out(log: FakePartition, client: Client) -> None:
    log.append(*numbered(0, 10))
    log.flush()
    with client.consumer("t", start="earliest") as consumer:
        for record in consumer:
            if record.offset == 3:
                break
        assert consumer.position() == 4
        assert consumer.lag() == {TopicPartition("t", 0): 6}
        assert values(consumer) == numbered(4, 6)
        assert consumer.position(0) == consumer.position(("t", 0)) == 10
        assert consumer.beginning_offsets() == {("t", 0): 0}
        assert consumer.end_offsets() == {("t", 0): 10}
        assert consumer.assignment() == [("t", 0)]
        with pytest.raises(ValueError, match="does not read"):
            consumer.position(1)


def test_offsets_for_time_in_files_and_in_the_ring(log: FakePartition, client: Client) -> None:
    for n in range(100):
        log.append(*numbered(2 * n, 2))
    log.flush()
    with client.consumer("t") as consumer:
        for offset in (0, 2, 50, 196, 198):
            assert consumer.offsets_for_time(1000 + offset) == {("t", 0): offset}
        assert consumer.offsets_for_time(0) == {("t", 0): 0}
        assert consumer.offsets_for_time(1199) == {("t", 0): None}
        consumer.seek(datetime.fromtimestamp(1.05, UTC))
        assert consumer.position() == 50
    with client.consumer("t", start=datetime.fromtimestamp(1.19, UTC)) as consumer:
        assert values(consumer) == numbered(190, 10)


def test_all_partitions_go_to_a_named_place_and_one_to_an_offset(
    fake: FakeBroker, client: Client
) -> None:
    for log in fake.partitions:
        log.make_ring(RING)
        for value in numbered(0, 4):
            log.append(value)
        log.flush()
    with client.consumer("t") as consumer:
        consumer.seek("earliest")
        assert [consumer.position(p) for p in (0, 1)] == [0, 0]
        consumer.seek("latest")
        assert [consumer.position(p) for p in (0, 1)] == [4, 4]
        consumer.seek(datetime.fromtimestamp(1.002, UTC))
        assert [consumer.position(p) for p in (0, 1)] == [2, 2]
        consumer.seek(3, 1)
        consumer.seek("earliest", ("t", 0))
        assert [consumer.position(p) for p in (0, 1)] == [0, 3]
        with pytest.raises(ValueError, match="say which partition"):
            consumer.seek(1)
        with pytest.raises(ValueError, match="is no place"):
            consumer.seek("the end")  # type: ignore[arg-type]


def test_a_negative_offset_counts_from_the_end_and_stops_at_the_first_record(
    log: FakePartition, client: Client
) -> None:
    with client.consumer("t", start=-1_000_000) as consumer:
        assert consumer.position() == consumer.beginning_offsets()["t", 0]
        consumer.seek(-1)
        assert consumer.position() == max(0, consumer.end_offsets()["t", 0] - 1)


def test_a_consumer_of_nothing_is_refused(log: FakePartition, client: Client) -> None:
    with pytest.raises(ValueError, match="at least one topic"):
        client.consumer()
    with pytest.raises(ValueError, match="partitions is empty"):
        client.consumer("t", partitions=[])
    with pytest.raises(ValueError, match="isolation is one of 'durable', 'appended'"):
        client.consumer("t", isolation="committed")  # type: ignore[arg-type]


def test_one_batch_at_a_time(log: FakePartition, client: Client) -> None:
    log.append(*numbered(0, 3))
    log.flush()
    with client.consumer("t", start="earliest") as consumer:
        first = consumer.poll(0)
        assert first is not None
        batch = consumer.poll_batch(40)
        assert batch is not None
        assert batch.values() == numbered(1, 2)
        assert consumer.poll_batch(0) is None
        assert consumer.poll_batch(0.01) is None


def test_batches_end_after_so_many_seconds_of_silence(log: FakePartition, client: Client) -> None:
    with client.consumer("t", start="earliest") as consumer:

        def more() -> None:
            log.append(b"late")
            log.flush()

        log.append(b"soon")
        log.flush()
        seen, timer = [], None
        began = time.monotonic()
        for batch in consumer.batches(timeout=0.8):
            seen += batch.values()
            timer = timer or soon(more)  # the silence begins anew with each batch
        assert seen == [b"soon", b"late"]
        assert 0.8 <= time.monotonic() - began < 40


def test_an_asked_for_offset_leaves_the_position_alone(log: FakePartition, client: Client) -> None:
    for value in numbered(0, 10):
        log.append(value)
    log.flush()
    with client.consumer("t", start=4) as consumer:
        assert consumer.offsets_for_time(1002) == {("t", 0): 2}
        assert consumer.position() == 4
        assert values(consumer) == numbered(4, 6)


def test_positions_and_pauses_need_no_broker(
    fake: FakeBroker, log: FakePartition, client: Client
) -> None:
    with client.consumer("t", start=0) as consumer:
        fake.kill()
        while not client.connection.epoch.value & 1:
            time.sleep(0.001)
        consumer.seek(7)
        consumer.pause(0)
        assert consumer.position() == 7
        assert consumer.paused() == consumer.assignment() == [TopicPartition("t", 0)]
        consumer.resume(0)
        assert consumer.paused() == []


def test_a_broker_that_dies_while_a_consumer_asks_it_is_waited_for(
    fake: FakeBroker, log: FakePartition
) -> None:
    connection = LocalConnection(fake.places, timeout=0.8, reconnect_s=40.0)
    with Client(connection) as client, client.consumer("t") as consumer:
        asked = threading.Event()

        def die(_: object) -> dict[str, object]:
            asked.set()
            raise NotImplementedError

        def restart() -> None:
            assert asked.wait(40)
            fake.kill()
            time.sleep(1.0)  # longer than the client waits for an answer
            del fake.answers["metadata"]
            log.slot.slot_epoch, log.slot.state = 1, shm.STATES.index("online")
            fake.restart()
            log.append(b"after")
            log.flush()

        thread = threading.Thread(target=restart)
        thread.start()
        fake.answers["metadata"] = die
        log.slot.slot_epoch = 9  # so that the consumer asks where the partition is
        log.ring_words()
        record = consumer.poll(40)
        thread.join()
        assert record is not None
        assert record.value == b"after"


def test_paused_partitions_wait(fake: FakeBroker, client: Client) -> None:
    for log in fake.partitions:
        log.make_ring(RING)
        log.append(b"%d" % log.number)
        log.flush()
    with client.consumer("t", start="earliest") as consumer:
        consumer.pause(0)
        assert values(consumer) == [b"1"]
        consumer.resume()
        assert values(consumer) == [b"0"]


def test_close_from_another_thread_ends_an_iteration_and_a_poll(
    log: FakePartition, client: Client
) -> None:
    for read in (lambda c: list(c), lambda c: list(c.batches())):
        consumer = client.consumer("t")
        timer = soon(consumer.close)
        assert read(consumer) == []
        timer.join()
        with pytest.raises(ClosedError):
            consumer.poll(0)
    consumer = client.consumer("t")
    timer = soon(consumer.close)
    with pytest.raises(ClosedError):
        consumer.poll()
    timer.join()


def test_a_consumer_that_nobody_closed_warns(log: FakePartition, client: Client) -> None:
    consumers = [client.consumer("t")]
    with pytest.warns(ResourceWarning, match=r"unclosed <shmbroker\.Consumer of t-0>"):
        consumers.clear()


def test_two_threads_in_one_consumer_are_told(log: FakePartition, client: Client) -> None:
    consumer = client.consumer("t", idle="park")
    inside = threading.Event()

    def wait() -> None:
        inside.set()
        list(consumer)

    thread = threading.Thread(target=wait)
    thread.start()
    inside.wait()
    with pytest.raises(ConcurrentUse):
        while True:
            consumer.poll(0)
    consumer.close()
    thread.join()


@pytest.mark.parametrize("idle", ["spin", "park"])
def test_ctrl_c_interrupts_a_wait(log: FakePartition, client: Client, idle: str) -> None:
    with client.consumer("t", idle=idle) as consumer:  # type: ignore[arg-type]
        timer = soon(lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            consumer.poll()
        timer.join()


def test_a_wait_goes_on_over_a_restart_of_the_broker(
    fake: FakeBroker, log: FakePartition, client: Client
) -> None:
    def restart() -> None:
        fake.kill()
        fake.restart()
        log.append(b"after")
        log.flush()

    with client.consumer("t") as consumer:
        timer = soon(restart)
        record = consumer.poll(40)
        assert record is not None
        assert record.value == b"after"
        timer.join()


def test_a_wait_goes_on_over_a_restart_with_new_rings(
    fake: FakeBroker, log: FakePartition, client: Client
) -> None:
    log.append(*numbered(0, 5))
    log.flush()

    def restart() -> None:
        fake.kill()
        fake.unlink_all()
        before = fake.partitions[0]
        fake.make_objects(1)
        new = fake.partitions[0]
        new.written = before.written
        new.slot.generation = 5 << 32
        new.slot.log_end_offset = new.slot.durable_offset = 5
        new.slot.log_end_position = new.slot.durable_position = sum(len(r) for _, r in new.written)
        new.slot.reserved_position = new.slot.durable_position
        new.make_ring(RING)
        fake.start()
        new.append(b"after")
        new.flush()

    with client.consumer("t", start="earliest") as consumer:
        assert values(consumer) == numbered(0, 5)
        timer = soon(restart)
        record = consumer.poll(40)
        assert record is not None
        assert (record.value, record.offset) == (b"after", 5)
        timer.join()


def test_lost_records_are_reported_and_never_skipped(log: FakePartition, client: Client) -> None:
    log.append(*numbered(0, 5), epoch=1)
    log.flush()
    log.append(*numbered(5, 5), epoch=1)
    with client.consumer("t", start="earliest", isolation="appended") as consumer:
        assert len(values(consumer)) == 10
        del log.written[1]  # the host died: back to the durable end, and on under another epoch
        log.slot.log_end_offset, log.slot.log_end_position = 5, log.slot.durable_position
        log.make_ring(RING, recovered=True)
        log.append(*numbered(50, 8), epoch=2)
        with pytest.raises(LogTruncated) as caught:
            consumer.poll(40)
        assert (caught.value.offset, caught.value.end_offset) == (10, 5)
        with pytest.raises(LogTruncated):
            consumer.poll(40)
        consumer.seek(5)
        assert values(consumer) == numbered(50, 8)


def test_a_recovery_that_lost_nothing_goes_unnoticed(log: FakePartition, client: Client) -> None:
    log.append(*numbered(0, 5), epoch=1)
    log.flush()
    with client.consumer("t", start="earliest") as consumer:
        assert len(values(consumer)) == 5
        log.make_ring(RING, recovered=True)
        assert consumer.poll(0) is None
        log.append(b"on", epoch=2)
        log.flush()
        assert values(consumer) == [b"on"]


def test_a_partition_that_goes_offline_is_read_to_its_end_and_then_named(
    fake: FakeBroker, log: FakePartition, client: Client
) -> None:
    fake.answers["partition_state"] = lambda _: {"state": "offline", "reason": "EIO on write"}
    log.append(b"a")
    log.flush()
    with client.consumer("t", start="earliest") as consumer:
        log.slot.state = shm.STATES.index("offline")
        log.ring_words()
        assert consumer.poll(40) is not None
        with pytest.raises(PartitionOffline, match="EIO on write"):
            consumer.poll(40)


def test_a_topic_that_is_deleted_ends_the_wait_with_its_name(
    fake: FakeBroker, log: FakePartition, client: Client
) -> None:
    def delete() -> None:
        fake.answers["metadata"] = lambda _: {"topics": {}}
        log.slot.state = shm.STATES.index("closed")
        log.ring_words()

    with client.consumer("t") as consumer:
        timer = soon(delete)
        with pytest.raises(UnknownTopic, match="'t'"):
            consumer.poll(40)
        timer.join()


def test_a_slot_given_to_another_partition_is_not_read_on(
    fake: FakeBroker, log: FakePartition, client: Client
) -> None:
    with client.consumer("t") as consumer:
        log.append(b"somebody else's")
        log.flush()
        log.slot.slot_epoch += 1
        fake.answers["metadata"] = lambda _: {"topics": {}}
        with pytest.raises(UnknownTopic):
            consumer.poll(40)


def test_damage_in_a_file_is_reported(log: FakePartition, client: Client) -> None:
    log.append(*numbered(0, 500, size=100))
    log.append(*numbered(500, 10))
    log.flush()
    path = log.directory / f"{0:020d}.log"
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    log.slot.ring_bytes = 0
    log.slot.generation += 1
    with client.consumer("t", start=0) as consumer, pytest.raises(CorruptBatch, match="checksum"):
        consumer.poll(40)


def test_what_is_nowhere_is_no_endless_search(log: FakePartition, client: Client) -> None:
    log.append(*numbered(0, 5))
    log.flush()
    log.slot.ring_bytes = 0
    log.slot.generation += 1
    (log.directory / f"{0:020d}.log").write_bytes(b"")
    with client.consumer("t", start=0) as consumer, pytest.raises(CorruptBatch, match="neither"):
        consumer.poll(40)


def test_a_partition_that_its_writer_has_yet_to_open_is_waited_for(
    fake: FakeBroker, log: FakePartition, client: Client
) -> None:
    log.append(b"a")
    log.flush()
    with client.consumer("t", start="earliest") as consumer:
        assert consumer.poll(40) is not None

        def reopen() -> None:
            fake.kill()
            fake.answers["metadata"] = _metadata_of_epoch(fake, 2)
            log.slot.slot_epoch, log.slot.state = 0, shm.STATES.index("free")
            log.slot.log_end_offset = log.slot.durable_offset = 0
            fake.restart()
            assert consumer.closed is False
            log.slot.log_end_offset = log.slot.durable_offset = 1
            log.make_ring(RING, recovered=True)
            log.slot.slot_epoch, log.slot.state = 2, shm.STATES.index("online")
            log.append(b"b")
            log.flush()

        timer = soon(reopen)
        record = consumer.poll(40)
        assert record is not None
        assert record.value == b"b"
        timer.join()


def _metadata_of_epoch(fake: FakeBroker, epoch: int) -> Callable[[dict[str, object]], dict]:
    def answer(message: dict[str, object]) -> dict:
        said = fake._metadata(message)
        for place in said["topics"]["t"]["partitions"]:
            place["slot_epoch"] = epoch
        return said

    return answer
