"""Kafka's driver with the real thing: fetched, started, measured at the smallest size, stopped.

Only in `just test-peers`: it needs Maven Central, PyPI, java and mvn.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from driven import every_workload_has_a_figure, versions_are_named

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
    versions_are_named(kafka, {"Kafka", "confluent-kafka", "Java"})


@pytest.mark.leaves_processes
@pytest.mark.parametrize("mode", Kafka.modes, ids=lambda mode: mode.name)
def test_every_workload_has_a_figure(kafka: Kafka, mode: Mode, tmp_path: Path) -> None:
    every_workload_has_a_figure(kafka, mode, tmp_path)


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
