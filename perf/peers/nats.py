"""NATS JetStream: one nats-server, file storage, its defaults but for where it listens.

Server and `nats` (the CLI, whose benchmark is the fastest client that is not Python) are built from
the Go module proxy. NATS has no Unix socket; clients use TCP on the
loopback. The durable mode is `sync_interval: always`: the documentation's setting for a single
server that must not lose what it acknowledged.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final

import psutil

from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.daemon import Daemon, free_port
from shmbroker.perf.peers.fetching import FetchFailed
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.nats_client import NatsClient
from shmbroker.perf.peers.nats_wire import Wire
from shmbroker.perf.peers.peer import Peer, Server

_SERVER: Final = "2.15.2"
_CLI: Final = "0.5.1"
_PROGRAMS: Final = (
    f"github.com/nats-io/nats-server/v2@v{_SERVER}",
    f"github.com/nats-io/natscli/nats@v{_CLI}",
)
_UP: Final = "Server is ready"
_TOOL_S: Final = 900.0
_RATE: Final = re.compile(r"stats: ([\d,]+) msgs/sec")


class _Nats(Server):
    """A server that runs."""

    def __init__(self, daemon: Daemon, port: int, directory: Path) -> None:
        self._daemon = daemon
        self.address: int = port
        self.directory = directory

    def processes(self) -> list[psutil.Process]:
        return self._daemon.processes()


class Nats(Peer):
    """NATS JetStream."""

    name: ClassVar[str] = "nats"
    title: ClassVar[str] = "NATS JetStream"
    client_title: ClassVar[str] = "NATS protocol on a socket (Python)"
    fastest_title: ClassVar[str] = "nats bench (Go)"
    modes: ClassVar[tuple[Mode, ...]] = (
        Mode("durable", "durable", "sync_interval: always: synced before it is acknowledged, each "
             "message, or each atomic batch of 1,000; outlives the host", "always"),
        Mode("memory", "memory", "defaults: in the page cache of this one server, synced every 2 "
             "minutes; outlives the process, not the host", None),
    )  # fmt: skip
    record_overhead_bytes: ClassVar[int] = 256  # of an atomic batch, staged and stored
    fixed_bytes: ClassVar[int] = 128 << 20

    def fetch(self) -> None:
        self._programs()

    def _programs(self) -> Path:
        return self.cache.go("nats", *_PROGRAMS)

    def versions(self) -> dict[str, str]:
        return {"nats-server": _SERVER, "nats (CLI)": _CLI}

    @property
    def client(self) -> type[Client]:
        return NatsClient

    @contextmanager
    def start(self, directory: Path, mode: Mode) -> Iterator[Server]:
        port = free_port()
        config, log = directory / "nats.conf", directory / "nats.log"
        config.write_text(_config(directory / "data", port, mode.settings), encoding="utf-8")
        command = [str(self._programs() / "nats-server"), "--config", str(config)]
        with Daemon(command, log, lambda: _UP in _text(log), directory=directory) as daemon:
            yield _Nats(daemon, port, directory)

    def fastest_produce(
        self, server: Server, topic: str, count: int, value_bytes: int, mode: Mode
    ) -> float | None:
        """Durable: atomic batches of 1,000, as async and fast batches sync each message (50,000 a
        second against 3,000 and 3,700). Memory: fast batches of 500 (146,000; async 97,000,
        atomic 52,000)."""
        durable = mode.acks == "durable"
        how = ["atomic", "--batch", "1000"] if durable else ["fast", "--batch", "500"]
        return self._bench(server, "pub", *how, topic, "--stream", topic, "--msgs", str(count),
                           "--size", str(value_bytes))  # fmt: skip

    def fastest_read(self, server: Server, topic: str, count: int) -> float | None:
        """By callback, without acknowledgements, of 5,000 at a time (527,000 a second; an ordered
        consumer 387,000, batched direct gets 213,000)."""
        # One of ours: its own, found again in the next round, goes on where it ended: at the end.
        wire = Wire(server.address)
        try:
            name = wire.consumer(topic, "all")
        finally:
            wire.close()
        return self._bench(server, "consume", "--stream", topic, "--consumer", name, "--acks",
                           "none", "--batch", "5000", "--msgs", str(count))  # fmt: skip

    def _bench(self, server: Server, *words: str) -> float:
        """Records a second that `nats bench js` says."""
        assert isinstance(server, _Nats)
        command = [str(self._programs() / "nats"), "--no-context",
                   "--server", f"127.0.0.1:{server.address}", "bench", "js", *words,
                   "--no-progress"]  # fmt: skip
        home = {"HOME": str(server.directory), "XDG_CONFIG_HOME": str(server.directory)}
        done = subprocess.run(
            command, check=False, text=True, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=_TOOL_S, env=os.environ | home,
        )  # fmt: skip
        said = done.stderr + done.stdout
        found = _RATE.findall(said)
        if done.returncode or not found:
            raise FetchFailed(f"nats bench ended with {done.returncode}: {said[-800:]}")
        return float(found[-1].replace(",", ""))


def _config(data: Path, port: int, sync: str | None) -> str:
    syncing = f", sync_interval: {sync}" if sync else ""
    return f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{data}"{syncing} }}\n'


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


__all__ = ["Nats"]
