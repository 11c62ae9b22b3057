"""What a broker listens on for programs elsewhere, and what the workers there are started with.

Owns: the decision at `up` (addresses, ports, sockets, keys or the refusal for lack of them), the
same for the broker's life, and the specification of one reader or ingress process. The latter is
pickled once, to a process of the same installation, and never changed; a successor after a death
gets an equal one.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shmbroker.addresses import format_tcp, is_loopback
from shmbroker.config import ListenSection, LoadedConfig, Places
from shmbroker.control.authorized import DataTokens
from shmbroker.control.keys import KeyDirectory, read_secret
from shmbroker.control.ports import NAMES, ListenFile, Ports, resolve
from shmbroker.errors import ConfigError


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
    token: bytes  # what clients must show in their Hello, or one made of it (authorized.py)
    tls: TlsFiles | None  # of a reader's TCP port; None: plain
    curve: CurveFiles | None  # of ingress' TCP port, None: ZeroMQ NULL; who may come, for both
    listen: ListenSection
    parent_pid: int  # the acceptor's; a worker whose parent is another ends at once
    cpus: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """How the acceptor, `status` and the log call this worker: `reader-0`."""
        return f"{self.role}-{self.number}"

    @property
    def tokens(self) -> DataTokens:
        """What clients must show."""
        return DataTokens(self.token, self.curve.authorized if self.curve else None)

    @property
    def title(self) -> str:
        """The process title that `ps` shows."""
        return f"shmbroker {self.instance}: {self.name}"


@dataclass(frozen=True, slots=True)
class Listening:
    """What one broker listens on: decided at `up`, and the same for its life."""

    listen: ListenSection
    host: str  # as it was asked for: what clients are told
    ip: str  # the same as a number
    ports: Ports | None  # None: no TCP
    unix: Mapping[str, str]  # paths of sockets, by the names of `Ports`; empty: none
    keys: KeyDirectory | None  # None: no CURVE and no TLS
    token: str
    data_token: str  # behind control: who came with a key gets one of its own

    @property
    def curve(self) -> CurveFiles | None:
        """For control and ingress over TCP."""
        return CurveFiles(self.keys.secret, self.keys.authorized) if self.keys else None

    @property
    def tokens(self) -> DataTokens:
        """What clients must show behind control."""
        return DataTokens(self.data_token.encode(), self.keys.authorized if self.keys else None)

    @property
    def tls(self) -> TlsFiles | None:
        """For streams over TCP."""
        return TlsFiles(self.keys.certificate, self.keys.certificate_key) if self.keys else None

    @property
    def is_insecure(self) -> bool:
        """Whether other hosts reach it without keys."""
        return self.ports is not None and self.keys is None and not is_loopback(self.ip)

    def tcp(self, name: str) -> tuple[str, int] | None:
        """Where to bind `control`, `ingress`, `data` or `events`."""
        return (self.ip, getattr(self.ports, name)) if self.ports else None

    def data_path(self, number: int) -> str | None:
        """The Unix socket of a reader: each has its own."""
        path = self.unix.get("data")
        return f"{path}-{number}" if path and number else path

    def tcp_endpoint(self, name: str) -> str | None:
        """As clients are told it: `tcp://host:port`."""
        return format_tcp(self.host, getattr(self.ports, name)) if self.ports else None

    def unix_endpoints(self, name: str) -> list[str]:
        """As clients are told them, who reached control over a Unix socket."""
        if not self.unix:
            return []
        if name != "data":
            return [f"ipc://{self.unix[name]}"]
        return [f"unix://{self.data_path(n)}" for n in range(self.listen.readers)]

    def endpoints(self) -> dict[str, list[str]]:
        """All of them, for `status`."""
        found = {}
        for name in NAMES:
            tcp = self.tcp_endpoint(name)
            found[name] = ([tcp] if tcp else []) + self.unix_endpoints(name)
        return found


def plan_listening(places: Places, loaded: LoadedConfig) -> Listening | None:
    """What the configuration asks for; None: nothing listens. For who holds the directory's lock.

    Raises ConfigError for what can't be, or must not be without keys.
    """
    listen = loaded.config.listen
    if not listen.anything:
        return None
    file = ListenFile(places.data_dir)
    host, ip, ports, keys = "", "", None, None
    if listen.tcp is not None:
        host = listen.tcp[0]
        ip = resolve(loaded, host)
        if not is_loopback(ip):
            keys = _keys_for(places, loaded)
        ports = file.ports(loaded, ip)
    unix = {}
    if listen.unix:
        unix = {name: places.socket_path(f"remote-{name}") for name in NAMES}
    data_token = secrets.token_hex(16)
    return Listening(listen, host, ip, ports, unix, keys, file.token(), data_token)


def _keys_for(places: Places, loaded: LoadedConfig) -> KeyDirectory | None:
    """The keys without which nothing is bound beyond loopback, but with `insecure`."""
    listen = loaded.config.listen
    keys = key_directory(places, listen)
    if keys.is_complete:
        read_secret(keys.secret)
        check_certificate(keys)
        return keys
    if listen.insecure:
        return None
    missing = f"{', '.join(keys.missing())} missing in {keys.path}"
    raise loaded.refused(
        "listen.address",
        f"{listen.address} can be reached from other hosts, and there are no keys ({missing})",
        f"keys, made with: shmbroker keys generate --dir {keys.path}; or an address of this host "
        "alone (tcp://127.0.0.1:9300); or, where whoever reaches it may read and write everything "
        "that a token lets them, --insecure (listen.insecure = true)",
    )


def check_certificate(keys: KeyDirectory) -> None:
    """ConfigError if no reader could use the certificate and its key."""
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            keys.certificate, keys.certificate_key
        )
    except (ssl.SSLError, OSError) as error:
        why = getattr(error, "reason", None) or error.strerror or str(error)
        raise ConfigError(
            f"can't be used with {keys.certificate_key.name}: {why}; remove both and run: "
            "shmbroker keys generate",
            file=str(keys.certificate),
        ) from None


def key_directory(places: Places, listen: ListenSection) -> KeyDirectory:
    """Where the keys of an instance are: `listen.keys`, or beside its configuration."""
    return KeyDirectory(Path(listen.keys).expanduser() if listen.keys else places.keys_dir)


__all__ = [
    "CurveFiles",
    "Listening",
    "NetworkSpec",
    "TlsFiles",
    "check_certificate",
    "key_directory",
    "plan_listening",
]
