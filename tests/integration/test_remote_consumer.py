"""The consumer over streams, against a reader that fails on command: nothing lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from stream_double import DoubleConnection, Log, StreamDouble
from waiting import best_of, eventually

from shmbroker import errors
from shmbroker.client.client import Client
from shmbroker.client.consumer import Consumer
from shmbroker.client.metadata import TopicPartition
from shmbroker.client.remote import streams


@pytest.fixture(params=["tcp", "unix"])
def double(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[StreamDouble]:
    address = "tcp" if request.param == "tcp" else str(tmp_path / "stream")
    with contextlib.closing(StreamDouble(address)) as made:
        yield made


@pytest.fixture
def tcp() -> Iterator[StreamDouble]:
    with contextlib.closing(StreamDouble()) as made:
        yield made


@contextlib.contextmanager
def connected(double: StreamDouble, **options: Any) -> Iterator[tuple[Client, DoubleConnection]]:
    connection = DoubleConnection(double, **options)
    with Client(connection) as client:  # type: ignore[arg-type]
        yield client, connection


def numbered(first: int, count: int, size: int = 10) -> list[bytes]:
    return [b"%0*d" % (size, n) for n in range(first, first + count)]


def read(consumer: Consumer, count: int, timeout: float = 20.0) -> list[bytes | None]:
    """So many values, and not one more that was there with them."""
    found: list[bytes | None] = []
    while len(found) < count:
        batch = consumer.poll_batch(timeout)
        assert batch is not None, f"{len(found)} of {count}"
        assert batch.base_offset + len(batch) == batch.next_offset
        found += batch.values()
    return found


def fill(double: StreamDouble, log: Log, count: int, a_batch: int = 50, size: int = 100) -> None:
    for first in range(0, count, a_batch):
        double.append(log, *numbered(first, a_batch, size))


def test_what_is_there_comes_in_order_and_then_what_is_appended(double: StreamDouble) -> None:
    with connected(double) as (client, connection):
        (log,) = connection.topic("t")
        fill(double, log, 100_000)
        with client.consumer("t", start="earliest") as consumer:
            assert read(consumer, 100_000) == numbered(0, 100_000, 100)
            assert consumer.position() == 100_000
            assert consumer.poll(0) is None
            timer = threading.Timer(0.05, double.append, (log, b"woken"))
            timer.start()
            record = consumer.poll(40)
            timer.join()
            assert record is not None
            assert (record.topic, record.offset, record.value) == ("t", 100_000, b"woken")
            assert consumer.lag() == {("t", 0): 0}
            assert consumer.end_offsets() == {("t", 0): 100_001}


def test_isolation_shows_what_it_should(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        tcp.append(log, b"a")
        tcp.append(log, b"b", durable=False)
        with (
            client.consumer("t", start="earliest") as durable,
            client.consumer("t", start="earliest", isolation="appended") as appended,
        ):
            assert read(appended, 2) == [b"a", b"b"]
            assert read(durable, 1) == [b"a"]
            assert durable.poll(0.05) is None
            assert durable.lag() == {("t", 0): 0}
            with tcp.changed:
                log.durable = log.end
            tcp.ring()
            assert read(durable, 1) == [b"b"]


def test_a_start_within_a_batch_is_exact_and_a_time_finds_its_record(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        fill(tcp, log, 500)
        with client.consumer("t", start=77) as consumer:
            assert read(consumer, 423) == numbered(77, 423, 100)
            # The double's records bear 1000 ms and their batch's base offset.
            assert consumer.offsets_for_time(1130) == {("t", 0): 150}
            assert consumer.offsets_for_time(9999) == {("t", 0): None}
            consumer.seek(datetime.fromtimestamp(1.130, UTC))
            assert read(consumer, 1)[0] == numbered(150, 1, 100)[0]
        with client.consumer("t", start=datetime.fromtimestamp(1.401, UTC)) as consumer:
            assert consumer.position() == 450


@pytest.mark.parametrize("seed", range(4))
def test_connections_cut_anywhere_lose_and_double_nothing(double: StreamDouble, seed: int) -> None:
    chance = random.Random(seed)
    with connected(double) as (client, connection):
        logs = connection.topic("t", 3)
        for log in logs:
            fill(double, log, 20_000)
        double.frame_bytes = 30_000
        double.cut_after = chance.randrange(100_000, 300_000)
        found: dict[int, list[bytes | None]] = {0: [], 1: [], 2: []}
        with client.consumer("t", start="earliest") as consumer:
            while any(len(values) < 20_000 for values in found.values()):
                double.cut_after = chance.randrange(50_000, 400_000)
                batch = consumer.poll_batch(40)
                assert batch is not None
                found[batch.partition] += batch.values()
        assert all(values == numbered(0, 20_000, 100) for values in found.values())
        assert len(double.peers) > 10


def test_it_subscribes_behind_the_last_whole_frame_with_that_batchs_epoch(
    tcp: StreamDouble,
) -> None:
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        tcp.append(log, b"a", epoch=3)
        with client.consumer("t", start="earliest") as consumer:
            assert read(consumer, 1) == [b"a"]
            tcp.hang_up()
            tcp.append(log, b"b", epoch=4)
            assert read(consumer, 1) == [b"b"]
            assert [(s.offset, s.leader_epoch) for s in tcp.asked] == [(0, -1), (1, 3)]


def test_a_consumer_that_takes_nothing_is_sent_no_more_than_its_ring_holds(
    tcp: StreamDouble,
) -> None:
    with connected(tcp) as (client, connection):
        slow_log, fast_log = connection.topic("slow")[0], connection.topic("fast")[0]
        fill(tcp, slow_log, 100_000)
        fill(tcp, fast_log, 100_000)
        with (
            client.consumer("slow", start="earliest") as slow,
            client.consumer("fast", start="earliest") as fast,
        ):
            record = slow.poll(40)
            assert record is not None
            assert read(fast, 100_000) == numbered(0, 100_000, 100)
            (reader,) = slow._all
            feed = slow._source._subscriptions[reader].feed  # type: ignore[attr-defined]
            assert feed.untaken <= feed.capacity <= 1 << 20
            slow.pause()
            slow.resume()
            assert read(slow, 99_999)[-1] == numbered(99_999, 1, 100)[0]


def test_a_paused_partition_gets_no_credit_and_others_go_on(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        first, second = connection.topic("t", 2)
        fill(tcp, first, 50_000)
        fill(tcp, second, 50_000)
        with client.consumer("t", start="earliest") as consumer:
            consumer.pause(0)
            assert read(consumer, 50_000) == numbered(0, 50_000, 100)
            assert consumer.paused() == [("t", 0)]
            assert consumer.poll(0) is None
            assert consumer.position(0) == 0
            consumer.resume(0)
            assert read(consumer, 50_000) == numbered(0, 50_000, 100)


def test_large_batches_come_through_a_small_ring(tcp: StreamDouble) -> None:
    values = [os.urandom(n) for n in (3 << 20, 10, 9 << 20, 200_000, 4 << 20)]
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        for value in values:
            tcp.append(log, value)
        with client.consumer("t", start="earliest") as consumer:
            assert read(consumer, len(values)) == values
            consumer.seek(2)
            assert read(consumer, 3) == values[2:]


def test_seeks_back_and_forth_get_nothing_of_an_older_stream(tcp: StreamDouble) -> None:
    chance = random.Random(1)
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        fill(tcp, log, 50_000)
        with client.consumer("t", start="earliest") as consumer:
            for _ in range(200):
                where = chance.randrange(50_000)
                consumer.seek(where)
                assert consumer.position() == where
                for n in range(where, min(where + chance.randrange(1, 300), 50_000)):
                    record = consumer.poll(40)
                    assert record is not None
                    assert (record.offset, record.value) == (n, numbered(n, 1, 100)[0])
            consumer.seek("latest")
            assert consumer.poll(0) is None
            tcp.append(log, b"new")
            assert read(consumer, 1) == [b"new"]


def test_a_stream_with_a_gap_is_an_error_and_never_stepped_over(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        tcp.append(log, b"a")
        tcp.append(log, b"b", at=10)
        with client.consumer("t", start="earliest") as consumer:
            assert read(consumer, 1) == [b"a"]
            for _ in range(2):
                with pytest.raises(errors.CorruptBatch, match="not the offset that comes next"):
                    consumer.poll(40)


# --- errors: the same, at the same places, as of a local consumer -------------------------------


def test_an_offset_that_is_not_there_is_told_again_until_it_is_moved(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        fill(tcp, log, 100)
        with tcp.changed:
            log.start = 50
        with client.consumer("t", start=7) as consumer:
            for _ in range(3):
                with pytest.raises(errors.OffsetOutOfRange) as told:
                    consumer.poll(40)
                assert (told.value.topic, told.value.offset) == ("t", 7)
                assert told.value.log_start_offset == 50
            consumer.seek("earliest")
            assert read(consumer, 50) == numbered(50, 50, 100)
        with client.consumer("t", start=7, on_gap="earliest") as consumer:
            assert read(consumer, 50) == numbered(50, 50, 100)
        with (
            client.consumer("t", start=101, on_gap="earliest") as consumer,
            pytest.raises(errors.OffsetOutOfRange),
        ):
            consumer.poll(40)


def test_retention_that_passes_a_consumer_is_told_behind_what_it_had(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        fill(tcp, log, 20_000)
        with client.consumer("t", start="earliest") as consumer:
            record = consumer.poll(40)
            assert record is not None
            with tcp.changed:
                log.start = 19_990
            found = 1
            with pytest.raises(errors.OffsetOutOfRange) as told:
                while consumer.poll(40) is not None:
                    found += 1
            assert told.value.offset == found == consumer.position()
            consumer.seek(told.value.log_start_offset)
            assert consumer.poll(40) is not None


def test_a_truncation_is_told_with_its_end(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        tcp.append(log, *numbered(0, 10), epoch=1)
        with client.consumer("t", start="earliest", isolation="appended") as consumer:
            assert read(consumer, 10) == numbered(0, 10)
            with tcp.changed:
                log.truncated[1] = 6
            tcp.hang_up()
            for _ in range(2):
                with pytest.raises(errors.LogTruncated) as told:
                    consumer.poll(40)
                assert (told.value.offset, told.value.end_offset) == (10, 6)
            consumer.seek(6)
            assert read(consumer, 4) == numbered(6, 4)


def test_an_offline_partition_is_told_and_read_again_when_it_is_back(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        tcp.append(log, b"a")
        with client.consumer("t", start="earliest") as consumer:
            with tcp.changed:
                log.error = errors.PartitionOffline("x", 0, "a write failed")
            tcp.ring()
            with pytest.raises(errors.PartitionOffline, match="t-0 is offline: a write failed"):
                read(consumer, 2)
            with pytest.raises(errors.PartitionOffline):
                consumer.poll(40)
            with tcp.changed:
                log.error = None
            tcp.append(log, b"b")
            assert read(consumer, 2 - consumer.position())[-1] == b"b"


def test_a_deleted_topic_ends_the_wait_and_one_made_anew_is_another(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        connection.topic("t")
        with client.consumer("t") as consumer:
            timer = threading.Timer(0.05, connection.delete, ("t",))
            timer.start()
            with pytest.raises(errors.UnknownTopic):
                consumer.poll(40)
            timer.join()
            with pytest.raises(errors.UnknownTopic):
                consumer.poll(40)
            (log,) = connection.topic("t")
            tcp.append(log, b"of another topic")
            assert read(consumer, 1) == [b"of another topic"]


def test_a_batch_that_was_damaged_on_its_way_is_told_and_read_again(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        tcp.append(log, b"good")
        tcp.append(log, b"value")
        with tcp.changed:
            base, last, epoch, raw = log.batches[1]
            log.batches[1] = (base, last, epoch, raw[:-2] + b"\xff" + raw[-1:])
        with client.consumer("t", start="earliest") as consumer:
            assert read(consumer, 1) == [b"good"]
            with pytest.raises(errors.CorruptBatch, match="offset 1 is no batch"):
                consumer.poll(40)
            with tcp.changed:
                log.batches[1] = (base, last, epoch, raw)
            assert read(consumer, 1) == [b"value"]


# --- the broker ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rubbish", [b"\x63" + bytes(64), b"HTTP/1.1 200 OK\r\n\r\n" + bytes(32)])
def test_rubbish_ends_the_connection_and_not_the_consumer(
    tcp: StreamDouble, rubbish: bytes
) -> None:
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        tcp.append(log, b"a")
        with client.consumer("t", start="earliest") as consumer:
            assert read(consumer, 1) == [b"a"]
            tcp.rubbish.append(rubbish)
            tcp.append(log, b"b")
            assert read(consumer, 1) == [b"b"]


def test_a_peer_that_falls_silent_is_given_up(tcp: StreamDouble) -> None:
    tcp.heartbeat_ms, tcp.dead_ms = 60, 1000
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        tcp.append(log, b"a")
        with client.consumer("t", start="earliest") as consumer:
            assert read(consumer, 1) == [b"a"]
            assert consumer.poll(1.5) is None  # heartbeats keep it
            assert len(tcp.asked) == 1
            tcp.silent.set()
            tcp.append(log, b"b")
            while len(tcp.peers) < 2:
                time.sleep(0.01)
            tcp.silent.clear()
            assert read(consumer, 1) == [b"b"]


def test_a_reader_that_is_killed_and_started_again_is_a_pause(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        fill(tcp, log, 1000)
        with client.consumer("t", start="earliest") as consumer:
            read(consumer, 1000)
            tcp.deaf()
            tcp.hang_up()
            tcp.append(log, b"after")
            assert consumer.poll(0.2) is None
            tcp.listen("tcp:" + tcp.endpoint.rpartition(":")[2])
            assert read(consumer, 1) == [b"after"]


def test_no_stream_for_reconnect_s_is_broker_gone_and_may_be_repeated(tcp: StreamDouble) -> None:
    with connected(tcp, reconnect_s=1.0) as (client, connection):
        (log,) = connection.topic("t")
        with client.consumer("t") as consumer:
            assert consumer.poll(0.05) is None
            eventually(lambda: tcp.asked)  # its stream is there
            tcp.deaf()
            tcp.hang_up()
            for _ in range(2):
                with pytest.raises(errors.BrokerGone, match="no stream to be had"):
                    consumer.poll(40)
            tcp.listen("tcp:" + tcp.endpoint.rpartition(":")[2])
            tcp.append(log, b"back")
            assert read(consumer, 1) == [b"back"]


@pytest.mark.parametrize("wrong", ["token", "broker"])
def test_who_is_not_let_in_is_told_why(tcp: StreamDouble, wrong: str) -> None:
    if wrong == "token":
        tcp.token = b"another"
    else:
        tcp.data_dir_id = bytes(16)
    with connected(tcp, reconnect_s=0.2) as (client, connection):
        connection.topic("t")
        with client.consumer("t") as consumer, pytest.raises(errors.AuthenticationFailed):
            consumer.poll(40)


def test_a_lost_control_channel_stops_no_record_that_is_here(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        tcp.append(log, b"a")
        with client.consumer("t", start="earliest") as consumer:
            assert read(consumer, 1) == [b"a"]
            connection.gone()
            tcp.append(log, b"b")
            timer = threading.Timer(0.1, connection.back)
            timer.start()
            assert read(consumer, 1) == [b"b"]
            timer.join()
            tcp.append(log, b"c")
            assert read(consumer, 1) == [b"c"]


# --- ends and crowds ----------------------------------------------------------------------------


def test_closing_from_another_thread_ends_a_wait_within_a_second(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        connection.topic("t")

        def ends_after_s() -> float:
            consumer = client.consumer("t")
            closed: list[float] = []
            timer = threading.Timer(
                0.1, lambda: (closed.append(time.monotonic()), consumer.close())
            )
            timer.start()
            assert list(consumer) == []
            ended = time.monotonic()
            timer.join()
            return ended - closed[0]

        best_of(5, 1.0, ends_after_s)


def test_closing_the_client_ends_everything_within_a_second_whatever_the_broker_does(
    tcp: StreamDouble,
) -> None:

    def ends_after_s() -> float:
        with connected(tcp) as (client, connection):
            connection.topic("t", 20)
            consumers = [client.consumer("t") for _ in range(5)]
            tcp.silent.set()
            began = time.monotonic()
            client.close()
            took = time.monotonic() - began
            assert all(c.closed for c in consumers)
            assert not connection.streams._thread.is_alive()
        tcp.silent.clear()
        return took

    best_of(5, 1.0, ends_after_s)


def test_a_hundred_consumers_share_a_few_connections_and_one_thread(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        logs = connection.topic("t", 10)
        for log in logs:
            fill(tcp, log, 500)
        before = threading.active_count()
        with contextlib.ExitStack() as stack:
            made = [
                stack.enter_context(client.consumer("t", partitions=[n % 10], start="earliest"))
                for n in range(100)
            ]
            for consumer in made:
                assert read(consumer, 500) == numbered(0, 500, 100)
            assert len(tcp.peers) <= streams.LINKS
            assert threading.active_count() - before <= streams.LINKS  # the double's own
            for log in logs:
                tcp.append(log, b"to all")
            assert [read(consumer, 1) for consumer in made] == [[b"to all"]] * 100


def test_more_subscriptions_than_a_connection_takes_are_spread(tcp: StreamDouble) -> None:
    tcp.limit = 2
    with connected(tcp) as (client, connection):
        logs = connection.topic("t", 13)
        with client.consumer("t") as consumer:
            for n, log in enumerate(logs):
                tcp.append(log, b"%d" % n)
            assert sorted(read(consumer, 13)) == sorted(b"%d" % n for n in range(13))  # type: ignore[type-var]


def test_an_unclosed_consumer_leaves_no_subscription(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        connection.topic("t")
        consumer = client.consumer("t")
        assert consumer.poll(0.05) is None
        with pytest.warns(ResourceWarning):
            del consumer
        eventually(lambda: not connection.streams._all, lambda: connection.streams._all)


def test_a_forked_child_holds_no_connection_and_reads_nothing(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        tcp.append(log, b"a")
        with client.consumer("t", start="earliest") as consumer:
            assert read(consumer, 1) == [b"a"]
            pid = os.fork()
            if not pid:
                code = 1
                with contextlib.suppress(BaseException):
                    try:
                        consumer.poll(40)
                    except errors.ForkedError:
                        open_sockets = [
                            fd
                            for fd in os.listdir("/proc/self/fd")
                            if os.path.exists(f"/proc/self/fd/{fd}")
                        ]
                        code = 0 if open_sockets else 2
                os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            tcp.append(log, b"b")
            assert read(consumer, 1) == [b"b"]


def test_ctrl_c_ends_a_wait(tcp: StreamDouble) -> None:
    with connected(tcp) as (client, connection):
        (log,) = connection.topic("t")
        with client.consumer("t", idle="park") as consumer:
            main = threading.main_thread().ident
            assert main is not None
            timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                timer.start()
                consumer.poll(40)
            timer.join()
            tcp.append(log, b"a")
            assert read(consumer, 1) == [b"a"]


# --- asyncio ------------------------------------------------------------------------------------


def run_aio(double: StreamDouble, main: Callable[[Any, DoubleConnection], Any]) -> None:
    from shmbroker.client.aio.client import Client as AioClient
    from shmbroker.client.aio.worker import Worker

    async def runs() -> None:
        connection = DoubleConnection(double)
        loop = asyncio.get_running_loop()
        client = AioClient(Client(connection), loop, Worker(loop, "requests"))  # type: ignore[arg-type]
        async with client, asyncio.timeout(60):
            await main(client, connection)

    asyncio.run(runs())


def test_asyncio_consumers_wait_for_streams_without_a_thread_each(tcp: StreamDouble) -> None:
    async def main(client: Any, connection: DoubleConnection) -> None:
        logs = connection.topic("t", 20)
        for log in logs:
            fill(tcp, log, 200)
        consumers = [client.consumer("t", partitions=[n], start="earliest") for n in range(20)]

        async def reads(consumer: Any) -> list[bytes]:
            found: list[bytes] = []
            async for record in consumer:
                found.append(record.value)
                if len(found) == 201:
                    break
            return found

        tasks = [asyncio.create_task(reads(c)) for c in consumers]
        await asyncio.sleep(0.2)
        for log in logs:
            tcp.append(log, b"last")
        wanted = [*numbered(0, 200, 100), b"last"]
        assert await asyncio.gather(*tasks) == [wanted] * 20
        await consumers[0].seek(150)
        record = await consumers[0].poll(40)
        assert record.offset == 150
        assert await consumers[0].lag() == {TopicPartition("t", 0): 50}
        for consumer in consumers:
            await consumer.close()

    run_aio(tcp, main)


def test_a_cancelled_wait_on_a_stream_loses_no_record(tcp: StreamDouble) -> None:
    async def main(client: Any, connection: DoubleConnection) -> None:
        (log,) = connection.topic("t")
        async with client.consumer("t") as consumer:
            found: list[bytes] = []
            sent = 0
            for n in range(200):
                task = asyncio.create_task(consumer.poll())
                for _ in range(n % 4):
                    await asyncio.sleep(0)
                tcp.append(log, b"%d" % n)
                sent += 1
                if n % 3:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        found.append((await task).value)
                else:
                    found.append((await task).value)
            while len(found) < sent:
                found.append((await consumer.poll(40)).value)
            assert found == [b"%d" % n for n in range(200)]

    run_aio(tcp, main)


def test_asyncio_consumers_raise_and_go_on_as_others_do(tcp: StreamDouble) -> None:
    async def main(client: Any, connection: DoubleConnection) -> None:
        (log,) = connection.topic("t")
        fill(tcp, log, 100)
        with tcp.changed:
            log.start = 50
        async with client.consumer("t", start=3) as consumer:
            for _ in range(2):
                with pytest.raises(errors.OffsetOutOfRange):
                    await consumer.poll(40)
            await consumer.seek("earliest")
            assert (await consumer.poll(40)).offset == 50
            tcp.hang_up()
            tcp.append(log, b"on")
            found = []
            while b"on" not in found:
                batch = await consumer.poll_batch(40)
                assert batch is not None
                found += batch.values()
            assert len(found) == 50

    run_aio(tcp, main)
