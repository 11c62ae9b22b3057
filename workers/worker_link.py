"""The acceptor's side of the talk with one worker, over deaths and restarts of that worker.

    away ──hello──► ready ──its process is gone──► away
                      └── `stop` answered ──► stopped

Requests wait while the worker is away, in order, each up to its own limit. What a worker had not
answered when it died fails with BrokerGone; a kind of worker whose requests mean a state to be
reached may have them asked again of its successor (`repeats`).

Invariants: each request is answered once: by the worker, or with TimedOut, or with BrokerGone.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from shmbroker import errors
from shmbroker.control import messages
from shmbroker.workers.loop import Loop, Timer

REQUEST_LIMIT_S: Final = 30.0

OnDone = Callable[[messages.Reply], None]


@dataclass(slots=True)
class Call:
    """A request that has not been answered."""

    op: str
    args: Mapping[str, Any]
    on_done: OnDone
    timer: Timer | None = None


class WorkerLink:
    """One worker. Belongs to the loop's thread."""

    def __init__(self, name: str, loop: Loop, send: Callable[[bytes, bytes], None]) -> None:
        self.name = name
        self.state: Literal["away", "opening", "ready", "stopped"] = "away"
        self._loop, self._send = loop, send
        self._identity = b""
        self._ids = itertools.count(1)
        self._waiting: deque[Call] = deque()
        self._asked: dict[int, Call] = {}

    def request(
        self, op: str, args: Mapping[str, Any], on_done: OnDone, limit_s: float | None = None
    ) -> None:
        """Asks, or waits until it can; `on_done` gets the answer, or TimedOut after the limit."""
        call = Call(op, args, on_done)
        limit_s = REQUEST_LIMIT_S if limit_s is None else limit_s
        call.timer = self._loop.after(limit_s, lambda: self._give_up(call, limit_s))
        if self.state == "ready":
            self._ask(call)
        else:
            self._waiting.append(call)

    def hello(self, identity: bytes) -> None:
        """A new process of this worker speaks."""
        self._identity, self.state = identity, "ready"
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            self._ask(call)

    def received(self, reply: messages.Reply) -> None:
        """An answer; one that nobody waits for any more is dropped."""
        call = self._asked.pop(reply.id or 0, None)
        if call is not None:
            self._finish(call, reply)

    def gone(self) -> None:
        """The process is gone: what it left unanswered waits for the next one, or fails."""
        unanswered = [call for _, call in sorted(self._asked.items()) if call.timer is not None]
        self._asked.clear()
        again = [call for call in unanswered if self.repeats(call.op)]
        self._waiting.extendleft(reversed(again))
        if self.state != "stopped":
            self.state = "away"
        error = errors.BrokerGone(f"{self.name} died while it was asked")
        for call in unanswered:
            if not self.repeats(call.op):
                self._finish(call, messages.Reply(None, error=error))

    def stopped(self) -> None:
        """The worker has stopped for good: nothing is asked any more, and nothing waits."""
        self.state = "stopped"
        calls = [*self._asked.values(), *self._waiting]
        self._asked.clear()
        self._waiting.clear()
        for call in calls:
            self._finish(call, messages.Reply(None, error=errors.BrokerGone("the broker stops")))

    def repeats(self, _op: str) -> bool:
        """Whether a successor is asked what its predecessor did not answer."""
        return False

    def _ask(self, call: Call) -> None:
        request_id = next(self._ids)
        self._asked[request_id] = call
        self._send(self._identity, messages.encode_request(call.op, request_id, **call.args))

    def _give_up(self, call: Call, limit_s: float) -> None:
        call.timer = None
        self._asked = {n: other for n, other in self._asked.items() if other is not call}
        if call in self._waiting:
            self._waiting.remove(call)
        error = errors.TimedOut(
            f"{self.name} did not answer {call.op!r} within {limit_s:g} s "
            f"(it is {self.state}); see: shmbroker status"
        )
        call.on_done(messages.Reply(None, error=error))

    def _finish(self, call: Call, reply: messages.Reply) -> None:
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        call.on_done(replace(reply, id=None))


__all__ = ["REQUEST_LIMIT_S", "Call", "OnDone", "WorkerLink"]
