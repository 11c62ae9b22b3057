"""The attach handshake: one JSON message each way over a Unix SEQPACKET socket.

Owns: what the two messages are (docs/ARCHITECTURE.md, Attach). The socket is the caller's.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from shmbroker.control.pressure import Thresholds
from shmbroker.errors import NoBroker, from_wire
from shmbroker.places import Places

PROTOCOL_VERSION: Final = 1
MESSAGE_BYTES: Final = 65536


@dataclass(frozen=True, slots=True)
class Attachment:
    """What the broker answered; a new one after each attach."""

    client: int
    token: str
    instance: str
    data_dir: Path
    prefix: str  # of shared-memory names
    boot_id: bytes
    dir_id: bytes
    control: str  # path of the control socket
    broker_pid: int
    writers: int
    adopted: bool
    events: str = ""  # path of the events socket
    pressure: Thresholds | None = None  # what the broker judges by

    @classmethod
    def of(cls, ok: dict[str, Any]) -> Attachment:
        """From the answer's JSON."""
        return cls(
            client=ok["client"],
            token=ok["token"],
            instance=ok["instance"],
            data_dir=Path(ok["data_dir"]),
            prefix=ok["prefix"],
            boot_id=bytes.fromhex(ok["boot_id"]),
            dir_id=bytes.fromhex(ok["data_dir_id"]),
            control=ok["control"],
            broker_pid=ok["broker_pid"],
            writers=ok["writers"],
            adopted=bool(ok.get("adopted", False)),
            events=str(ok.get("events") or ""),
            pressure=Thresholds.of(ok.get("pressure")),
        )


def attach(
    places: Places, timeout: float, before: Attachment | None
) -> tuple[Attachment, socket.socket]:
    """Says hello and returns what the broker answered with the socket, which stays open.

    `before`: who we were to the broker before it went. Raises NoBroker when nobody answers within
    `timeout` seconds, or the broker's own error.
    """
    hello: dict[str, Any] = {
        "v": PROTOCOL_VERSION,
        "op": "attach",
        "pid": os.getpid(),
        "name": program_name(),
    }
    if before is not None:
        hello |= {"client": before.client, "token": before.token}
    where = str(places.runtime_dir)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout)
        sock.connect(places.socket_path("attach"))
        sock.send(orjson.dumps(hello))
        answer = sock.recv(MESSAGE_BYTES)
        if not answer:
            raise NoBroker(places.instance, where, "it hung up at once")
        reply = orjson.loads(answer)
        if "error" in reply:
            raise from_wire(reply["error"])
        sock.settimeout(None)
        return Attachment.of(reply["ok"]), sock
    except TimeoutError:
        sock.close()
        raise NoBroker(places.instance, where, f"no answer within {timeout:g} s") from None
    except OSError as error:
        sock.close()
        reason = "" if isinstance(error, FileNotFoundError) else os.strerror(error.errno or 0)
        raise NoBroker(places.instance, where, reason) from None
    except BaseException:
        sock.close()
        raise


def program_name() -> str:
    """The command line of this process in one printable line, cut, for `status`."""
    try:
        words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "python"
    line = " ".join(word.decode(errors="replace") for word in words if word)[:200]
    return "".join(c if c.isprintable() else " " for c in line)


__all__ = ["MESSAGE_BYTES", "Attachment", "attach", "program_name"]
