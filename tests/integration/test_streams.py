"""Streams of a running broker over real sockets: what is in the log arrives, once and in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stream_rig import ReaderRig, check_gapless

from shmbroker.wire.native.stream_frames import Batches, Start, Subscribed

from .conftest import Broker


@pytest.fixture
def rig(broker: Broker, tmp_path: Path) -> Iterator[ReaderRig]:
    with ReaderRig(str(broker.places.runtime_dir), tmp_path) as made:
        yield made


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_what_is_in_the_log_arrives_and_then_what_is_appended(
    broker: Broker, rig: ReaderRig, kind: str
) -> None:
    topic = rig.client.create_topic("t")
    with rig.client.producer() as producer, rig.connect(kind) as consumer:
        producer.send_many("t", [b"%d" % n * 50 for n in range(1000)]).result(10)
        begun = consumer.subscribe(topic.id, 0, start=Start.EARLIEST)
        assert isinstance(begun, Subscribed)
        assert begun.offset == 0
        data = consumer.read(1000)
        for n in range(10):
            producer.send("t", b"x").result(10)
            data += consumer.read(1001 + n)
        assert check_gapless(data, 0) == 1010
        assert isinstance(begun, Subscribed)
