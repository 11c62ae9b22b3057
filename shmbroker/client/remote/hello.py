"""How a remote client and its broker meet on the control channel: addresses, credentials, hello.

Owns: what a program may say to be let in (`Credentials`), what the broker tells of itself
(`RemoteAttachment`), and one exchange of hello over a ZeroMQ socket that others keep.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import zmq

from shmbroker.addresses import ANY_HOST, format_tcp, parse_tcp
from shmbroker.client.attach import program_name
from shmbroker.control.keys import CLIENT, SECRET_SUFFIX, KeyDirectory, read_pair, read_secret
from shmbroker.control.pressure import Thresholds
from shmbroker.control.tokens import find_token
from shmbroker.errors import ConfigError, NoBroker, from_wire
from shmbroker.places import Places

_VERSION: Final = 1
_TOKEN_BYTES: Final = 256
_FAREWELL_MS: Final = 500  # how long what was said last may be on its way after close()
_POLL_MS: Final = 100  # between two looks whether the client was closed meanwhile
_CUT: Final = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_SCHEMES: Final = ("tcp://", "ipc://")


def is_remote(instance: str) -> bool:
    """Whether this is the address of a broker that listens, and no instance's name."""
    return instance.startswith(_SCHEMES)


def shortened(address: str) -> str:
    """The address as a socket takes it: a long path to a Unix socket leads through a short link."""
    if not address.startswith("ipc:///"):
        return address
    path = Path(address.removeprefix("ipc://"))
    return Places.find(str(path.parent)).zmq_address(path.name)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a program shows: a token, or a key."""

    token: str | None = None
    public: bytes = b""
    secret: bytes = b""
    server: bytes = b""  # the broker's public key: who must answer

    @classmethod
    def given(
        cls,
        token: str | None,
        token_file: str | os.PathLike[str] | None,
        keys: str | os.PathLike[str] | None,
    ) -> Credentials:
        """Those of `connect`'s arguments, else SHMBROKER_TOKEN and SHMBROKER_KEYS. ConfigError."""
        if token is None and token_file is not None:
            token = _token_in(Path(token_file))
        if token is None:
            token = os.environ.get("SHMBROKER_TOKEN") or None
        where = keys or os.environ.get("SHMBROKER_KEYS") or None
        if where is None:
            return cls(token)
        directory = Path(where)
        public, secret = read_secret(directory / f"{CLIENT}{SECRET_SUFFIX}")
        return cls(token, public, secret, read_pair(KeyDirectory(directory).public).public)

    def prepare(self, sock: zmq.Socket[bytes], endpoint: str) -> None:
        """Sets the key on a socket that is about to connect there; Unix sockets ask for none."""
        if self.secret and endpoint.startswith("tcp://"):
            sock.setsockopt(zmq.CURVE_SERVERKEY, self.server)
            sock.setsockopt(zmq.CURVE_PUBLICKEY, self.public)
            sock.setsockopt(zmq.CURVE_SECRETKEY, self.secret)

    def token_for(self, address: str) -> str | None:
        """What to show there: the token that was given, or what a broker of this user on this host
        keeps for those who come to just this address. No other host is ever shown one of these."""
        if self.token is not None or self.secret:
            return self.token
        return find_token(address)


@dataclass(frozen=True, slots=True)
class RemoteAttachment:
    """What the broker answered to hello; a new one after each."""

    client: int
    token: str  # the secret of this client
    claimed: bool  # the broker still knew it
    instance: str
    dir_id: bytes
    boot_id: str
    runtime_dir: Path
    broker_pid: int
    heartbeat_s: float
    dead_s: float
    ingress: str
    data: tuple[str, ...]
    events: str
    data_token: bytes
    certificate: str | None  # PEM: streams are inside TLS
    pressure: Thresholds | None = None  # what the broker judges by

    @classmethod
    def of(cls, ok: dict[str, Any], address: str) -> RemoteAttachment:
        """From the answer's JSON; `address` is where control was reached. KeyError, TypeError or
        ValueError when something is missing."""
        return cls(
            client=ok["client"],
            token=ok["secret"],
            claimed=bool(ok["claimed"]),
            instance=ok["instance"],
            dir_id=bytes.fromhex(ok["data_dir_id"]),
            boot_id=ok["boot_id"],
            runtime_dir=Path(ok["runtime_dir"]),
            broker_pid=ok["broker_pid"],
            heartbeat_s=ok["heartbeat_ms"] / 1000,
            dead_s=ok["dead_ms"] / 1000,
            ingress=_reached(ok["ingress"][0], address),
            data=tuple(_reached(endpoint, address) for endpoint in ok["data"]),
            events=_reached(ok["events"][0], address) if ok.get("events") else "",
            data_token=ok["data_token"].encode(),
            certificate=ok.get("data_certificate"),
            pressure=Thresholds.of(ok.get("pressure")),
        )


