"""Members of a group against a running broker: they share, take over, commit, and skip nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from waiting import eventually

import shmbroker
from shmbroker import errors

COUNT = 40


@pytest.fixture(params=["local", "tcp"])
def reach(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def broker_config() -> str:
    return '[listen]\naddress = "tcp://127.0.0.1:0"\n'


@pytest.fixture
def client(broker: Any, reach: str) -> Any:
    broker.reach = reach
    with broker.client() as made:
        made.create_topic("orders", partitions=4)
        with made.producer() as producer:
            for n in range(COUNT):
                producer.send("orders", b"%d" % n, partition=n % 4)
            producer.flush()
        yield made


def numbers(consumer: Any, count: int) -> list[int]:
    """The next so many, as numbers."""
    found = []
    while len(found) < count:
        record = consumer.poll(20)
        assert record is not None, found
        found.append(int(record.value))
    return found


def send(client: Any, values: list[int], topic: str = "orders", partition: int = 0) -> None:
    with client.producer() as producer:
        producer.send_many(topic, [b"%d" % n for n in values], partition=partition)
        producer.flush()


class Running:
    """A member on a thread of its own, that notes what it gets."""

    def __init__(self, client: Any, topic: str = "orders", **options: Any) -> None:
        self.seen: list[int] = []
        self.calls: list[tuple[str, list[Any]]] = []
        options = {"auto_commit_ms": 50, **options}
        self.consumer = client.consumer(
            topic,
            group="g",
            on_assign=lambda p: self.calls.append(("assign", p)),
            on_revoke=lambda p: self.calls.append(("revoke", p)),
            on_lost=lambda p: self.calls.append(("lost", p)),
            **options,
        )
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            for record in self.consumer:
                self.seen.append(int(record.value))
        except BaseException as error:
            self.error = error

    def has(self) -> list[int]:
        return sorted(p.partition for p in self.consumer.assignment())

    def close(self) -> None:
        self.consumer.close()
        self.thread.join(20)
        assert not self.thread.is_alive()


def test_a_lone_member_reads_all_and_a_successor_goes_on_behind_its_commit(client: Any) -> None:
    with client.consumer("orders", group="g") as consumer:
        assert sorted(numbers(consumer, COUNT)) == list(range(COUNT))
        assert set(consumer.committed().values()) == {None}
        assert set(consumer.commit().values()) == {COUNT // 4}
        assert set(consumer.committed().values()) == {COUNT // 4}
    send(client, [100, 101])
    with client.consumer("orders", group="g") as consumer:
        assert numbers(consumer, 2) == [100, 101]
        assert consumer.poll(0.05) is None
    with client.consumer("orders", group="g") as consumer:  # they were not committed
        assert numbers(consumer, 2) == [100, 101]


def test_two_members_share_the_partitions_and_the_rest_takes_all(client: Any) -> None:
    one = Running(client)
    eventually(lambda: len(one.seen) == COUNT, lambda: one.seen)
    two = Running(client)
    eventually(lambda: len(one.has()) == len(two.has()) == 2, lambda: (one.has(), two.has()))
    assert sorted(one.has() + two.has()) == [0, 1, 2, 3]
    for n in range(8):
        send(client, [1000 + n], partition=n % 4)
    eventually(
        lambda: {n for n in one.seen + two.seen if n >= 1000} == set(range(1000, 1008)),
        lambda: (one.seen, two.seen),
    )
    assert any(n >= 1000 for n in one.seen)
    assert any(n >= 1000 for n in two.seen)
    two.close()
    eventually(lambda: one.has() == [0, 1, 2, 3], one.has)
    send(client, [2000], partition=3)
    eventually(lambda: 2000 in one.seen, lambda: one.seen)
    one.close()
    assert one.error is None
    assert two.error is None
    assert [what for what, _ in one.calls] == ["assign", "revoke", "assign", "revoke"]


def test_a_commit_of_a_record_a_batch_and_of_offsets(client: Any) -> None:
    with client.consumer("orders", group="g") as consumer:
        record = next(consumer)
        key = (record.topic, record.partition)
        assert consumer.commit(record) == {key: record.offset + 1}
        batch = consumer.poll_batch(20)
        here = (batch.topic, batch.partition)
        assert consumer.commit(batch)[here] == batch.next_offset
        assert consumer.commit({("orders", 2): 3}, metadata="by hand") == {("orders", 2): 3}
        assert consumer.commit({("orders", 2): 1_000_000}) == {("orders", 2): COUNT // 4}
        with pytest.raises(errors.StaleMemberEpoch, match="not this member's"):
            consumer.commit({("orders", 9): 3})


def test_auto_commit_keeps_only_what_was_asked_past(client: Any) -> None:
    client.create_topic("one", partitions=1)
    send(client, list(range(10)), "one")
    consumer = client.consumer("one", group="a", auto_commit_ms=60_000)
    assert numbers(consumer, 4) == [0, 1, 2, 3]
    consumer.close()  # the fourth may not be finished
    with client.consumer("one", group="a", auto_commit_ms=10) as consumer:
        assert numbers(consumer, 2) == [3, 4]
        time.sleep(0.1)
        assert numbers(consumer, 1) == [5]  # on the way there 3 and 4 were committed, by time
        assert consumer.committed() == {("one", 0): 5}
        batch = consumer.poll_batch(20)
        assert batch.base_offset == 6
    with client.consumer("one", group="a") as consumer:
        assert numbers(consumer, 1) == [6]


@pytest.mark.parametrize("start", ["earliest", "latest", "time", "error"])
def test_where_nothing_is_committed_start_says_where(client: Any, start: Any) -> None:
    wanted = {"earliest": COUNT, "latest": 0, "time": 0, "error": 0}[start]
    if start == "time":
        start = datetime.fromtimestamp(time.time() + 60, UTC)
    with client.consumer("orders", group="g", start=start) as consumer:
        if start == "error":
            for _ in range(2):
                with pytest.raises(errors.NoCommittedOffset, match="group reset"):
                    consumer.poll(5)
            return
        found = []
        while (record := consumer.poll(0.3)) is not None:
            found.append(record)
        assert len(found) == wanted
        send(client, [7])
        assert numbers(consumer, 1) == [7]


def test_a_member_that_was_put_out_says_so_and_comes_back(broker: Any, client: Any) -> None:
    other = Running(client)
    with broker.client() as mine:
        lost: list[Any] = []
        with mine.consumer(
            "orders", group="g", session_timeout_ms=1_000, on_lost=lost.append
        ) as consumer:
            before = consumer.member_id
            assert consumer.poll(20) is not None or consumer.assignment()
            heart = mine.connection.heart
            heart.remove(consumer._member)  # silent from now on
            eventually(lambda: len(other.has()) == 4, other.has)
            with pytest.raises(errors.UnknownMember):
                consumer.commit()
            heart.add(consumer._member, consumer._call)
            consumer.poll(0)
            assert lost
            assert consumer.member_id != before
            eventually(lambda: (consumer.poll(0), len(consumer.assignment()) == 2)[1], other.has)
    other.close()
    assert other.error is None


def test_a_broker_that_is_restarted_or_killed_is_a_pause(broker: Any, client: Any) -> None:
    member = Running(client)
    eventually(lambda: len(member.seen) == COUNT, lambda: member.seen)
    id_before = member.consumer.member_id
    ways: list[Callable[[], None]] = [broker.stop, broker.kill9, lambda: broker.kill9(True)]
    for n, end in enumerate(ways):
        end()
        broker.start()
        send(client, [100 + n], partition=n)
        eventually(lambda n=n: 100 + n in member.seen, lambda: member.seen)  # type: ignore[misc]
    member.close()
    assert member.error is None
    assert member.consumer.member_id == id_before
    assert [what for what, _ in member.calls] == ["assign", "revoke"]


def test_patterns_new_partitions_and_deleted_topics_are_followed(client: Any) -> None:
    member = Running(client, pattern="orders|new-.*")
    eventually(lambda: len(member.has()) == 4, member.has)
    client.create_topic("new-1")
    send(client, [500], "new-1")
    client.create_topic("other")
    eventually(lambda: 500 in member.seen, lambda: member.seen)
    client.alter_topic("new-1", partitions=2)
    send(client, [501], "new-1", 1)
    eventually(lambda: 501 in member.seen, lambda: member.seen)
    client.delete_topic("new-1")
    eventually(lambda: len(member.has()) == 4, member.has)
    send(client, [502])
    eventually(lambda: 502 in member.seen, lambda: (member.seen, member.error))
    member.close()
    assert member.error is None


def test_a_static_member_keeps_its_partitions_over_a_restart_of_its_program(client: Any) -> None:
    other = Running(client)
    first = client.consumer("orders", group="g", instance_id="a")
    eventually(lambda: (first.poll(0), len(first.assignment()) == 2)[1], other.has)
    mine, calls = sorted(first.assignment()), len(other.calls)
    first.close()
    with client.consumer("orders", group="g", instance_id="a") as again:
        eventually(lambda: (again.poll(0), sorted(again.assignment()) == mine)[1], other.has)
        assert len(other.calls) == calls
        with client.consumer("orders", group="g", instance_id="a") as newer:
            with pytest.raises(errors.FencedInstance):
                while True:
                    again.poll(20)
            eventually(lambda: (newer.poll(0), sorted(newer.assignment()) == mine)[1], other.has)
    other.close()
    assert len(other.calls) == calls + 1  # its own end


def test_a_callback_may_commit_and_seek_but_not_read(client: Any) -> None:
    seen: list[Any] = []

    def assigned(partitions: list[Any]) -> None:
        for p in partitions:
            consumer.seek("latest" if p.partition else 9, p)
        with pytest.raises(errors.ConcurrentUse, match="callback"):
            consumer.poll(0)
        seen.extend(partitions)

    def revoked(partitions: list[Any]) -> None:
        assert set(consumer.commit()) == set(partitions)

    consumer = client.consumer("orders", group="g", on_assign=assigned, on_revoke=revoked)
    assert numbers(consumer, 1) == [36]
    assert len(seen) == 4
    consumer.close()
    with client.consumer("orders", group="g") as after:
        assert after.poll(0.2) is None
        assert set(after.committed().values()) == {10}


def test_options_that_cannot_be_are_refused_at_once(client: Any) -> None:
    for options in (
        {"start": 5},
        {"start": "now"},
        {"auto_commit_ms": 0},
        {"isolation": "x"},
        {"on_gap": "x"},
        {"start": {0: 1}},
    ):
        with pytest.raises(ValueError):
            client.consumer("orders", group="g", **options)
    with pytest.raises(ValueError, match="pattern"):
        client.consumer(group="g")
    with pytest.raises(errors.InvalidGroup):
        client.consumer("orders", group="")
    with pytest.raises(errors.InvalidPattern):
        client.consumer(group="g", pattern="(")
    with pytest.raises(errors.InvalidSessionTimeout):
        client.consumer("orders", group="g", session_timeout_ms=1)
    with pytest.raises(errors.UnsupportedAssignor):
        client.consumer("orders", group="g", assignor="best")


def test_a_program_of_several_lines_may_join(broker: Any, client: Any) -> None:
    program = f"import shmbroker\nwith shmbroker.connect({broker.instance!r}) as client:\n" + (
        "    with client.consumer('orders', group='lines') as consumer:\n"
        "        assert consumer.poll(20) is not None\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=broker.env, timeout=60)
    assert client.describe_group("lines").state == "empty"


def test_records_come_decoded_where_it_is_asked_for(client: Any) -> None:
    with client.consumer("orders", group="g", value_deserializer=int) as consumer:
        record = consumer.poll(20)
        assert isinstance(record.value, int)
        assert consumer.commit(record)
        batch = consumer.poll_batch(20)
        assert consumer.commit(batch)
    assert isinstance(consumer, shmbroker.client.group_consumer.GroupConsumer)
