"""Kafka's driver with the real thing: fetched, started, measured at the smallest size, stopped.

Only in `just test-peers`: it needs Maven Central, PyPI, java and mvn.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from shmbroker.perf.case import SMOKE, Bench
from shmbroker.perf.guard import DiskGuard
from shmbroker.perf.peers import effort, workloads
from shmbroker.perf.peers.fetching import Cache
from shmbroker.perf.peers.kafka import Kafka
from shmbroker.perf.peers.kafka_client import KafkaClient
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.run import CACHE
from shmbroker.perf.peers.timed import Timed
from shmbroker.perf.remote import Remote

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def kafka() -> Kafka:
    peer = Kafka(Cache(ROOT / CACHE))
    peer.fetch()
    return peer


def test_versions_are_named(kafka: Kafka) -> None:
    found = kafka.versions()
    assert set(found) == {"Kafka", "confluent-kafka", "Java"}
    assert all(text and text[0].isdigit() for text in found.values())


@pytest.mark.leaves_processes
@pytest.mark.parametrize("mode", Kafka.modes, ids=lambda mode: mode.name)
def test_every_workload_has_a_figure(kafka: Kafka, mode: Mode, tmp_path: Path) -> None:
    with DiskGuard(tmp_path, 0) as guard:
        bench = Bench(tmp_path, SMOKE, lambda _text: None, guard)
        rows = workloads.measure(bench, effort.SMOKE, kafka, mode)
    assert [row.case for row in rows] == workloads.names(effort.SMOKE, Kafka, mode)
    assert all(row.values for row in rows), [row.note for row in rows]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.leaves_processes
def test_topics_of_the_durable_mode_sync_each_batch(kafka: Kafka, tmp_path: Path) -> None:
    (durable, _) = kafka.modes
    with (
        kafka.start(tmp_path, durable) as server,
        Remote(
            Timed, [str(each) for each in kafka.path], KafkaClient.__module__,
            KafkaClient.__qualname__, server.address,
        ) as client,
    ):  # fmt: skip
        client.call("create", "synced", durable)
        said = kafka.tool(
            tmp_path, "org.apache.kafka.tools.TopicCommand", "--describe", "--topic", "synced",
            "--bootstrap-server", server.address,
        )  # fmt: skip
    assert "flush.messages=1" in said
