"""One member of a group, as its client knows it: a state machine without I/O, the clock passed in.

    joining --answer--> in the group --fenced, or known no more--> out --`rejoin`--> joining …
                            └--`fail`: another program has its place, or nonsense--> failed

Between two threads: the heart (heart.py) says `beat` and hears `answered` or `refused`; the thread
that reads asks for `task`, lets go of what it lost, takes up what it gained, and says `took`.

Invariants: the version that is said back is one whose whole assignment the reading thread has taken
up, so the coordinator gives nothing on that is still being worked on; who is out holds nothing of
what it had, and comes back under another member id.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from shmbroker.control.groups.messages import Heartbeat, HeartbeatAnswer
from shmbroker.control.groups.values import Partition, Subscription
from shmbroker.errors import (
    BrokerGone,
    FencedMemberEpoch,
    GroupNotFound,
    ShmbrokerError,
    StoreFailed,
    TimedOut,
    UnknownMember,
)

_AGAIN_S: Final = 0.25  # after a heartbeat that was not answered
#: What says that the coordinator knows this member no more, or never under this epoch.
OUT: Final = (UnknownMember, FencedMemberEpoch, GroupNotFound)
_PASSING: Final = (TimedOut, BrokerGone, StoreFailed)


@dataclass(frozen=True, slots=True)
class Task:
    """What the reading thread has to see to. `lost`: it is out, all that it held is others' now."""

    lost: bool
    version: int
    assignment: Mapping[Partition, str]  # with the topics' names: all that it shall hold


@dataclass(frozen=True, slots=True)
class Options:
    """What a member asks for; see Client.consumer."""

    group: str
    wants: Subscription
    instance_id: str | None = None
    session_timeout_ms: int | None = None
    rebalance_timeout_ms: int | None = None
    name: str = ""


class Membership:
    """See the module. Thread-safe."""

    def __init__(self, options: Options) -> None:
        """Nothing said yet."""
        self.options: Final = options
        self.member_id = uuid.uuid4().hex
        self.epoch = 0
        self._lock = threading.Lock()
        self._version = 0  # taken up
        self._told: tuple[int, Mapping[Partition, str]] = (0, {})
        self._out = False
        self._failed: ShmbrokerError | None = None
        self._due_s = 0.0
        self._again = False  # something happened since the last beat began

    # --- the heart's half ----------------------------------------------------------------------

    def beat(self) -> Heartbeat | None:
        """What is to be said now; None: nothing until `rejoin`."""
        with self._lock:
            if self._out or self._failed is not None:
                return None
            self._again = False
            wants = self.options.wants if self.epoch == 0 else None
            return Heartbeat(
                self.options.group,
                self.member_id,
                self.epoch,
                self._version,
                self.options.instance_id,
                self.options.name,
                wants,
                self.options.session_timeout_ms if wants else None,
                self.options.rebalance_timeout_ms if wants else None,
            )

    def due_s(self) -> float | None:
        """When to say it, by the monotonic clock; None: not before something happens."""
        with self._lock:
            return None if self._out or self._failed is not None else self._due_s

    def soon(self) -> None:
        """Something happened: it is due now."""
        with self._lock:
            self._due_s, self._again = 0.0, True

    def answered(self, beat: Heartbeat, answer: HeartbeatAnswer, now_s: float) -> bool:
        """The coordinator's answer to `beat`; whether the reading thread has something to do."""
        with self._lock:
            if beat.member_id != self.member_id:  # of the life before
                return False
            self.epoch = answer.epoch
            if not self._again:
                self._due_s = now_s + answer.heartbeat_in_ms / 1000
            if answer.assignment is not None:
                self._told = (
                    answer.version,
                    {
                        (topic, number): name
                        for topic, (name, numbers) in answer.assignment.items()
                        for number in numbers
                    },
                )
            return self._told[0] != self._version

    def refused(self, beat: Heartbeat, error: ShmbrokerError, now_s: float) -> bool:
        """It was answered with an error, or by none; whether the reading thread has something to
        do."""
        with self._lock:
            if beat.member_id != self.member_id:
                return False
            self._due_s = now_s + _AGAIN_S
            if isinstance(error, _PASSING):
                return False
            if isinstance(error, OUT):
                return self._go_out()
            self._failed = error
            return True

    # --- the reading thread's half -------------------------------------------------------------

    def task(self) -> Task | None:
        """What is to be done now; raises what has ended the membership for good."""
        with self._lock:
            if self._failed is not None:
                raise self._failed
            if self._out:
                return Task(True, 0, {})
            version, assignment = self._told
            return Task(False, version, assignment) if version != self._version else None

    def took(self, version: int) -> None:
        """All that was told with that version is taken up, and nothing else is held."""
        with self._lock:
            self._version = version
            self._due_s, self._again = 0.0, True

    def put_out(self, error: ShmbrokerError) -> None:
        """Something else than a heartbeat was refused with one of OUT, or with FencedInstance."""
        with self._lock:
            if isinstance(error, OUT):
                self._go_out()
            else:
                self._failed = error

    def rejoin(self) -> None:
        """Everything is let go: begins anew, under another id."""
        with self._lock:
            self.member_id = uuid.uuid4().hex
            self.epoch = self._version = 0
            self._told = (0, {})
            self._out, self._due_s = False, 0.0

    @property
    def state(self) -> str:
        """For people: joining, in, out, failed."""
        with self._lock:
            if self._failed is not None:
                return "failed"
            return "out" if self._out else "in" if self.epoch else "joining"

    def _go_out(self) -> bool:
        self._out = True
        return True


__all__ = ["OUT", "Membership", "Options", "Task"]
