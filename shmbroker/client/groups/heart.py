"""The thread that keeps this process's members in their groups, whatever their programs do.

Owns: a control channel of its own, since a request that takes its time (a topic that is made) must
delay no heartbeat. It runs while there is a member, as a daemon; no callback and no lock of a
consumer's is ever waited for here. Members that come and go, and the coordinator's news, wake it.

While the broker is away nothing is said; after a restart each member has a whole session to come
back, so its being away is no reason for a rebalance.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from shmbroker.client.groups.membership import Membership
from shmbroker.control.groups.messages import HeartbeatAnswer
from shmbroker.errors import ClosedError, ForkedError, ShmbrokerError

if TYPE_CHECKING:
    from shmbroker.client.connection import Connection

_PATIENCE_S: Final = 5.0  # for one answer
_LONG_S: Final = 3_600.0


class Heart:
    """One connection's. Thread-safe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._control = connection.open_control()
        self._changed = threading.Condition()
        self._members: dict[Membership, _Beat] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(
        self, member: Membership, call: Callable[[], None], every_s: float | None = None
    ) -> None:
        """Beats for `member` from now on; `call` is told, on the heart's thread, when the reading
        thread has something to do, and each `every_s` seconds anyway."""
        with self._changed:
            self._members[member] = _Beat(call, every_s)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="shmbroker-heart", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def remove(self, member: Membership) -> None:
        """Beats for it no more; one that is under way is of no effect."""
        with self._changed:
            self._members.pop(member, None)
            self._changed.notify_all()

    def wake(self) -> None:
        """Somebody's heartbeat is due earlier than it was."""
        with self._changed:
            self._changed.notify_all()

    def on_news(self, event: dict[str, Any]) -> None:
        """The coordinator has something to say to a member. On the connection's thread."""
        with self._changed:
            for member in self._members:
                if member.member_id == event.get("member"):
                    member.soon()
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the thread, after the connection was closed."""
        with self._changed:
            self._closed = True
            self._members.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def beat(self, member: Membership) -> bool:
        """One heartbeat, answered; whether the reading thread has something to do. Raises what it
        is refused with, or TimedOut, BrokerGone."""
        beat = member.beat()
        if beat is None:
            return True
        try:
            ok = self._connection.request(
                "group_heartbeat", _PATIENCE_S, control=self._control, **beat.to_args()
            )
        except ShmbrokerError as error:
            member.refused(beat, error, time.monotonic())
            raise
        return member.answered(beat, HeartbeatAnswer.from_ok(ok), time.monotonic())

    def _run(self) -> None:
        while True:
            with self._changed:
                while (due := self._next()) is None:
                    if self._closed or not self._members:
                        self._thread = None
                        return
                member, kept = due
            if member.due_s() is None or kept.call_s <= time.monotonic():
                kept.calls()
                continue
            try:
                if self.beat(member):
                    kept.call()
            except (ClosedError, ForkedError):
                return
            except ShmbrokerError:
                if member.state in ("out", "failed"):
                    kept.call()

    def _next(self) -> tuple[Membership, _Beat] | None:
        """Whose turn it is; waits, and returns None to be asked again. Under the lock."""
        now, first = time.monotonic(), None
        for member, kept in self._members.items():
            due_s = member.due_s()
            due_s = kept.call_s if due_s is None else min(due_s, kept.call_s)
            if first is None or due_s < first[0]:
                first = due_s, member, kept
        if first is not None and first[0] <= now:
            return first[1], first[2]
        if self._members and not self._closed:
            left_s = _LONG_S if first is None else min(_LONG_S, first[0] - now)
            self._changed.wait(left_s)
        return None


class _Beat:
    """What there is to be done for a member."""

    def __init__(self, call: Callable[[], None], every_s: float | None) -> None:
        self.call, self._every_s = call, every_s
        self.call_s = math.inf if every_s is None else time.monotonic() + every_s

    def calls(self) -> None:
        """It is time."""
        self.call_s = math.inf if self._every_s is None else time.monotonic() + self._every_s
        self.call()


__all__ = ["Heart"]