class Desk:
    """The socket on which hello is said: heartbeats and events go over it afterwards.

    Belongs to one thread at a time. Its monitor is readable when the connection breaks.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], address: str, credentials: Credentials
    ) -> None:
        """Connects; waits for nothing. ValueError for an address that can't be."""
        self._address, self._number = address, 0
        self.socket = context.socket(zmq.DEALER)
        self.monitor = self.socket.get_monitor_socket(_CUT)
        try:
            self.socket.linger = 0
            self.socket.setsockopt(zmq.IPV6, 1)
            self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
            self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
            credentials.prepare(self.socket, address)
            self.socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(f"{address}: {error}") from None

    def hello(
        self,
        token: str | None,
        before: RemoteAttachment | None,
        timeout: float,
        given_up: Callable[[], bool],
    ) -> RemoteAttachment:
        """Says it and returns what the broker answers.

        Raises NoBroker when nobody does within `timeout` seconds or `given_up` is true; the
        broker's own error."""
        args: dict[str, Any] = {"min": _VERSION, "max": _VERSION, "name": program_name()}
        if token is not None:
            args["token"] = token
        if before is not None:
            args |= {"client": before.client, "secret": before.token}
        hung_up = self._nobody(
            "it hung up: it asks for a key that it knows (keys=), or is no broker"
            if before is None else "it hung up"
        )  # fmt: skip
        number = self.ask("hello", args)
        if not number:  # it was quicker than we
            raise hung_up
        deadline = time.monotonic() + timeout
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self.monitor, zmq.POLLIN)
        while not given_up():
            left_ms = round((deadline - time.monotonic()) * 1000)
            if left_ms <= 0:
                break
            ready = dict(poller.poll(min(left_ms, _POLL_MS)))
            if self.socket in ready:
                reply = _json(self.socket.recv_multipart()[0])
                if reply.get("id") == number:
                    return self._welcomed(reply)
            elif self.monitor in ready:  # our hello went with it
                raise hung_up
        raise self._nobody(f"no answer within {timeout:g} s")

    def _welcomed(self, reply: dict[str, Any]) -> RemoteAttachment:
        if isinstance(reply.get("error"), dict):
            raise from_wire(reply["error"])
        try:
            return RemoteAttachment.of(reply["ok"], self._address)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise self._nobody(f"what answers is none: {error!r}") from None

    def _nobody(self, why: str) -> NoBroker:
        return NoBroker(self._address, self._address, why)

    def ask(self, op: str, args: dict[str, Any]) -> int:
        """Sends a request; returns the number that its answer will bear, or 0 when nobody is there
        to take it."""
        self._number += 1
        message = {"v": _VERSION, "id": self._number, "op": op, **args}
        try:
            self.socket.send(orjson.dumps(message), zmq.NOBLOCK)
        except zmq.Again:
            return 0
        return self._number

    def leave(self, client: RemoteAttachment) -> None:
        """Says goodbye for it, so that the broker need not miss it first; waits for no answer."""
        if self.ask("goodbye", {"client": client.client, "secret": client.token}):
            self.socket.linger = _FAREWELL_MS

    def close(self) -> None:
        """Hangs up. Twice is fine."""
        if not self.socket.closed:
            self.socket.disable_monitor()
            self.monitor.close(linger=0)
            self.socket.close()


def meet(
    desk: Desk,
    address: str,
    credentials: Credentials,
    timeout: float,
    before: RemoteAttachment | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> RemoteAttachment:
    """hello with the token for that address. See Desk.hello."""
    return desk.hello(credentials.token_for(address), before, timeout, given_up)


def _token_in(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            return file.read(_TOKEN_BYTES + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it holds no token"
        raise ConfigError(f"can't be read: {why}", file=str(path)) from None


def _json(frame: bytes) -> dict[str, Any]:
    """A message; {} for what is none: a stranger may answer there."""
    try:
        found = orjson.loads(frame)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _reached(endpoint: str, address: str) -> str:
    """An endpoint as it is reached from here: over TCP on the host at which control was reached
    where it says `*`, over Unix sockets in control's directory, whatever the broker calls that."""
    scheme, _, rest = endpoint.partition("://")
    if scheme in ("ipc", "unix"):
        here = Path(address.removeprefix("ipc://")).parent if address.startswith("ipc://") else None
        return endpoint if here is None else f"{scheme}://{here / Path(rest).name}"
    host, port = parse_tcp(endpoint)
    if host in (ANY_HOST, "::", "0.0.0.0") and address.startswith("tcp://"):
        host = parse_tcp(address)[0]
    return format_tcp(host, port)


__all__ = ["Credentials", "Desk", "RemoteAttachment", "is_remote", "meet", "shortened"]
