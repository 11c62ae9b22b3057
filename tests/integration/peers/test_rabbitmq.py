"""RabbitMQ's driver with the real thing: fetched, started, measured at the smallest size, stopped.

Only in `just test-peers`: it needs Debian's packages, PyPI, Maven Central, a JDK and mvn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from driven import every_workload_has_a_figure, versions_are_named
from processes import living

from shmbroker.perf.peers import effort
from shmbroker.perf.peers.fetching import Cache
from shmbroker.perf.peers.peer import Server
from shmbroker.perf.peers.rabbitmq import Rabbitmq
from shmbroker.perf.peers.rabbitmq_client import RabbitmqClient
from shmbroker.perf.peers.run import CACHE
from shmbroker.perf.peers.timed import Timed
from shmbroker.perf.remote import Remote
from shmbroker.perf.values import ValueSpec

ROOT = Path(__file__).parents[3]
(MODE,) = Rabbitmq.modes
pytestmark = [pytest.mark.peers, pytest.mark.leaves_processes]


@pytest.fixture(scope="module")
def rabbitmq() -> Rabbitmq:
    peer = Rabbitmq(Cache(ROOT / CACHE))
    peer.fetch()
    return peer


@contextmanager
def a_client(rabbitmq: Rabbitmq, server: Server) -> Iterator[Remote[Timed]]:
    path = [str(each) for each in rabbitmq.path]
    module, name = RabbitmqClient.__module__, RabbitmqClient.__qualname__
    with Remote(Timed, path, module, name, server.address) as client:
        yield client


def test_versions_are_named(rabbitmq: Rabbitmq) -> None:
    versions_are_named(rabbitmq, {"RabbitMQ", "Erlang", "rstream", "RabbitMQ's stream client"})


def test_every_workload_has_a_figure(rabbitmq: Rabbitmq, tmp_path: Path) -> None:
    every_workload_has_a_figure(rabbitmq, MODE, tmp_path)


@pytest.mark.parametrize("how", ["many", "each"])
def test_values_of_every_size_are_there_afterwards(
    rabbitmq: Rabbitmq, tmp_path: Path, how: str
) -> None:
    """Sub-entries of values of 16 KiB must fit a frame; 250 values end with a partial sub-entry."""
    with rabbitmq.start(tmp_path, MODE) as server, a_client(rabbitmq, server) as client:
        for size in effort.VALUE_BYTES:
            client.call("prepare", ValueSpec(250, size))
            client.call("create", f"sized{size}", MODE)
            client.call("send", how, f"sized{size}", 250, MODE)
            assert client.call("stored", f"sized{size}", 250) == client.call("checksum", 250)


def test_what_is_refused_is_not_taken_for_sent(rabbitmq: Rabbitmq, tmp_path: Path) -> None:
    with (
        rabbitmq.start(tmp_path, MODE) as server,
        a_client(rabbitmq, server) as client,
        pytest.raises(RuntimeError, match="StreamDoesNotExist"),
    ):
        client.call("prepare", ValueSpec(10, 100))
        client.call("send", "many", "never-made", 10, MODE)


def test_nothing_of_it_listens_elsewhere_and_nothing_of_it_is_left(
    rabbitmq: Rabbitmq, tmp_path: Path
) -> None:
    with rabbitmq.start(tmp_path, MODE) as server:
        found = server.processes()
        own = [
            each.laddr.ip
            for process in found
            for each in process.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN
        ]
        epmd = [each.pid for each in psutil.process_iter(["name"]) if each.info["name"] == "epmd"]
        assert own == ["127.0.0.1"] * 2  # the stream protocol, Erlang's distribution
        assert not [pid for pid in epmd if str(tmp_path) in _environment(pid)]
    assert not living(found)


def _environment(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""
