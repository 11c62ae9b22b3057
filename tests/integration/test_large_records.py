"""max.message.bytes is a promise: rings grow to what a topic allows, and not beyond."""

from __future__ import annotations

import contextlib
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
            assert [receipt.result(timeout=40).offset for receipt in receipts] == [0, 1, 2, 3]
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


class TestWithLittleMemory:
    """A budget that many busy partitions would eat up to the last ring."""

    @pytest.fixture
    def broker_config(self) -> str:
        return '[broker]\nwriters = 1\n[memory]\nbudget_bytes = "32MiB"\n'

    def test_the_largest_batch_finds_its_ring_while_all_others_are_busy(self, broker: Any) -> None:
        with broker.client() as client, client.producer() as busy, client.producer() as producer:
            client.create_topic("small", partitions=60)
            client.create_topic("big", partitions=1, config={"max.message.bytes": 2 * MIB})
            values = [b"v" * 100] * 200
            waiting = []
            for lap in range(30):
                waiting += [busy.send_many("small", values, partition=n) for n in range(60)]
                if lap % 10 == 5:
                    receipt = producer.send("big", b"z" * (2 * MIB - 1000))
                    assert receipt.result(timeout=40).offset == lap // 10
            for found in waiting:
                found.result(timeout=40)

    def test_the_largest_batch_finds_its_ring_while_eight_clients_hold_theirs(
        self, broker: Any
    ) -> None:
        """Their rings may not take what is held back for whoever brings such a batch."""
        with contextlib.ExitStack() as held:
            first = held.enter_context(broker.client())
            first.create_topic("big")  # of Kafka's 1 MiB
            producers = []
            for _ in range(8):
                client = held.enter_context(broker.client())
                producers.append(held.enter_context(client.producer()))
                producers[-1].send_and_wait("big", b"small")
            memory = first.status()["memory"]
            assert memory["ingress_budget_bytes"] - memory["ingress_bytes"] >= 2 * MIB
            receipt = producers[3].send("big", b"z" * (MIB - 1000))
            assert receipt.result(timeout=40).offset == 8
            for producer in producers:  # and the others go on
                producer.send_and_wait("big", b"small")
