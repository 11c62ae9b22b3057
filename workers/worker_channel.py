"""The `workers` socket: which process of the broker speaks, and to which link its words belong.

Every worker is a DEALER here and says `hello` first (docs/ARCHITECTURE.md, Control); what it says
afterwards, answers and events, goes to its link and to whoever listens to its events.

Invariants: a hello counts only from the pid that the supervisor started last under that name, so
the words of a process that is gone reach nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import zmq

from shmbroker import errors
from shmbroker.control import messages
from shmbroker.workers.logs import get_logger
from shmbroker.workers.routing import received, send
from shmbroker.workers.supervisor import Worker
from shmbroker.workers.worker_link import WorkerLink

_log = get_logger("shmbroker.workers")
OnEvent = Callable[[messages.Event], None]


@dataclass(slots=True)
class _Member:
    link: WorkerLink
    worker: Worker
    on_event: OnEvent


class WorkerChannel:
    """All workers' words. Belongs to the loop's thread."""

    def __init__(self, sock: zmq.Socket[bytes]) -> None:
        self._socket = sock
        self._members: dict[str, _Member] = {}
        self._hellos: dict[bytes, str] = {}  # ZeroMQ identity -> name

    def send(self, identity: bytes, message: bytes) -> None:
        """To a worker; see WorkerLink."""
        send(self._socket, identity, message)

    def add(self, link: WorkerLink, worker: Worker, on_event: OnEvent | None = None) -> None:
        """From now on a process of `worker` may speak, and `link` hears it."""
        self._members[worker.name] = _Member(link, worker, on_event or _ignore)

    def gone(self, worker: Worker) -> None:
        """Its process is gone."""
        member = self._members.get(worker.name)
        if member is not None:
            self._hellos = {i: name for i, name in self._hellos.items() if name != worker.name}
            member.link.gone()

    def readable(self) -> None:
        """Takes what has come."""
        for identity, data in received(self._socket):
            try:
                self._take(identity, messages.decode(data))
            except errors.ShmbrokerError as error:
                _log.error("bad message from a worker", cause=str(error))

    def _take(self, identity: bytes, message: messages.Message) -> None:
        if isinstance(message, messages.Request) and message.op == "hello":
            self._hello(identity, message)
            return
        name = self._hellos.get(identity)
        if name is None:
            raise errors.InvalidRequest("a message before hello")
        member = self._members[name]
        if isinstance(message, messages.Reply):
            member.link.received(message)
        elif isinstance(message, messages.Event):
            member.on_event(message)

    def _hello(self, identity: bytes, message: messages.Request) -> None:
        pid = message.arg("pid", int)
        name = message.optional("worker", str) or f"writer-{message.arg('writer', int)}"
        member = self._members.get(name)
        if member is None or member.worker.pid != pid:  # of a process that is no more
            raise errors.InvalidRequest(f"hello of {name} from pid {pid}")
        if message.id is not None:
            self.send(identity, messages.encode_reply(message.id, {}))
        self._hellos[identity] = name
        member.link.hello(identity)


def _ignore(_event: messages.Event) -> None:
    """Of a worker that tells nothing by itself."""


__all__ = ["WorkerChannel"]
