"""Programs elsewhere that have said hello on control: who they are, and whether they still speak.

They have no attach socket whose hang-up would tell of their death, so one that is silent for
`dead_ms` is forgotten (docs/protocol.md, Control). Nothing of theirs is in shared memory, so
nothing has to be cleared away, and a restart of the broker forgets them all: they say hello again.

Invariants: a request counts only with the secret that the client was given; there are never more
than `limit`. The clock is passed in.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shmbroker import errors
from shmbroker.control.sessions import Client


@dataclass(slots=True)
class RemoteClient(Client):
    """One such program. Its `token` is what the protocol calls its secret."""

    route: Any = None  # how events reach it: of its last hello
    heard_s: float = 0.0
    key: str = ""  # the name of its CURVE key
    missed: bool = False  # an event had no room: it has to be told to ask for all topics


class RemoteClients:
    """All of them. Belongs to the acceptor's one thread."""

    def __init__(
        self, next_id: Callable[[], int], limit: int, dead_s: float, clock: Callable[[], float]
    ) -> None:
        self._next_id, self._limit, self._dead_s, self._clock = next_id, limit, dead_s, clock
        self.clients: dict[int, RemoteClient] = {}

    def hello(
        self, claim: int | None, secret: str | None, name: str, key: str, route: Any
    ) -> tuple[RemoteClient, bool]:
        """A new client, or the one that `claim` and `secret` name; whether it was known.

        Raises QuotaExceeded, retriable, when there are too many.
        """
        client = self.clients.get(claim) if claim is not None else None
        known = client is not None and _same(client.token, secret) and client.key == key
        if client is None or not known:
            if len(self.clients) >= self._limit:
                self.forget_silent()
            if len(self.clients) >= self._limit:
                raise errors.QuotaExceeded(
                    f"{len(self.clients)} clients are connected from elsewhere, and no more are "
                    "taken; close some, or raise listen.max_connections"
                )
            client = RemoteClient(self._next_id(), secrets.token_hex(16))
            self.clients[client.client] = client
        client.name, client.key, client.route = name, key, route
        client.missed, client.heard_s = False, self._clock()
        return client, known

    def get(self, client: int | None, secret: str | None, key: str) -> RemoteClient:
        """The client of a request, which is a sign of its life; InvalidRequest if unknown."""
        known = self.clients.get(client) if client is not None else None
        if known is None or not _same(known.token, secret) or known.key != key:
            raise errors.InvalidRequest(
                f"client {client} is not known here, or its secret is wrong; say hello (again)"
            )
        known.heard_s = self._clock()
        return known

    def forget(self, client: RemoteClient) -> None:
        """It has said goodbye."""
        self.clients.pop(client.client, None)

    def forget_silent(self) -> list[RemoteClient]:
        """Drops those that have not been heard for too long; returns them."""
        before = self._clock() - self._dead_s
        silent = [client for client in self.clients.values() if client.heard_s < before]
        for client in silent:
            del self.clients[client.client]
        return silent

    def silence_s(self, client: RemoteClient) -> float:
        """How long it has not been heard."""
        return max(0.0, self._clock() - client.heard_s)


def _same(known: str, given: str | None) -> bool:
    return hmac.compare_digest(known.encode(), (given or "").encode(errors="replace"))


__all__ = ["RemoteClient", "RemoteClients"]
