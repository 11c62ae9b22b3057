"""The workers that programs elsewhere talk to: one ingress process and the readers.

Owns: their links, their specifications, and their end. They are local clients of this broker like
any other program of its user, so they stop first and while the writers still take in what they
have: nothing that they acknowledged, or were about to, is cut off.

Nothing of this is there while nothing listens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from shmbroker.control import messages
from shmbroker.control.listening import Listening, NetworkSpec
from shmbroker.places import Places
from shmbroker.workers.logs import get_logger
from shmbroker.workers.loop import Loop
from shmbroker.workers.supervisor import Supervisor, Worker
from shmbroker.workers.worker_channel import WorkerChannel
from shmbroker.workers.worker_link import WorkerLink

READER_MODULE: Final = "shmbroker.workers.reader"
INGRESS_MODULE: Final = "shmbroker.workers.ingress"
_MARGIN_S: Final = 1.0  # beyond drain_s, for the exit
_log = get_logger("shmbroker.front")
Role = Literal["reader", "ingress"]


class _Link(WorkerLink):
    """Tells when a process of its worker is bound and ready."""

    def __init__(self, worker: Worker, loop: Loop, send: Any, on_ready: Callable[[], None]) -> None:
        super().__init__(worker.name, loop, send)
        self._worker, self._on_ready = worker, on_ready

    def hello(self, identity: bytes) -> None:
        super().hello(identity)
        self._worker.ready = True
        _log.info("front end ready", worker=self.name, pid=self._worker.pid)
        self._on_ready()


class FrontEnds:
    """All of them. Belongs to the acceptor's one thread."""

    def __init__(
        self,
        listening: Listening | None,
        places: Places,
        loop: Loop,
        supervisor: Supervisor,
        channel: WorkerChannel,
        on_ready: Callable[[], None],
        module: str | None = None,
    ) -> None:
        """Starts nothing yet. `module`: in place of both real ones, for tests."""
        self._listening, self._places = listening, places
        self._loop, self._supervisor, self._channel = loop, supervisor, channel
        self._on_ready = on_ready
        self._modules = {"reader": module or READER_MODULE, "ingress": module or INGRESS_MODULE}
        self._links: dict[str, WorkerLink] = {}
        self._workers: dict[str, Worker] = {}
        self._then: Callable[[], None] | None = None

    def start(self) -> None:
        """Starts all; the supervisor starts them again."""
        if self._listening is None:
            return
        self._add("ingress", 0)
        for number in range(self._listening.listen.readers):
            self._add("reader", number)

    @property
    def ready(self) -> bool:
        """Whether all are bound."""
        return all(worker.ready for worker in self._workers.values())

    @property
    def pids(self) -> set[int | None]:
        """Of the processes that are there."""
        return {worker.pid for worker in self._workers.values() if worker.pid}

    @property
    def links(self) -> Mapping[str, WorkerLink]:
        """By name."""
        return self._links

    def stop(self, drain_s: float, then: Callable[[], None]) -> None:
        """Has each take in nothing more, give on what it has, and end; calls `then` when all are
        gone, after `drain_s` and a moment at the latest. None is started again: one that is just
        away has nothing that its clients don't send once more."""
        self._then = then
        limit_s = drain_s + _MARGIN_S
        for name, link in self._links.items():
            worker = self._workers[name]
            self._supervisor.retire(worker)
            if link.state == "ready":
                args = {"drain_s": drain_s}
                link.request("stop", args, partial(self._stopped, name), limit_s)
            else:
                self._supervisor.kill(worker)
        self.worker_gone()

    def worker_gone(self) -> None:
        """A process of the broker is gone."""
        if not any(worker in self._supervisor.alive() for worker in self._workers.values()):
            self._done()

    def describe(self, told: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One entry a worker for `status`: its own words, and what is known without them."""
        return [
            dict(told.get(name, {})) | {
                "name": name, "role": worker.role, "pid": worker.pid,
                "state": self._links[name].state, "restarts": worker.restarts,
                "answered": name in told,
            }
            for name, worker in self._workers.items()
        ]  # fmt: skip

    def _add(self, role: Role, number: int) -> None:
        name = f"{role}-{number}"
        make = partial(self._spec, role, number)
        worker = self._supervisor.add(name, role, self._modules[role], make)
        link = _Link(worker, self._loop, self._channel.send, self._on_ready)
        self._channel.add(link, worker)
        self._links[name], self._workers[name] = link, worker

    def _spec(self, role: Role, number: int) -> NetworkSpec:
        listening = self._listening
        assert listening is not None
        is_reader = role == "reader"
        path = listening.data_path(number) if is_reader else listening.unix.get("ingress")
        return NetworkSpec(
            role=role,
            number=number,
            instance=self._places.instance,
            runtime_dir=self._places.runtime_dir,
            data_dir=self._places.data_dir,
            workers_address=self._places.zmq_address("workers"),
            tcp=listening.tcp("data" if is_reader else "ingress"),
            unix_path=Path(path) if path else None,
            token=listening.data_token.encode(),
            tls=listening.tls if is_reader else None,
            curve=listening.curve,
            listen=listening.listen,
            parent_pid=os.getpid(),
        )

    def _stopped(self, name: str, reply: messages.Reply) -> None:
        worker = self._workers[name]
        if reply.error is not None:
            _log.warning("front end did not drain", worker=name, cause=str(reply.error))
            self._supervisor.kill(worker)
        else:
            self._loop.after(_MARGIN_S, lambda: self._supervisor.kill(worker))
        self._links[name].stopped()
        self.worker_gone()

    def _done(self) -> None:
        then, self._then = self._then, None
        if then is not None:
            then()


__all__ = ["INGRESS_MODULE", "READER_MODULE", "FrontEnds"]
