"""Redis Streams: one server with an append-only file, on a Unix socket in its data directory.

The server and redis-benchmark come from Debian, the Python client (hiredis) from PyPI. Settings are
Redis's defaults but for `appendonly`, `appendfsync` and where it listens; no snapshots, as its
documentation leaves these out where the append-only file is what counts; and that file is not
rewritten meanwhile, which is kind to Redis: a rewrite is a forked process that writes everything
that there is once more. The fastest client of all is redis-benchmark: 50 connections with 1,000
commands on their way in each (4 to 200 connections of 16 to 1,000 were tried). `redis-cli --pipe`
loads at half that rate. One connection of redis-benchmark is no faster than Python's.

Tried as a server: Valkey 9.1, the fork, which is not Redis and measured the same within the noise.
Newer Redis came in no package that runs on Debian 12 (that of Redis Stack 7.4 wants OpenSSL 1.1).
"""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import psutil

from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.daemon import Daemon
from shmbroker.perf.peers.fetching import FetchFailed, Unpacked, pip_version
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.peer import Peer, Server
from shmbroker.perf.peers.redis_client import RedisClient

_PACKAGES: Final = ("redis-server", "redis-tools")
_PYTHON: Final = "hiredis"
_UP: Final = "ready to accept connections"
_SOCKET: Final = "redis.sock"
_SETTINGS: Final = ("--port", "0", "--unixsocket", _SOCKET, "--dir", ".", "--save", "",
                    "--appendonly", "yes", "--auto-aof-rewrite-percentage", "0")  # fmt: skip
_CONNECTIONS: Final = 50
_AHEAD: Final = 1000  # commands on their way in each
_READ_AHEAD: Final = 4
_RANGE: Final = 1000  # records of a reply
_TOOL_S: Final = 900.0


class _Redis(Server):
    """A server that runs. Its socket is named through its working directory: the data directory's
    own name may be longer than a socket's name may be."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.address: Any = f"/proc/{daemon.pid}/cwd/{_SOCKET}"

    def processes(self) -> list[psutil.Process]:
        return self._daemon.processes()


class Redis(Peer):
    """Redis Streams."""

    name: ClassVar[str] = "redis"
    title: ClassVar[str] = "Redis Streams"
    client_title: ClassVar[str] = "hiredis (Python)"
    fastest_title: ClassVar[str] = "redis-benchmark (C)"
    modes: ClassVar[tuple[Mode, ...]] = (
        Mode("durable", "durable", "appendfsync always: the append-only file is synced before the "
             "reply; outlives the host", "always"),
        Mode("memory", "memory", "appendfsync everysec: written to the page cache before the reply "
             "and synced each second; outlives the process, loses 1 to 2 s with the host",
             "everysec"),
    )  # fmt: skip

    def fetch(self) -> None:
        self._programs()
        self._python()

    def _programs(self) -> Unpacked:
        return self.cache.debian("redis", *_PACKAGES)

    def _python(self) -> Path:
        return self.cache.pip("redis", _PYTHON)

    def versions(self) -> dict[str, str]:
        said = self.tool("redis-server", "--version")  # "Redis server v=7.0.15 sha=…"
        return {
            "Redis": said.partition("v=")[2].partition(" ")[0],
            _PYTHON: pip_version(self._python(), _PYTHON),
        }

    @property
    def client(self) -> type[Client]:
        return RedisClient

    @property
    def path(self) -> list[Path]:
        return [self._python()]

    @contextmanager
    def start(self, directory: Path, mode: Mode) -> Iterator[Server]:
        programs = self._programs()
        command = [programs.program("redis-server"), *_SETTINGS, "--appendfsync", mode.settings]
        log = directory / "redis.log"
        daemon = Daemon(command, log, lambda: _UP in daemon.said(), programs.env(), directory)
        with daemon:
            yield _Redis(daemon)

    def fastest_produce(
        self, server: Server, topic: str, count: int, value_bytes: int, mode: Mode
    ) -> float | None:
        """XADD of one value over and over, in pipelines of many connections."""
        before = int(self.ask(server, "XLEN", topic))
        rate = self._benchmark(server, count, _CONNECTIONS, _AHEAD,
                               "XADD", topic, "*", "v", "x" * value_bytes)  # fmt: skip
        added = int(self.ask(server, "XLEN", topic)) - before
        if added < count:
            raise RuntimeError(f"redis-benchmark was to add {count} records, and added {added}")
        return rate

    def fastest_read(self, server: Server, topic: str, count: int) -> float | None:
        """XRANGE of the first records over and over, on one connection, the next asked for before
        the last is there: kinder than reading on, which must know the last record's id first."""
        records = min(count, _RANGE)
        rate = self._benchmark(server, -(-count // records), 1, _READ_AHEAD,
                               "XRANGE", topic, "-", "+", "COUNT", str(records))  # fmt: skip
        return rate * records

    def _benchmark(self, server: Server, requests: int, clients: int, ahead: int, *command: str
                   ) -> float:  # fmt: skip
        """Commands a second. It counts whole pipelines only, and in milliseconds."""
        said = self.tool("redis-benchmark", "-s", server.address, "-n", str(requests),
                         "-c", str(clients), "-P", str(ahead), "--csv", *command)  # fmt: skip
        rows = list(csv.DictReader(said.splitlines()))
        if not rows or not 0 < (rate := float(rows[-1]["rps"])) < float("inf"):
            raise FetchFailed(f"redis-benchmark said no rate: {said[-500:]}")
        return rate

    def ask(self, server: Server, *command: str) -> str:
        """What the server answers to redis-cli."""
        return self.tool("redis-cli", "-s", server.address, *command).strip()

    def tool(self, name: str, *words: str) -> str:
        """What one of Redis's programs prints."""
        programs = self._programs()
        done = subprocess.run(
            [programs.program(name), *words], check=False, text=True, env=programs.env(),
            stdin=subprocess.DEVNULL, capture_output=True, timeout=_TOOL_S,
        )  # fmt: skip
        if done.returncode:
            said = (done.stderr + done.stdout)[-800:]
            raise RuntimeError(f"{name} ended with {done.returncode}: {said}")
        return done.stdout


__all__ = ["Redis"]
