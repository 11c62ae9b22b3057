"""The driver of NATS with the real thing: fetched, started, measured at the smallest size, stopped.

Only in `just test-peers`: it needs the Go module proxy and go.
"""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from driven import every_workload_has_a_figure, versions_are_named

from shmbroker.perf.peers.daemon import Daemon
from shmbroker.perf.peers.fetching import Cache
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.nats import Nats
from shmbroker.perf.peers.nats_client import NatsClient
from shmbroker.perf.peers.nats_wire import Record, Wire, publication
from shmbroker.perf.peers.run import CACHE

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def nats() -> Nats:
    peer = Nats(Cache(ROOT / CACHE))
    peer.fetch()
    return peer


@contextmanager
def running(nats: Nats, mode: Mode, directory: Path) -> Iterator[NatsClient]:
    """A client of a server that is up."""
    with nats.start(directory, mode) as server:
        client = NatsClient(server.address)
        try:
            yield client
        finally:
            client.close()


def test_versions_are_named(nats: Nats) -> None:
    versions_are_named(nats, {"nats-server", "nats (CLI)"})


@pytest.mark.leaves_processes
@pytest.mark.parametrize("mode", Nats.modes, ids=lambda mode: mode.name)
def test_every_workload_has_a_figure(nats: Nats, mode: Mode, tmp_path: Path) -> None:
    every_workload_has_a_figure(nats, mode, tmp_path)


@pytest.mark.leaves_processes
@pytest.mark.parametrize("mode", Nats.modes, ids=lambda mode: mode.name)
def test_only_the_durable_mode_syncs_always(nats: Nats, mode: Mode, tmp_path: Path) -> None:
    with nats.start(tmp_path, mode):
        pass
    config, log = tmp_path / "nats.conf", tmp_path / "monitored.log"
    config.write_text(config.read_text() + 'http: "127.0.0.1:-1"\n')
    program = ROOT / CACHE / "go/nats/nats-server"

    def up() -> bool:
        return "Server is ready" in log.read_text()

    with Daemon([program, "--config", config], log, up):
        (port,) = re.findall(r"http monitor on 127.0.0.1:(\d+)", log.read_text())
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/jsz") as answer:
            said = json.load(answer)["config"]
    assert said.get("sync_always", False) == (mode.acks == "durable")


@pytest.mark.leaves_processes
def test_all_ways_to_send_store_the_same_in_order(nats: Nats, tmp_path: Path) -> None:
    durable, memory = nats.modes
    values = [b"%010d" % number * (1 + number % 7) for number in range(2_345)]
    with running(nats, memory, tmp_path) as client:
        for way, mode in enumerate((durable, memory, durable, memory)):
            topic = f"way{way}"
            client.create(topic, mode)
            (client.send_many if way < 2 else client.send_each)(topic, values, mode)
            found = [value for some in client.values(topic, len(values)) for value in some]
            assert found == values
            found = [value for some in client.records(topic, len(values)) for value in some]
            assert found == values


@pytest.mark.leaves_processes
def test_every_round_of_its_own_benchmark_reads_from_the_beginning(
    nats: Nats, tmp_path: Path
) -> None:
    (_, memory) = nats.modes
    with nats.start(tmp_path, memory) as server:
        client = NatsClient(server.address)
        client.create("twice", memory)
        assert nats.fastest_produce(server, "twice", 1000, 100, memory) > 0
        found = [value for some in client.values("twice", 1000) for value in some]
        assert [len(value) for value in found] == [100] * 1000
        rates = [nats.fastest_read(server, "twice", 1000) for _ in range(2)]
        client.close()
    assert all(rates)


@pytest.mark.leaves_processes
def test_a_forgotten_topic_is_gone(nats: Nats, tmp_path: Path) -> None:
    (_, memory) = nats.modes
    with running(nats, memory, tmp_path) as client:
        client.create("old", memory)
        client.send_many("old", [b"1"], memory)
        client.forget("old")
        with pytest.raises(RuntimeError, match="stream not found"):
            next(client.values("old", 1))


@pytest.mark.leaves_processes
def test_a_record_that_is_refused_raises(nats: Nats, tmp_path: Path) -> None:
    (_, memory) = nats.modes
    with running(nats, memory, tmp_path) as client:
        client.create("full", memory)
        client.send_many("full", [b"1"], memory)
        stranger = Wire(client._port)
        stranger.send(publication(b"full", b"2", stranger.inbox))
        assert stranger.acks(wait=True) == [2]
        stranger.close()
        with pytest.raises(RuntimeError, match="sequence 3 was acknowledged instead of 2"):
            client.send_many("full", [b"3"], memory)
        with pytest.raises(RuntimeError, match="503"):
            client.send_each("nowhere", [b"4"], memory)


def test_a_record_knows_its_sequence() -> None:
    head = b"MSG t 1 $JS.ACK.t.c0n.1.4711.9.1795400000000000000.0 3"
    record = Record(head, b"abc")
    assert (record.sequence, record.value) == (4711, b"abc")
