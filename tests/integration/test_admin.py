"""Topics altered and records deleted under running clients: what they see, what a crash leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waiting import eventually

from shmbroker import errors

MIB = 1 << 20


def state(client: Any, topic: str, partition: int = 0) -> dict[str, Any]:
    """What `status` says of a partition."""
    for entry in client.status()["partitions"]:
        if (entry["topic"], entry["partition"]) == (topic, partition):
            return dict(entry)
    raise AssertionError(f"no {topic}-{partition}")


def segments(broker: Any, topic: str) -> list[int]:
    """Base offsets of the segments of partition 0."""
    found = (broker.places.data_dir / f"{topic}-0").glob("[0-9]*.log")
    return sorted(int(path.stem) for path in found)


# --- settings ---


def test_settings_are_altered_and_taken_back(broker: Any) -> None:
    with broker.client() as client:
        client.create_topic("t", config={"retention.ms": 1000, "segment.ms": "1h"})
        found = client.alter_topic("t", {"retention.ms": "7d", "segment.ms": None})
        assert found.config["retention.ms"] == 7 * 86_400_000
        assert found.config["segment.ms"] == 7 * 86_400_000, "the default"
        assert client.describe_topic("t") == found
        assert client.alter_topic("t") == found, "nothing asked, nothing done"
        client.close()
    broker.restart()
    with broker.client() as client:
        assert client.describe_topic("t").config == found.config


def test_what_can_t_be_is_refused_by_name_and_changes_nothing(broker: Any) -> None:
    with broker.client() as client:
        before = client.create_topic("t", partitions=2)
        for config, words in (
            ({"cleanup.policy": "compact"}, r"cleanup\.policy=compact is not supported yet"),
            ({"compression.type": "zstd"}, r"compression\.type=zstd is not supported yet"),
            ({"message.timestamp.type": "LogAppendTime"}, r"LogAppendTime is not supported yet"),
            ({"flush.ms": None}, r"flush\.ms is a setting of Kafka's"),
            ({"retention.mss": 1}, "did you mean"),
            ({"segment.bytes": "1KiB"}, "out of range"),
        ):
            with pytest.raises(errors.InvalidConfig, match=words):
                client.alter_topic("t", {"segment.ms": 5, **config})
        with pytest.raises(errors.InvalidPartitions, match="allowed: 2 to"):
            client.alter_topic("t", {"segment.ms": 5}, partitions=1)
        with pytest.raises(errors.UnknownTopic):
            client.alter_topic("nothing", partitions=3)
        assert client.describe_topic("t") == before


def test_retention_is_altered_while_the_broker_runs(broker: Any) -> None:
    with broker.client() as client:
        client.create_topic("t", config={"segment.bytes": "64KiB"})
        with client.producer() as producer:
            for n in range(40):
                producer.send_and_wait("t", b"%d" % n + b"x" * 10_000)
        assert len(segments(broker, "t")) > 3
        client.alter_topic("t", {"retention.bytes": 0})
        eventually(lambda: len(segments(broker, "t")) == 1)
        assert state(client, "t")["log_start_offset"] == segments(broker, "t")[0] > 0


def test_segments_of_another_size_begin_at_the_next_batch(broker: Any) -> None:
    with broker.client() as client, client.producer() as producer:
        client.create_topic("t", config={"segment.bytes": "1MiB"})
        for _ in range(20):
            producer.send_and_wait("t", b"x" * 10_000)
        assert segments(broker, "t") == [0]
        client.alter_topic("t", {"segment.bytes": "64KiB"})
        producer.send_and_wait("t", b"x" * 10_000)
        assert segments(broker, "t") == [0, 20]


# --- the memory promise ---


def test_a_producer_sends_larger_records_as_soon_as_its_topic_takes_them(broker: Any) -> None:
    with broker.client() as client, broker.client() as other, other.producer() as producer:
        client.create_topic("t", config={"max.message.bytes": 100_000})
        producer.send_and_wait("t", b"first")
        large = b"x" * (6 * MIB)
        with pytest.raises(errors.RecordTooLarge, match="100000"):
            producer.send("t", large)
        client.alter_topic("t", {"max.message.bytes": "8MiB"})
        assert producer.send_and_wait("t", large, timeout=40).offset == 1
        client.alter_topic("t", {"max.message.bytes": None})
        eventually(lambda: _refused(producer, b"y" * (2 * MIB)))
    broker.kill9(everything=True)  # a write longer than before was made: recovery knows
    broker.start()
    with broker.client() as client, client.consumer("t", start="earliest") as consumer:
        assert [next(iter(consumer)).value for _ in range(2)] == [b"first", large]


def _refused(producer: Any, value: bytes) -> bool:
    try:
        producer.send("t", value).result(timeout=40)
    except errors.RecordTooLarge:
        return True
    return False


class TestWithLittleMemory:
    @pytest.fixture
    def broker_config(self) -> str:
        return '[broker]\nwriters = "auto"\n[memory]\nbudget_bytes = "16MiB"\n'

    def test_an_alteration_that_would_break_the_promise_is_refused_by_name(
        self, broker: Any
    ) -> None:
        with broker.client() as client:
            before = client.create_topic("t")
            with pytest.raises(errors.MemoryBudget, match=r"'t' can't have max\.message\.bytes"):
                client.alter_topic("t", {"max.message.bytes": "8MiB"})
            assert client.describe_topic("t") == before

    def test_later_writers_never_take_the_memory_that_a_topic_was_promised(
        self, broker: Any
    ) -> None:
        """Each writer more makes the shares smaller: there are as many as the promise allows."""
        with broker.client() as client, client.producer() as producer:
            client.create_topic("big")  # 1 MiB, Kafka's default
            client.create_topic("others", partitions=8)
            assert client.status()["writers_limit"] <= 2
            assert len(broker.workers()) <= 2
            for partition in range(8):
                producer.send("others", b"x" * 1000, partition=partition)
            assert producer.send_and_wait("big", b"z" * (MIB - 100), timeout=40).offset == 0


# --- partitions ---


def test_running_producers_take_up_new_partitions_by_themselves(broker: Any) -> None:
    keys = [b"key-%d" % n for n in range(200)]
    with broker.client() as client, broker.client() as other, other.producer() as producer:
        client.create_topic("t", partitions=2)
        for key in keys:
            producer.send("t", b"before", key=key)
        producer.flush()
        client.alter_topic("t", partitions=5)

        def spread() -> set[int]:
            return {producer.send_and_wait("t", b"v", key=key).partition for key in keys}

        eventually(lambda: spread() == set(range(5)))
        found = {key: producer.send_and_wait("t", b"v", key=key).partition for key in keys}
        with other.producer() as fresh:  # which has never seen the topic otherwise
            again = {key: fresh.send_and_wait("t", b"v", key=key).partition for key in keys}
        assert found == again
        many = producer.send_many("t", [b"v"] * 200, keys=keys).result()
        assert set(many.base_offsets) == set(range(5))
        assert producer.send_and_wait("t", b"v", partition=4).partition == 4
    with broker.client() as client, client.consumer("t", start="earliest") as consumer:
        assert len(consumer.assignment()) == 5


def test_a_client_that_was_stopped_learns_what_it_missed(broker: Any) -> None:
    """Its socket is full of events that it has not read: it is told to ask for everything."""
    with broker.client() as client, broker.client() as other, other.producer() as producer:
        client.create_topic("t", partitions=1)
        client.create_topic("u", partitions=1)
        producer.send_and_wait("t", b"v", key=b"k")
        stopped, go_on = threading.Event(), threading.Event()

        class Slow:
            def on_topics(self, names: frozenset[str] | None) -> None:
                stopped.set()
                go_on.wait()

        slow = Slow()
        other.metadata.listen(slow)  # it holds the thread that reads the events
        client.alter_topic("u", {"segment.ms": 1})
        assert stopped.wait(40)
        for n in range(500):
            client.alter_topic("u", {"segment.ms": 1 + n % 2})
        client.alter_topic("t", partitions=3)
        go_on.set()
        eventually(
            lambda: (
                {producer.send_and_wait("t", b"v", key=b"%d" % n).partition for n in range(50)}
                == {0, 1, 2}
            )
        )


@pytest.mark.parametrize("everything", [False, True])
def test_an_alteration_cut_short_by_the_acceptor_s_death_is_completed_by_the_next_up(
    broker: Any, everything: bool
) -> None:
    with broker.client() as client:
        client.create_topic("t", partitions=1, config={"max.message.bytes": 10_000})
        with client.producer() as producer:
            producer.send_and_wait("t", b"kept")
    for writer in broker.workers():
        writer.send_signal(signal.SIGSTOP)  # the store has it, no writer hears of it
    client = broker.client(reconnect_s=0.01)
    config = {"max.message.bytes": 500_000, "segment.bytes": "64KiB"}
    outcome: list[BaseException] = []

    def alter() -> None:
        try:
            client.alter_topic("t", config, partitions=3)
        except errors.ShmbrokerError as error:
            outcome.append(error)

    thread = threading.Thread(target=alter)
    thread.start()
    store = sqlite3.connect(f"file:{broker.places.data_dir}/meta.db?mode=ro", uri=True)
    eventually(lambda: store.execute("SELECT count(*) FROM partitions").fetchone() == (3,))
    store.close()
    with broker.client() as other:
        assert len(other.describe_topic("t").partitions) == 1, "not before its writers know it"
    broker.kill9(everything)
    thread.join()
    assert isinstance(outcome[0], errors.BrokerGone)
    client.close()
    broker.start()
    with broker.client() as client, client.producer() as producer:
        found = client.describe_topic("t")
        assert len(found.partitions) == 3
        assert found.config["max.message.bytes"] == 500_000
        for partition in range(3):
            producer.send_and_wait("t", b"x" * 400_000, partition=partition)
        assert producer.send_and_wait("t", b"y" * 400_000, partition=0).offset == 2
        assert segments(broker, "t") == [0, 1, 2], "segment.bytes is in force as well"


# --- deleting records ---


def test_records_are_deleted_durably_and_whole_segments_go(broker: Any) -> None:
    with broker.client() as client:
        client.create_topic("t", partitions=2, config={"segment.bytes": "64KiB"})
        with client.producer() as producer:
            for n in range(40):
                producer.send_and_wait("t", b"%d" % n + b"x" * 10_000, partition=0)
            producer.send_and_wait("t", b"other", partition=1)
        before = segments(broker, "t")
        middle = before[2] + 1
        with client.consumer("t", partitions=[0], start="earliest") as behind:
            next(iter(behind))
            assert client.delete_records("t", {0: middle}) == {0: middle}
            assert state(client, "t")["log_start_offset"] == middle
            assert segments(broker, "t") == before[2:], "the segment it lies in stays"
            behind.seek(0)
            with pytest.raises(errors.OffsetOutOfRange) as caught:
                next(iter(behind))
            assert (caught.value.log_start_offset, caught.value.log_end_offset) == (middle, 40)
        assert client.delete_records("t", {0: 3}) == {0: middle}, "it never goes back"
        assert client.delete_records("t", partition=1, before_offset=0) == {1: 0}
    broker.kill9(everything=True)
    broker.start()
    with broker.client() as client:
        with client.consumer("t", partitions=[0], start="earliest") as consumer:
            assert next(iter(consumer)).offset == middle
        assert client.delete_records("t", {0: "latest", 1: 10**9}) == {0: 40, 1: 1}
        with client.producer() as producer:
            assert producer.send_and_wait("t", b"next", partition=0).offset == 40
        with client.consumer("t", start="earliest") as consumer:
            assert next(iter(consumer)).value == b"next"


def test_deletions_that_make_no_sense_are_refused(broker: Any) -> None:
    with broker.client() as client:
        client.create_topic("t", partitions=2)
        assert client.delete_records("t", {0: "latest"}) == {0: 0}, "nothing is there"
        with pytest.raises(errors.UnknownTopic, match="no partition 7"):
            client.delete_records("t", {0: 0, 7: 0})
        with pytest.raises(errors.UnknownTopic):
            client.delete_records("nothing", {0: 0})
        with pytest.raises(ValueError, match="begin at 0"):
            client.delete_records("t", {0: -5})
        for wrong in ({"partition": 1}, {"before_offset": 1}, {}):
            with pytest.raises(TypeError, match="partition="):
                client.delete_records("t", **wrong)


def test_the_writers_end_between_a_deletion_and_its_answer_is_no_harm(broker: Any) -> None:
    with broker.client() as client:
        client.create_topic("t", config={"segment.bytes": "64KiB"})
        with client.producer() as producer:
            for _ in range(30):
                producer.send("t", b"x" * 10_000)
        writers = {p.pid for p in broker.workers()}
        for pid in writers:
            os.kill(pid, signal.SIGSTOP)
        answer: list[dict[int, int]] = []
        thread = threading.Thread(target=lambda: answer.append(client.delete_records("t", {0: 9})))
        thread.start()
        for pid in writers:
            os.kill(pid, signal.SIGKILL)
        thread.join()
        assert answer == [{0: 9}]
        assert state(client, "t")["log_start_offset"] == 9


def test_a_topic_deleted_while_it_is_altered_is_gone(broker: Any) -> None:
    with broker.client() as client, broker.client() as other:
        client.create_topic("t", partitions=1)
        for pid in (p.pid for p in broker.workers()):
            os.kill(pid, signal.SIGSTOP)
        threads = [
            threading.Thread(
                target=_quietly, args=(lambda: client.alter_topic("t", partitions=4),)
            ),
            threading.Thread(target=_quietly, args=(lambda: other.delete_topic("t"),)),
        ]
        threads[0].start()
        store = sqlite3.connect(f"file:{broker.places.data_dir}/meta.db?mode=ro", uri=True)
        count = "SELECT count(*) FROM partitions"
        eventually(lambda: store.execute(count).fetchone() == (4,))
        threads[1].start()
        gone = "SELECT count(*) FROM topics WHERE state = 'deleting'"
        eventually(lambda: store.execute(gone).fetchone() == (1,))
        store.close()
        for pid in (p.pid for p in broker.workers()):
            os.kill(pid, signal.SIGCONT)
        for thread in threads:
            thread.join()
        assert client.topics() == []
        assert not list(Path(broker.places.data_dir).glob("t-*"))
        client.create_topic("t", partitions=2)  # nothing of the old one is in the way


def _quietly(call: Callable[[], Any]) -> None:
    with contextlib.suppress(errors.ShmbrokerError):
        call()
