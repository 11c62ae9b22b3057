"""Where a group's member begins after a program was killed, or when its offset is gone."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest
from waiting import eventually

from shmbroker import errors

COUNT = 40

MEMBER = """
import sys, shmbroker
with shmbroker.connect(sys.argv[1]) as client:
    options = {"session_timeout_ms": 1_000} if len(sys.argv) < 3 else {"instance_id": sys.argv[2]}
    with client.consumer("orders", group="g", **options) as consumer:
        for record in consumer:
            print(record.partition, record.offset, flush=True)
            if record.offset < 5:
                consumer.commit(record)
"""


@pytest.fixture
def client(broker: Any) -> Any:
    with broker.client() as made:
        made.create_topic("orders", partitions=4)
        send(made, range(COUNT))
        yield made


def send(client: Any, values: range) -> None:
    with client.producer() as producer:
        for n in values:
            producer.send("orders", b"%d" % n, partition=n % 4)
        producer.flush()


def member(broker: Any, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MEMBER, broker.instance, *more]
    return subprocess.Popen(command, env=broker.env, stdout=subprocess.PIPE, text=True)


def read_all(process: subprocess.Popen[str], count: int) -> list[tuple[int, int]]:
    assert process.stdout is not None
    lines = [process.stdout.readline().split() for _ in range(count)]
    return [(int(partition), int(offset)) for partition, offset in lines]


def end(process: subprocess.Popen[str], how: int = signal.SIGKILL) -> None:
    process.send_signal(how)
    process.communicate()


def test_a_killed_member_is_replaced_and_only_the_uncommitted_is_repeated(
    broker: Any, client: Any
) -> None:
    process = member(broker)
    try:
        assert len(read_all(process, COUNT)) == COUNT
    finally:
        end(process)
    with client.consumer("orders", group="g") as consumer:
        again = []
        while len(again) < COUNT // 2:
            record = consumer.poll(20)
            assert record is not None, again
            again.append((record.partition, record.offset))
        assert sorted(again) == [(p, offset) for p in range(4) for offset in range(5, 10)]
        assert consumer.poll(0.05) is None


def test_a_killed_static_member_that_is_started_again_moves_nothing(
    broker: Any, client: Any
) -> None:
    calls: list[Any] = []
    process = member(broker, "a")
    try:
        read_all(process, 1)
        with client.consumer("orders", group="g", on_assign=calls.append) as other:
            eventually(lambda: (other.poll(0.1), len(other.assignment()) == 2)[1])
            mine = sorted(other.assignment())
            end(process)
            process = member(broker, "a")
            read_all(process, 1)
            other.poll(0)  # had anything changed for it, this read would see to it
            assert sorted(other.assignment()) == mine
            assert len(calls) == 1
    finally:
        end(process)


def test_a_local_and_a_remote_member_share_and_take_over(broker_of: Any, isolated_env: Any,
                                                         tmp_path: Any) -> None:  # fmt: skip
    config = '[listen]\naddress = "tcp://127.0.0.1:0"\n'
    broker = broker_of(isolated_env, tmp_path, config)
    broker.start()
    try:
        with broker.client() as here:
            here.create_topic("orders", partitions=4)
            send(here, range(COUNT))
            broker.reach = "tcp"
            with broker.client() as there:
                local = here.consumer("orders", group="g")
                remote = there.consumer("orders", group="g")
                seen: set[tuple[int, int]] = set()

                def turn(*consumers: Any) -> bool:
                    for consumer in consumers:
                        while (record := consumer.poll(0.05)) is not None:
                            seen.add((record.partition, record.offset))
                        consumer.commit()
                    return len(seen) == COUNT

                eventually(lambda: turn(local, remote) and len(remote.assignment()) == 2)
                assert not set(local.assignment()) & set(remote.assignment())
                local.close()
                send(here, range(COUNT, COUNT + 4))
                eventually(lambda: (turn(remote), len(seen) == COUNT + 4)[1])
                remote.close()
            broker.reach = "local"
    finally:
        broker.finish()


@pytest.mark.parametrize("on_gap", ["error", "earliest"])
def test_a_committed_offset_that_retention_has_passed_follows_on_gap(
    client: Any, on_gap: Any
) -> None:
    with client.consumer("orders", group="g") as consumer:
        for _ in range(COUNT):
            assert consumer.poll(20) is not None
        consumer.commit({("orders", n): 2 for n in range(4)})
    client.delete_records("orders", dict.fromkeys(range(4), 8))
    with client.consumer("orders", group="g", on_gap=on_gap) as consumer:
        if on_gap == "error":
            with pytest.raises(errors.OffsetOutOfRange):
                consumer.poll(20)
            consumer.seek("earliest")
        found = sorted((r.partition, r.offset) for r in (consumer.poll(20) for _ in range(8)))
        assert found == [(p, offset) for p in range(4) for offset in (8, 9)]


def test_ctrl_c_ends_a_member_that_waits_and_it_has_left(broker: Any, client: Any) -> None:
    process = member(broker)
    try:
        read_all(process, COUNT)
    finally:
        end(process, signal.SIGINT)
    assert client.describe_group("g").state == "empty"  # at once: no session had to end
