"""The drivers that need nothing fetched and no server: pyzmq and multiprocessing.Queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmbroker.perf.case import SMOKE, Bench
from shmbroker.perf.guard import DiskGuard
from shmbroker.perf.peers import effort, workloads
from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.fetching import Cache
from shmbroker.perf.peers.mpqueue import MultiprocessingQueue
from shmbroker.perf.peers.peer import Peer
from shmbroker.perf.peers.pyzmq import Pyzmq
from shmbroker.perf.values import ValueSpec

LOCAL: tuple[type[Peer], ...] = (Pyzmq, MultiprocessingQueue)


@pytest.fixture(params=LOCAL, ids=lambda kind: kind.name)
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Peer:
    made: Peer = request.param(Cache(tmp_path / "cache"))
    made.fetch()
    return made


@pytest.fixture
def client(peer: Peer, tmp_path: Path) -> Iterator[Client]:
    """One that sends to itself."""
    with peer.start(tmp_path, peer.modes[0]) as server:
        made = peer.client(server.address)
        try:
            yield made
        finally:
            made.close()


def test_every_workload_has_a_figure(peer: Peer, tmp_path: Path) -> None:
    (mode,) = peer.modes
    with DiskGuard(tmp_path, 0) as guard:
        bench = Bench(tmp_path, SMOKE, lambda _text: None, guard)
        rows = workloads.measure(bench, effort.SMOKE, peer, mode)
    # No server: no memory of one.
    assert [row.case for row in rows] == ["many-100-none", "each-100-none", "latency-200-none"]
    assert all(row.values for row in rows), [row.note for row in rows]
    assert "received by another process" in rows[0].note
    assert list(tmp_path.iterdir()) == []


def test_versions_are_named(peer: Peer) -> None:
    assert all(text[0].isdigit() for text in peer.versions().values())


@pytest.mark.parametrize(("count", "size"), [(2500, 100), (40, 16384), (3, 1 << 20)])
@pytest.mark.parametrize("how", ["many", "each", "paced"])
def test_all_that_is_sent_arrives_in_order(
    peer: Peer, client: Client, how: str, count: int, size: int
) -> None:
    (mode,) = peer.modes
    values = ValueSpec(count, size).make()
    client.create("t", mode)
    tail = client.tail("t", mode)
    assert next(tail) == []

    def paced(topic: str, values: list[bytes], mode: effort.Mode) -> None:
        send = client.sender(topic, mode)
        for value in values:
            send(value)

    ways: dict[str, Callable[..., None]] = {"many": client.send_many, "each": client.send_each}
    sending = threading.Thread(target=ways.get(how, paced), args=("t", values, mode))
    sending.start()
    found: list[bytes] = []
    while len(found) < count:
        found += next(tail)
    sending.join()
    assert found == values
    assert next(tail) == []  # a reader that waits for more can end
    tail.close()  # type: ignore[attr-defined]  (a generator)
    client.forget("t")
    assert not [thread for thread in threading.enumerate() if thread.name == "ticker"]
