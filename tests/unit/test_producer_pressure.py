"""producer.pressure() against a fake writer: out of the table and the producer's own ring alone."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from producer_fake import Broker, FakeClient

from shmbroker.client.aio.bridge import Bridge
from shmbroker.client.aio.producer import Producer as AioProducer
from shmbroker.client.metadata import TopicPartition
from shmbroker.client.pressure import USUAL, Pressure, TablePressures
from shmbroker.client.producer import Producer
from shmbroker.control.pressure import PartitionPressure
from shmbroker.errors import BrokerGone, ClosedError, ForkedError

ONE, LAST = TopicPartition("one", 0), TopicPartition("many", 3)
STATE_OFFLINE = 5  # layout.h, enum shmb_state
BIG = b"x" * 50_000


class Connection:
    """What TablePressures uses of a connection; `gone` is what look() says."""

    def __init__(self, broker: Broker) -> None:
        self.attachment = SimpleNamespace(pressure=None)
        self.gone: Any = None
        self._broker = broker

    def look(self, again: bool = False) -> int | None:
        if isinstance(self.gone, Exception):
            raise self.gone
        return None if self.gone else 0

    def table(self, writer: int) -> Any:
        return self._broker.connection.table(writer)


@pytest.fixture
def broker() -> Iterator[Broker]:
    made = Broker({"one": (1, {}), "many": (4, {})})
    made.connection.pressures = TablePressures(Connection(made))  # type: ignore[attr-defined]
    yield made
    made.close()


def connection_of(broker: Broker) -> Connection:
    found: Connection = broker.connection.pressures._connection  # type: ignore[attr-defined]
    return found


def resume(broker: Broker) -> None:
    broker.writer.paused = 0
    broker.ring()


def test_there_is_no_pressure_before_the_first_record_and_none_at_rest(broker: Broker) -> None:
    with Producer(FakeClient(broker)) as p:
        assert (p.pressure().worst, p.pressure().state, str(p.pressure())) == (None, "ok", "ok")
        p.send("one", b"").result(40)
        asked = len(broker.requests)
        now = p.pressure()
        assert now.partitions.keys() == {ONE}
        assert (now.state, now.reason) == ("ok", "")
        assert now.partitions[ONE].ingress_fill == 0.0
        assert len(broker.requests) == asked, "nobody is asked"


def test_the_producers_own_ring_fills_and_the_reason_names_what_is_in_front(
    broker: Broker,
) -> None:
    with Producer(FakeClient(broker), on_full="drop") as p:
        for where in (ONE, LAST):
            p.send(where.topic, b"", partition=where.partition).result(40)
        broker.writer.paused = 1
        seen = []
        while not p.dropped():
            p.send("many", BIG, partition=3)
            level = p.pressure().partitions[ONE]
            seen.append((level.ingress_fill, level.state))
        assert seen == sorted(seen), "it only gets fuller"
        assert {state for _, state in seen} == {"ok", "soft", "hard"}
        assert (level.state, level.cause) == ("hard", "ingress")
        assert "this program's ring to writer-0 is" in level.reason
        assert "the batch in front is for many-3" in level.reason
        assert "in front" not in p.pressure().partitions[LAST].reason, "it is its own"
        resume(broker)
        p.flush(40)
        assert p.pressure().state == "ok"


def test_what_is_in_front_may_be_another_producers(broker: Broker) -> None:
    with (
        Producer(FakeClient(broker)) as p,
        Producer(FakeClient(broker), on_full="drop") as other,
    ):
        p.send("one", b"").result(40)
        other.send("many", b"", partition=3).result(40)
        broker.writer.paused = 1
        while not other.dropped():
            other.send("many", BIG, partition=3)
        assert f"for slot {broker.slot_of['many', 3][0]}" in p.pressure().reason
        resume(broker)


def test_many_small_batches_fill_a_ring_by_their_receipts(broker: Broker) -> None:
    with Producer(FakeClient(broker), on_full="drop", linger_ms=0) as p:
        for n in range(4):
            p.send("many", b"", partition=n).result(40)
        broker.writer.paused = 1
        while len(p.dropped()) < 4:
            for n in range(4):
                p.send("many", b"x", partition=n)
        assert (p.pressure().state, p.pressure().worst.cause) == ("hard", "ingress")  # type: ignore[union-attr]
        assert " of 256 batches" in p.pressure().reason
        resume(broker)


def test_a_partition_that_went_offline_or_elsewhere_says_so(broker: Broker) -> None:
    with Producer(FakeClient(broker)) as p:
        p.send("one", b"").result(40)
        slot, epoch = broker.slot_of["one", 0]
        broker.lib.fake_slot_state(broker.table, slot, STATE_OFFLINE, 1)
        assert p.pressure().state == "offline"
        assert "a write failed" in p.pressure().reason
        broker.lib.fake_slot_init(broker.table, slot, epoch + 1)
        assert (p.pressure().state, p.pressure().worst.cause) == ("hard", "opening")  # type: ignore[union-attr]
        assert "has moved" in p.pressure().reason


def test_a_broker_that_is_gone_is_said_to_be(broker: Broker) -> None:
    with Producer(FakeClient(broker)) as p:
        p.send("one", b"").result(40)
        connection_of(broker).gone = True
        assert (p.pressure().state, p.pressure().worst.cause) == ("hard", "unknown")  # type: ignore[union-attr]
        connection_of(broker).gone = BrokerGone("it did not come back")
        assert p.pressure().state == "offline"
        assert "it did not come back" in p.pressure().reason


def test_closed_and_forked_producers_refuse(broker: Broker) -> None:
    with Producer(FakeClient(broker)) as p:
        p.send("one", b"").result(40)
        child = os.fork()
        if not child:
            try:
                p.pressure()
            except ForkedError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(ClosedError):
        p.pressure()


def test_threads_may_ask_while_others_send(broker: Broker) -> None:
    with Producer(FakeClient(broker)) as p:
        p.send("one", b"").result(40)
        over = threading.Event()
        asked: list[str] = []

        def ask() -> None:
            while not over.is_set():
                asked.append(p.pressure().state)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        p.send_many("one", [b"x" * 100] * 200_000).result(40)
        over.set()
        for thread in threads:
            thread.join()
        assert asked
        assert set(asked) <= {"ok", "soft", "hard"}


def test_the_asyncio_producer_tells_the_same(broker: Broker) -> None:
    async def main() -> None:
        bridge = Bridge(asyncio.get_running_loop())
        try:
            async with AioProducer(FakeClient(broker), bridge) as p:
                assert p.pressure() == Pressure({})
                await p.send_and_wait("one", b"")
                assert p.pressure().partitions.keys() == {ONE}
                assert p.pressure().state == "ok"
        finally:
            bridge.close()

    asyncio.run(main())


def test_the_worst_partition_speaks_for_all() -> None:
    levels = [
        PartitionPressure("t", 0),
        PartitionPressure("t", 1, "hard", "filling", "full"),
        PartitionPressure("t", 2, "soft", "filling", "half"),
    ]
    now = Pressure({TopicPartition(p.topic, p.partition): p for p in levels})
    assert (now.worst, now.state, now.reason) == (levels[1], "hard", "t-1: hard, full")
    assert str(now) == now.reason


def test_the_limits_without_a_broker_that_says_them_are_the_defaults() -> None:
    from dataclasses import asdict

    from shmbroker.config import PressureSection

    assert asdict(USUAL) == asdict(PressureSection())


def test_what_is_on_its_way_to_a_partition_is_bounded_and_counts_as_fill(broker: Broker) -> None:
    with Producer(FakeClient(broker), on_full="drop", linger_ms=0) as p:
        for where in (ONE, LAST):
            p.send(where.topic, b"", partition=where.partition).result(40)
        broker.writer.paused = 1
        while not p.dropped():
            p.send("one", b"x")
        now = p.pressure().partitions
        assert (now[ONE].state, now[ONE].cause, now[ONE].ingress_fill) == ("hard", "ingress", 1.0)
        assert "64 of 64 batches of this producer are on their way to it" in now[ONE].reason
        assert now[LAST].state == "ok", "the ring has room for others"
        resume(broker)
