"""The acceptor's side of the talk with one writer, over deaths and restarts of that writer.

    away ──hello──► opening ──answer to `open`──► ready ──its process is gone──► away
                                                    └── `stop` answered ──► stopped

Requests wait while the writer is away or opening, in order, each up to its own limit. When the
writer dies, what it had not answered is asked again of its successor: every request means a state
to be reached (this slot is assigned, this ring is detached), so asking twice does no harm. What
`open` has done for a slot answers the `assign` that waits for it.

Invariants: each request is answered once: by the writer, or with TimedOut; `open` carries every
place of the plan, and the attached ingress rings follow before anything else.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

from shmbroker import errors
from shmbroker.control import messages
from shmbroker.workers.logs import get_logger
from shmbroker.workers.loop import Loop, Timer

REQUEST_LIMIT_S: Final = 30.0
_NOT_AGAIN: Final = frozenset(
    {"status", "memory", "log"}
)  # of the process that is gone, not of the next
_SLOTS_A_MESSAGE: Final = 1000  # a message has at most messages.MAX_REQUEST_BYTES
_log = get_logger("shmbroker.writers")

OnDone = Callable[[messages.Reply], None]


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


@dataclass(slots=True)
class _Call:
    op: str
    args: Mapping[str, Any]
    on_done: OnDone
    timer: Timer | None = None


class WriterLink:
    """One writer. Belongs to the loop's thread."""

    def __init__(
        self,
        writer: int,
        adopt: bool,
        owner: Owner,
        loop: Loop,
        send: Callable[[bytes, bytes], None],
    ) -> None:
        self.writer = writer
        self.state: Literal["away", "opening", "ready", "stopped"] = "away"
        self.adopt = adopt  # of the next process: its table has a plan
        self._owner, self._loop, self._send = owner, loop, send
        self._identity = b""
        self._ids = itertools.count(1)
        self._waiting: deque[_Call] = deque()
        self._asked: dict[int, _Call] = {}
        self._opened: list[Mapping[str, Any]] = []

    def request(
        self, op: str, args: Mapping[str, Any], on_done: OnDone, limit_s: float | None = None
    ) -> None:
        """Asks, or waits until it can; `on_done` gets the answer, or TimedOut after the limit."""
        call = _Call(op, args, on_done)
        limit_s = REQUEST_LIMIT_S if limit_s is None else limit_s
        call.timer = self._loop.after(limit_s, lambda: self._give_up(call, limit_s))
        if self.state == "ready":
            self._ask(call)
        else:
            self._waiting.append(call)

    def hello(self, identity: bytes) -> None:
        """A new process of this writer speaks: tells it all it has to know."""
        self._identity, self.state, self._opened = identity, "opening", []
        slots = self._owner.slots_to_open(self.writer)
        parts = [slots[n : n + _SLOTS_A_MESSAGE] for n in range(0, len(slots), _SLOTS_A_MESSAGE)]
        parts = parts or [[]]
        for n, part in enumerate(parts):
            more = n + 1 < len(parts)
            args: dict[str, Any] = {"adopt": self.adopt, "slots": part}
            self._ask(_Call("open", args | ({"more": True} if more else {}), self._on_open(more)))

    def received(self, reply: messages.Reply) -> None:
        """An answer; one that nobody waits for any more is dropped."""
        call = self._asked.pop(reply.id or 0, None)
        if call is not None:
            self._finish(call, reply)

    def gone(self) -> None:
        """The process is gone: what it left unanswered waits for the next one."""
        self.adopt = True
        unanswered = [call for _, call in sorted(self._asked.items()) if call.timer is not None]
        self._asked.clear()
        again = [call for call in unanswered if call.op not in _NOT_AGAIN]
        self._waiting.extendleft(reversed(again))
        if self.state != "stopped":
            self.state = "away"
        error = errors.BrokerGone(f"writer-{self.writer} died while it was asked")
        for call in unanswered:
            if call.op in _NOT_AGAIN:
                self._finish(call, messages.Reply(None, error=error))

    def stopped(self) -> None:
        """The writer has stopped for good: nothing is asked any more, and nothing waits."""
        self.state = "stopped"
        calls = [*self._asked.values(), *self._waiting]
        self._asked.clear()
        self._waiting.clear()
        for call in calls:
            self._finish(call, messages.Reply(None, error=errors.BrokerGone("the broker stops")))

    def _ask(self, call: _Call) -> None:
        request_id = next(self._ids)
        self._asked[request_id] = call
        self._send(self._identity, messages.encode_request(call.op, request_id, **call.args))

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
            self._ask(_Call("attach_ingress", args, self._log_failure("attach_ingress", args)))
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

    def _give_up(self, call: _Call, limit_s: float) -> None:
        call.timer = None
        self._asked = {n: other for n, other in self._asked.items() if other is not call}
        if call in self._waiting:
            self._waiting.remove(call)
        error = errors.TimedOut(
            f"writer-{self.writer} did not answer {call.op!r} within {limit_s:g} s "
            f"(it is {self.state}); see: shmbroker status"
        )
        call.on_done(messages.Reply(None, error=error))

    def _finish(self, call: _Call, reply: messages.Reply) -> None:
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        call.on_done(replace(reply, id=None))


__all__ = ["REQUEST_LIMIT_S", "OnDone", "Owner", "WriterLink"]
