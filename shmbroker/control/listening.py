"""What the workers that programs elsewhere talk to are started with.

Owns: the specification of one reader or ingress process, and the names of the files with keys that
it opens itself. It is pickled once, to a process of the same installation, and never changed; a
successor after a death gets a new one with the same ports.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shmbroker.config import ListenSection


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The data port's certificate and its key, both PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class CurveFiles:
    """The broker's CURVE key and who may come, in the form of `zmq.auth` (docs/remote.md)."""

    secret: Path  # the broker's own key pair, 0600: `server.key_secret`
    authorized: Path  # a directory of public keys, one `*.key` a client; read again as it changes


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """What a reader or ingress process is started with."""

    role: Literal["reader", "ingress"]
    number: int  # from 0
    instance: str
    runtime_dir: Path
    data_dir: Path
    workers_address: str  # ZeroMQ endpoint of the acceptor for workers: ipc://…
    tcp: tuple[str, int] | None  # host ("*": every address) and port; readers share theirs
    unix_path: Path | None  # a socket to bind, 0600: streams' of a reader, ZeroMQ's of ingress
    token: bytes  # what clients must show in their Hello
    tls: TlsFiles | None  # of a reader's TCP port; None: plain
    curve: CurveFiles | None  # of ingress' TCP port; None: ZeroMQ NULL
    listen: ListenSection
    parent_pid: int  # the acceptor's; a worker whose parent is another ends at once
    cpus: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """How the acceptor, `status` and the log call this worker: `reader-0`."""
        return f"{self.role}-{self.number}"

    @property
    def title(self) -> str:
        """The process title that `ps` shows."""
        return f"shmbroker {self.instance}: {self.name}"


__all__ = ["CurveFiles", "NetworkSpec", "TlsFiles"]
