"""A host that takes records with it which were only appended: what a group of elsewhere is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from waiting import eventually

from shmbroker import errors
from shmbroker._core import shm
from shmbroker.config import shm_prefix

DURABLE, LOST = 10, 5


@pytest.fixture
def broker_config() -> str:
    return '[listen]\naddress = "tcp://127.0.0.1:0"\n'


def lose_the_host(broker: Any) -> None:
    """Every process and all shared memory at once; what a disk had not taken is gone."""
    identity = json.loads((broker.places.data_dir / "datadir.json").read_text())["data_dir_id"]
    broker.kill9(everything=True)
    for name in shm.list_prefix(shm_prefix(identity)):
        shm.unlink(name)


def test_a_group_is_told_of_a_truncation_and_never_carried_past_it(
    slow_broker: Any, disk: Any
) -> None:
    slow_broker.reach = "tcp"
    with slow_broker.client() as client:
        client.create_topic("t")
        with client.producer() as producer:
            producer.send_many("t", [b"durable"] * DURABLE).result(40)
        options: dict[str, Any] = {"group": "g", "isolation": "appended"}
        with client.consumer("t", **options) as member:
            assert [member.poll(40).offset for _ in range(DURABLE)] == list(range(DURABLE))
            disk.slow(600_000)
            with client.producer(acks="memory", max_block_ms=0, delivery_timeout_ms=1) as producer:
                for _ in range(LOST):
                    producer.send("t", b"lost")
                found = [member.poll(40).offset for _ in range(LOST)]
                assert found == list(range(DURABLE, DURABLE + LOST))
                assert member.commit() == {("t", 0): DURABLE}  # the rest may yet be lost
                lose_the_host(slow_broker)
                disk.fast()
                slow_broker.start()
            with slow_broker.client() as other, other.producer() as again:
                again.send_many("t", [b"new"] * 2 * LOST).result(40)
            with pytest.raises(errors.LogTruncated) as told:
                member.poll(40)
            assert (told.value.offset, told.value.end_offset) == (DURABLE + LOST, DURABLE)
            member.seek(told.value.end_offset)
            assert member.poll(40).value == b"new"
        with client.consumer("t", **options) as successor:
            assert successor.poll(40).offset == DURABLE
            eventually(lambda: client.describe_group("g").lag == 2 * LOST, "the lag is not told")
