"""The attached clients and their ingress rings, and how both outlive a killed broker.

Owns: `clients.json` in the runtime directory: who had which ring at which writer, rewritten
(aside, then renamed) at each change. Shared memory alone can't tell it, since neither the writer
nor the client's token stands in a ring. It is lost with the runtime directory and so with the
boot, as the rings are; then the rings are swept, which loses nothing that was acknowledged.

Invariants: ids of clients and rings are given once in the life of an adopted chain of brokers; a
request counts only with its client's token; a ring is unlinked after its writer has let go of it.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shmbroker import errors
from shmbroker.control.attach import Connection

CLIENTS_FILE: Final = "clients.json"


@dataclass(slots=True)
class Ring:
    """One ingress ring, with its receipts."""

    ingress: int
    client: int
    writer: int
    capacity: int  # bytes
    slots: int  # receipts
    attached: bool = False  # the writer has it, or had it when it died
    closing: bool = False


@dataclass(slots=True)
class Client:
    """One attached program. Without a connection it has a grace period to claim its rings."""

    client: int
    token: str
    pid: int = 0
    name: str = ""
    attached_s: float = field(default_factory=time.time)  # Unix time
    connection: Connection | None = None
    rings: dict[int, Ring] = field(default_factory=dict)


class Sessions:
    """All clients. Belongs to the acceptor's one thread."""

    def __init__(self, runtime_dir: Path, boot_id: str, data_dir_id: str) -> None:
        self._path = runtime_dir / CLIENTS_FILE
        self._of = {"boot_id": boot_id, "data_dir_id": data_dir_id}
        self.clients: dict[int, Client] = {}
        self.rings: dict[int, Ring] = {}
        self._next = {"client": 1, "ingress": 1}

    def restore(self, rings_there: set[int]) -> None:
        """Takes over the clients of a killed broker whose rings are in `rings_there`.

        A file of another boot or directory, or none, restores nobody.
        """
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if found["of"] == self._of:
                self._next = {key: int(found["next"][key]) for key in self._next}
                for entry in found["clients"]:
                    self._restore_client(entry, rings_there)
        self._next["ingress"] = max(self._next["ingress"], *(n + 1 for n in rings_there), 1)
        self.save()

    def attach(
        self, connection: Connection, pid: int, name: str, claim: int | None, token: str | None
    ) -> Client:
        """A new client, or the one that `claim` and `token` name if it is known."""
        client = self.clients.get(claim) if claim is not None else None
        if client is None or not hmac.compare_digest(client.token.encode(), (token or "").encode()):
            client = Client(self._take("client"), secrets.token_hex(16))
            self.clients[client.client] = client
        client.connection, client.pid, client.name = connection, pid, name
        connection.client = client.client
        self.save()
        return client

    def get(self, client: int | None, token: str | None) -> Client:
        """The client of a request; InvalidRequest if it is not attached."""
        known = self.clients.get(client) if client is not None else None
        if known is None or not hmac.compare_digest(known.token.encode(), (token or "").encode()):
            raise errors.InvalidRequest(
                f"client {client} is not attached here, or its token is wrong; attach (again)"
            )
        return known

    def next_ingress(self) -> int:
        """An id for a new ring."""
        return self._take("ingress")

    def next_client(self) -> int:
        """An id for a client that is not kept here."""
        return self._take("client")

    def add_ring(self, client: Client, ring: Ring) -> None:
        """The ring exists now."""
        client.rings[ring.ingress] = self.rings[ring.ingress] = ring
        self.save()

    def remove_ring(self, ring: Ring) -> None:
        """The ring is gone; so is its client if that was the last thing of it."""
        self.rings.pop(ring.ingress, None)
        client = self.clients.get(ring.client)
        if client is not None:
            client.rings.pop(ring.ingress, None)
            self.forget_if_gone(client)
        self.save()

    def forget_if_gone(self, client: Client) -> None:
        """Drops a client that has neither a connection nor a ring."""
        if client.connection is None and not client.rings:
            self.clients.pop(client.client, None)
            self.save()

    def save(self) -> None:
        """Writes the file. Not synced: what the host's death takes, it takes the rings too."""
        content = {
            "of": self._of,
            "next": self._next,
            "clients": [
                {
                    "client": c.client,
                    "token": c.token,
                    "pid": c.pid,
                    "name": c.name,
                    "rings": [
                        {"ingress": r.ingress, "writer": r.writer, "capacity": r.capacity,
                         "slots": r.slots} for r in c.rings.values()
                    ],
                }
                for c in self.clients.values()
            ],
        }  # fmt: skip
        new = self._path.with_suffix(".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(content, file)
        new.rename(self._path)

    def _restore_client(self, entry: dict[str, Any], rings_there: set[int]) -> None:
        client = Client(entry["client"], entry["token"], entry["pid"], entry["name"])
        for found in entry["rings"]:
            if found["ingress"] in rings_there:
                ring = Ring(client=client.client, attached=True, **found)
                client.rings[ring.ingress] = self.rings[ring.ingress] = ring
        self.clients[client.client] = client

    def _take(self, what: str) -> int:
        taken = self._next[what]
        self._next[what] += 1
        return taken


__all__ = ["CLIENTS_FILE", "Client", "Ring", "Sessions"]
