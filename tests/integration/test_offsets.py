"""The request `offsets`: ends out of the tables, times out of the segments."""

from __future__ import annotations

from typing import Any

import pytest

from shmbroker import errors


def ask(client: Any, **args: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.connection.request("offsets", **args)["partitions"]
    return found


@pytest.fixture
def broker_config() -> str:
    return '[log]\n"segment.bytes" = "1MiB"\n"retention.ms" = -1\n'


def test_offsets_are_those_that_a_consumer_sees(broker: Any) -> None:
    with broker.client() as client:
        client.create_topic("ticks", partitions=2)
        empty = {"log_start_offset": 0, "high_watermark": 0, "log_end_offset": 0}
        assert [e | empty for e in ask(client, topic="ticks")] == ask(client, topic="ticks")
        with client.producer() as producer:
            producer.send_many("ticks", [b"x"] * 50, partition=1)
            producer.flush()
        client.delete_records("ticks", {1: 20})
        (found,) = ask(client, topic="ticks", partitions=[1])
        assert found["partition"] == 1
        assert (found["log_start_offset"], found["high_watermark"]) == (20, 50)
        assert found["log_end_offset"] == 50
        assert found["leader_epoch"] >= 0
        for partitions in ([2], [-1]):
            with pytest.raises(errors.UnknownTopic, match="has no partition"):
                ask(client, topic="ticks", partitions=partitions)
        with pytest.raises(errors.UnknownTopic):
            ask(client, topic="absent")
        for wrong in ([None], ["0"], [True], [1.5]):
            with pytest.raises(errors.InvalidRequest, match="no partition's number"):
                ask(client, topic="ticks", partitions=wrong)


def test_a_time_is_found_at_or_below_its_first_record(broker: Any) -> None:
    with broker.client() as client:
        client.create_topic("ticks", partitions=1)
        count, each = 4_000, 1_000  # 4 MB: several segments
        with client.producer() as producer:
            for n in range(count):
                producer.send("ticks", bytes(each), timestamp=1_000 * n)
            producer.flush()
        for wanted in (0, 1, count // 3, count // 2, count - 2):
            (found,) = ask(client, topic="ticks", at_ms=1_000 * wanted)
            assert 0 <= found["offset"] <= wanted
            assert wanted - found["offset"] < 2_000  # not from the very beginning
        (late,) = ask(client, topic="ticks", at_ms=1_000 * count)
        assert 0 < late["offset"] <= count
        client.delete_records("ticks", {0: 1_500})
        (cut,) = ask(client, topic="ticks", at_ms=0)
        assert cut["offset"] == cut["log_start_offset"] == 1_500
