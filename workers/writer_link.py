"""The acceptor's side of the talk with one writer: a WorkerLink whose hello is followed by `open`.

    away ──hello──► opening ──answer to `open`──► ready ──its process is gone──► away
                                                    └── `stop` answered ──► stopped

When a writer dies, what it had not answered is asked again of its successor: every request means a
state to be reached (this slot is assigned, this ring is detached), so asking twice does no harm.
What `open` has done for a slot answers the `assign` that waits for it.

Invariants: `open` carries every place of the plan, and the attached ingress rings follow before
anything else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from shmbroker import errors
from shmbroker.control import messages
from shmbroker.workers.logs import get_logger
from shmbroker.workers.loop import Loop
from shmbroker.workers.worker_link import Call, OnDone, WorkerLink

_NOT_AGAIN: Final = frozenset(
    {"status", "memory", "log"}
)  # of the process that is gone, not of the next
_SLOTS_A_MESSAGE: Final = 1000  # a message has at most messages.MAX_REQUEST_BYTES
_log = get_logger("shmbroker.writers")


class Owner(Protocol):
    """What a link asks of the acceptor."""

    def slots_to_open(self, writer: int) -> list[dict[str, Any]]:
        """The `assign` arguments of every place of the writer."""

    def rings_to_attach(self, writer: int) -> list[dict[str, Any]]:
        """The `attach_ingress` arguments of the rings that the writer had."""

    def writer_opened(self, writer: int, partitions: Iterable[Mapping[str, Any]]) -> None:
        """`open` was answered; the writer is ready."""

    def writer_failed(self, writer: int, error: errors.ShmbrokerError) -> None:
        """`open` was refused: the process is of no use."""


class WriterLink(WorkerLink):
    """One writer. Belongs to the loop's thread."""

    def __init__(
        self,
        writer: int,
        adopt: bool,
        owner: Owner,
        loop: Loop,
        send: Callable[[bytes, bytes], None],
    ) -> None:
        super().__init__(f"writer-{writer}", loop, send)
        self.writer = writer
        self.adopt = adopt  # of the next process: its table has a plan
        self._owner = owner
        self._opened: list[Mapping[str, Any]] = []

    def hello(self, identity: bytes) -> None:
        """A new process of this writer speaks: tells it all it has to know."""
        self._identity, self.state, self._opened = identity, "opening", []
        slots = self._owner.slots_to_open(self.writer)
        parts = [slots[n : n + _SLOTS_A_MESSAGE] for n in range(0, len(slots), _SLOTS_A_MESSAGE)]
        parts = parts or [[]]
        for n, part in enumerate(parts):
            more = n + 1 < len(parts)
            args: dict[str, Any] = {"adopt": self.adopt, "slots": part}
            self._ask(Call("open", args | ({"more": True} if more else {}), self._on_open(more)))

    def gone(self) -> None:
        """See WorkerLink; the next process adopts."""
        self.adopt = True
        super().gone()

    def repeats(self, op: str) -> bool:
        """All but what was about that very process."""
        return op not in _NOT_AGAIN

    def _on_open(self, more: bool) -> OnDone:
        def done(reply: messages.Reply) -> None:
            if self.state != "opening":
                return
            if reply.error is not None:
                self._owner.writer_failed(self.writer, reply.error)
                return
            self._opened += reply.ok.get("partitions", ())
            if not more:
                self._make_ready()

        return done

    def _make_ready(self) -> None:
        for args in self._owner.rings_to_attach(self.writer):
            self._ask(Call("attach_ingress", args, self._log_failure("attach_ingress", args)))
        self.state = "ready"
        waiting, self._waiting = self._waiting, deque()
        by_slot = {found["slot"]: found for found in self._opened}
        self._owner.writer_opened(self.writer, self._opened)
        for call in waiting:
            found = by_slot.get(call.args.get("slot")) if call.op == "assign" else None
            if found is not None:
                self._finish(call, messages.Reply(None, found))
            else:
                self._ask(call)

    def _log_failure(self, op: str, args: Mapping[str, Any]) -> OnDone:
        def done(reply: messages.Reply) -> None:
            if reply.error is not None:
                _log.error("writer refused", op=op, args=dict(args), error=str(reply.error))

        return done


__all__ = ["Owner", "WriterLink"]
