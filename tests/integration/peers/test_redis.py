"""Redis's driver with the real thing: fetched, started, measured at the smallest size, stopped.

Only in `just test-peers`: it needs apt's archive and PyPI.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from driven import every_workload_has_a_figure, versions_are_named

from shmbroker.perf.peers.fetching import Cache
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.peer import Server
from shmbroker.perf.peers.redis import Redis
from shmbroker.perf.peers.redis_client import RedisClient
from shmbroker.perf.peers.run import CACHE
from shmbroker.perf.peers.timed import Timed
from shmbroker.perf.remote import Remote, RemoteError
from shmbroker.perf.values import ValueSpec

ROOT = Path(__file__).parents[3]
pytestmark = [pytest.mark.peers, pytest.mark.leaves_processes]


@pytest.fixture(scope="module")
def redis() -> Redis:
    peer = Redis(Cache(ROOT / CACHE))
    peer.fetch()
    return peer


def client_of(redis: Redis, server: Server) -> Remote[Timed]:
    path = [str(each) for each in redis.path]
    return Remote(Timed, path, RedisClient.__module__, RedisClient.__qualname__, server.address)


def test_versions_are_named(redis: Redis) -> None:
    versions_are_named(redis, {"Redis", "hiredis"})


@pytest.mark.parametrize("mode", Redis.modes, ids=lambda mode: mode.name)
def test_every_workload_has_a_figure(redis: Redis, mode: Mode, tmp_path: Path) -> None:
    every_workload_has_a_figure(redis, mode, tmp_path)


@pytest.mark.parametrize("mode", Redis.modes, ids=lambda mode: mode.name)
def test_what_was_acknowledged_outlives_the_process(
    redis: Redis, mode: Mode, tmp_path: Path
) -> None:
    count = 2500  # not a whole number of transactions
    with redis.start(tmp_path, mode) as server:
        assert redis.ask(server, "CONFIG", "GET", "appendfsync").split()[1] == mode.settings
        with client_of(redis, server) as client:
            client.call("prepare", ValueSpec(count))
            sent = client.call("checksum", count)
            client.call("send", "many", "kept", count, mode)
            client.call("send", "each", "too", count, mode)
        server.signal_kill()
    with redis.start(tmp_path, mode) as server, client_of(redis, server) as client:
        assert client.call("stored", "kept", count) == sent
        assert client.call("stored", "too", count) == sent


def test_a_record_that_the_server_refuses_is_an_error(redis: Redis, tmp_path: Path) -> None:
    (_, memory) = redis.modes
    with redis.start(tmp_path, memory) as server, client_of(redis, server) as client:
        redis.ask(server, "SET", "text", "no stream")
        client.call("prepare", ValueSpec(10))
        with pytest.raises(RemoteError, match="was not taken"):
            client.call("send", "many", "text", 10, memory)


def test_a_forgotten_topic_is_gone_from_memory(redis: Redis, tmp_path: Path) -> None:
    (_, memory) = redis.modes
    with redis.start(tmp_path, memory) as server, client_of(redis, server) as client:
        client.call("prepare", ValueSpec(10))
        client.call("send", "many", "gone", 10, memory)
        client.call("forget", "gone")
        assert redis.ask(server, "EXISTS", "gone") == "0"
