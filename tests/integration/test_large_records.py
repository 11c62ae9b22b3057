"""max.message.bytes is a promise: rings grow to what a topic allows, and not beyond."""

from __future__ import annotations

from typing import Any

import pytest

from shmbroker import errors

MIB = 1 << 20


def test_a_record_larger_than_any_ring_of_the_configuration_passes(broker: Any) -> None:
    sizes = [100, 5 * MIB, 19 * MIB, 1000]
    with broker.client() as client:
        client.create_topic("big", partitions=1, config={"max.message.bytes": 20 * MIB})
        with client.producer() as producer:
            receipts = [producer.send("big", bytes([n]) * size) for n, size in enumerate(sizes)]
            assert [receipt.result(timeout=20).offset for receipt in receipts] == [0, 1, 2, 3]
            with pytest.raises(errors.RecordTooLarge, match="20971520"):
                producer.send("big", b"z" * (21 * MIB))
        with client.consumer("big", start="earliest") as consumer:
            found = [next(iter(consumer)).value for _ in sizes]
    assert found == [bytes([n]) * size for n, size in enumerate(sizes)]


def test_a_promise_that_no_ring_could_keep_is_refused_by_name(broker: Any) -> None:
    with (
        broker.client() as client,
        pytest.raises(errors.ShmbrokerError, match=r"max\.message\.bytes"),
    ):
        client.create_topic("huge", partitions=1, config={"max.message.bytes": 2000 * MIB})
