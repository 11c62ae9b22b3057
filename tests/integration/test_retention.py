"""Segments of a running broker: rolled by time, retired by time and by size, and who notices."""

from __future__ import annotations

from typing import Any

import pytest
from waiting import eventually

from shmbroker import errors
from shmbroker.log import checkpoint

Broker = Any


@pytest.fixture
def broker_config() -> str:
    return "[broker]\ncheckpoint_interval_ms = 300\n"


def _segments(client: Any) -> list[int]:
    """Base offsets of the topic's segments."""
    (found,) = client.status()["partitions"]
    return [segment["base_offset"] for segment in found["segments"]]


def _send(client: Any, values: list[bytes]) -> None:
    with client.producer() as producer:
        producer.send_many("t", values).result(timeout=40)


def test_segment_ms_rolls_a_segment_that_nobody_filled(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("t", config={"segment.ms": 500})
        _send(client, [b"old"])
        assert _segments(client) == [0]

        def rolled() -> bool:
            _send(client, [b"new"])  # a roll happens at an append, as in Kafka
            return len(_segments(client)) > 1

        eventually(rolled, lambda: _segments(client))
        with client.consumer("t", start="earliest") as consumer:
            first = consumer.poll(timeout=40)
            assert first is not None
            assert first.value == b"old"


def test_retention_ms_retires_segments_and_a_consumer_below_is_told_both_offsets(
    broker: Broker,
) -> None:
    config = {"segment.bytes": 1 << 16, "retention.ms": 1000}
    with broker.client() as client:
        client.create_topic("t", config=config)
        with client.consumer("t", start="earliest") as consumer:
            _send(client, [b"%04d" % n + bytes(1000) for n in range(500)])
            first = consumer.poll(timeout=40)
            assert first is not None
            assert first.offset == 0
            consumer.seek(1)
            # All but the active one go; until then the start may still rise.
            eventually(lambda: len(_segments(client)) == 1, lambda: _segments(client))
            with pytest.raises(errors.OffsetOutOfRange) as gap:
                for _ in range(500):  # what it had fetched, or can still read, comes first
                    consumer.seek(1)
                    consumer.poll(timeout=40)
            assert gap.value.offset == 1
            assert gap.value.log_start_offset == _segments(client)[0]


def test_retention_bytes_keeps_at_least_that_much(broker: Broker) -> None:
    config = {"segment.bytes": 1 << 16, "retention.bytes": 1 << 17}
    with broker.client() as client:
        client.create_topic("t", config=config)
        values = [b"%04d" % n + bytes(1000) for n in range(1000)]
        _send(client, values)
        # Two whole segments and what is in the active one; until then the start may still rise.
        eventually(lambda: len(_segments(client)) <= 3, lambda: _segments(client))
        kept: list[bytes] = []
        with client.consumer("t", start="earliest") as consumer:
            while not kept or kept[-1] != values[-1]:
                batch = consumer.poll_batch(40)
                assert batch is not None
                kept += batch.values()
        assert kept == values[-len(kept) :]
        assert sum(map(len, kept)) >= 1 << 17


def test_what_was_appended_while_a_segment_was_sealed_gets_its_checkpoint_too(
    broker: Broker,
) -> None:
    """The seal's own checkpoint ends where the next segment begins."""
    with broker.client() as client:
        client.create_topic("t", config={"segment.bytes": 1 << 16})
        _send(client, [bytes(1000) for _ in range(300)])
        _send(client, [b"in the next segment"])
        directory = broker.places.data_dir / "t-0"

        def covered() -> int:
            found = checkpoint.load(str(directory))
            return -1 if found is None else found.durable_offset

        eventually(lambda: covered() == 301, covered)
