"""The ingress process: batches of remote producers, from ZeroMQ into the shared-memory rings.

One thread runs it: a poller over the ROUTER sockets, the relay's eventfd, the acceptor's requests
and a tick. To the broker it is one local client with a ring for each writer (client/relay.py); to
its producers it is the broker's end of the native protocol (docs/protocol.md, Ingress). It decodes
nothing: a batch is copied once, out of ZeroMQ's memory into the ring.

It keeps nothing that its death could lose: what it had not yet acknowledged, clients send again to
its successor, under the same producer ids and sequences. Ends when told to (`stop`: Closing to
all, and what has come is published and answered), or with its acceptor (lifecycle.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, Final

from shmbroker import errors
from shmbroker.client.client import Client
from shmbroker.client.local_connection import LocalConnection
from shmbroker.client.relay import Relay
from shmbroker.control import messages
from shmbroker.control.listening import NetworkSpec
from shmbroker.places import Places
from shmbroker.workers import logs
from shmbroker.workers.acceptor_link import AcceptorLink
from shmbroker.workers.ingress_sessions import Sessions
from shmbroker.workers.ingress_socket import Door, keep_freed_memory
from shmbroker.workers.lifecycle import adopt_parent
from shmbroker.workers.logs import get_logger
from shmbroker.workers.loop import Loop

_log = get_logger("shmbroker.ingress")

_ATTACH_S: Final = 60.0  # for an acceptor that is still recovering
_RETRY_S: Final = 0.05
_NEVER_S: Final = 1e9  # the acceptor's death is ours, so nobody else need end a wait for it
_DRAIN_S: Final = 5.0  # by default


class Ingress:
    """The process's control plane; everything in one thread."""

    def __init__(self, spec: NetworkSpec, client: Client, door: Door) -> None:
        self._spec = spec
        self._client = client
        self._door = door
        self._loop = Loop()
        self._relay = Relay(client)
        attachment = client.connection.attachment
        self._prefix = attachment.prefix
        self._sessions = Sessions(
            self._relay, spec.listen, spec.tokens, attachment.dir_id, self._writers
        )
        self._stopping = False
        operations = {"status": self._status, "stop": self._stop}
        self._acceptor = AcceptorLink(door.context, spec.workers_address, "ingress", operations)

    def run(self) -> None:
        """Serves until told to stop."""
        for sock in self._door.sockets:
            self._loop.watch(sock, lambda sock=sock: self._sessions.receive(sock))  # type: ignore[misc]
        if self._door.gate is not None:
            self._loop.watch(self._door.gate.socket, self._door.gate.answer)
        self._loop.watch(self._relay.fd, lambda: self._sessions.settle(woken=True))
        self._acceptor.hello(worker=self._spec.name, pid=os.getpid())
        self._loop.watch(self._acceptor.socket, self._acceptor.receive)
        self._tick()
        self._loop.run()
        self._loop.close()
        self._relay.close()
        self._acceptor.close()

    def _writers(self) -> int:
        """How many writers there are: each has a table, and tables stay."""
        here = 0
        while os.path.exists(f"/dev/shm{self._prefix}-w{here}"):
            here += 1
        return here

    def _tick(self) -> None:
        if not self._stopping:
            for sock in self._door.sockets:
                self._sessions.receive(sock)
        self._sessions.tick()
        self._loop.after(self._sessions.tick_s, self._tick)

    # --- the acceptor's requests ---

    def _status(self, _request: messages.Request) -> Mapping[str, Any]:
        gate = self._door.gate
        return self._sessions.describe() | {
            "pid": os.getpid(),
            "rings": {str(n): ring for n, ring in self._relay.counters().items()},
            "keys_refused": 0 if gate is None else gate.refused,
        }

    def _stop(self, request: messages.Request) -> None:
        """Closing to all; what has come is published and answered within `drain_s`; then it ends.
        What comes now is not read: producers send it again, to whoever comes next."""
        drain_s = request.args.get("drain_s")
        self._stopping = True
        for sock in self._door.sockets:
            self._loop.unwatch(sock)
        self._sessions.say_closing()
        deadline = time.monotonic() + (_DRAIN_S if drain_s is None else float(drain_s))
        self._drain(request, deadline)

    def _drain(self, request: messages.Request, deadline: float) -> None:
        self._sessions.settle()
        if self._relay.unsettled and time.monotonic() < deadline:
            self._loop.after(_RETRY_S, lambda: self._drain(request, deadline))
            return
        self._acceptor.reply(request, {"drained": not self._relay.unsettled})
        self._loop.stop()


def _attach(spec: NetworkSpec) -> Client:
    """An ordinary local client of the acceptor that has started us, as soon as it lets us in."""
    places = Places.find(str(spec.runtime_dir))
    deadline = time.monotonic() + _ATTACH_S
    while True:
        try:
            return Client(LocalConnection(places, timeout=_ATTACH_S, reconnect_s=_NEVER_S))
        except errors.NoBroker:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)


def main(spec: NetworkSpec) -> None:
    """An ingress process, from its start to its end."""
    adopt_parent(spec)
    logs.set_process(spec.name)
    keep_freed_memory()
    door = Door(spec)
    try:
        with _attach(spec) as client:
            Ingress(spec, client, door).run()
    finally:
        door.close()


__all__ = ["Ingress", "main"]
