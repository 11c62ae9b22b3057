"""Consumer groups in the acceptor: members' requests in, answers and news out, time in between.

Owns: the coordinator, what of it is on its way to `meta.db`, its clock, and through which client a
member last spoke. Belongs to the acceptor's one thread. What a group is: docs/groups.md.

What arrives in one turn of the loop becomes durable in one transaction at the turn's end, and is
answered then; so the disk is waited for once a turn, however many members commit.

Invariants: nobody is told what is not stored (`control/groups/gathering.py`); news are only a
hint, and a member that misses them hears at its next heartbeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from shmbroker import errors
from shmbroker.config import GroupsSection
from shmbroker.control import messages
from shmbroker.control.groups.checkpoint_messages import OpenCheckpoints
from shmbroker.control.groups.coordinator import Coordinator
from shmbroker.control.groups.gathering import Answer, Gathering
from shmbroker.control.groups.limits import GroupSettings
from shmbroker.control.groups.messages import Commit, Fetch, Heartbeat, Leave
from shmbroker.control.groups.offsets import Bounds
from shmbroker.control.groups.store import GroupStore
from shmbroker.control.groups.values import Partition, TopicView
from shmbroker.control.meta import MetaStore
from shmbroker.control.plan import Plan
from shmbroker.control.sessions import Client
from shmbroker.control.sharedmem import SharedMemory
from shmbroker.workers.checkpoints import Checkpoints
from shmbroker.workers.logs import get_logger
from shmbroker.workers.loop import Loop, Timer
from shmbroker.workers.topics import Topics

EXPIRE_EVERY_S: Final = 60.0
_OPENING: Final = ("opening", "free")
_log = get_logger("shmbroker.groups")


class Groups:
    """See the module."""

    def __init__(
        self,
        config: GroupsSection,
        meta: MetaStore,
        topics: Topics,
        plan: Plan,
        memory: SharedMemory,
        loop: Loop,
        tell: Callable[[Client, bytes], None],
    ) -> None:
        """Takes back what is stored. `tell` sends an event to a client, if it is there."""
        self._topics, self._plan, self._memory = topics, plan, memory
        self._loop, self._tell = loop, tell
        self._retention_ms = config.offsets_retention_minutes * 60_000
        self._speakers: dict[tuple[str, str], Client] = {}
        self._failing = False  # the store, when it was last asked
        self._flushing: Timer | None = None
        self._ticking: tuple[int, Timer] | None = None  # when, by the coordinator's clock
        self.store = GroupStore(meta)
        self.coordinator = Coordinator(settings_of(config), self._views())
        self.coordinator.restore(self.store.groups(), self.store.members(), now_ms())
        self.gathering = Gathering(self.coordinator, self.store)
        self.checkpoints = Checkpoints(
            memory, self.coordinator, self.gathering, self.durable_end, loop, self.soon,
            config.offsets_flush_ms,
        )  # fmt: skip
        self.checkpoints.restore()
        self.soon()
        loop.after(EXPIRE_EVERY_S, self._expire)

    # --- requests ------------------------------------------------------------------------------

    def heartbeat(self, client: Client, request: messages.Request, answer: Answer) -> None:
        """`group_heartbeat`."""
        beat = Heartbeat.from_request(request)
        self._speakers[beat.group, beat.member_id] = client
        self.checkpoints.look(beat.group)
        self.gathering.heartbeat(beat, now_ms(), answer)
        self.soon()

    def leave(self, _client: Client, request: messages.Request, answer: Answer) -> None:
        """`group_leave`."""
        leave = Leave.from_request(request)
        self.checkpoints.look(leave.group)
        self.gathering.leave(leave, now_ms(), answer)
        self.soon()

    def commit(self, _client: Client, request: messages.Request, answer: Answer) -> None:
        """`commit_offsets`."""
        commit = Commit.from_request(request)
        self.checkpoints.look(commit.group)  # what was stored before was committed before
        self.gathering.commit(commit, self.durable_end, answer)
        self.soon()

    def fetch(self, _client: Client, request: messages.Request, answer: Answer) -> None:
        """`fetch_offsets`."""
        fetch = Fetch.from_request(request)
        self.checkpoints.look(fetch.group)
        self.gathering.fetch(fetch, answer)
        self.soon()

    def open_checkpoints(self, client: Client, request: messages.Request, answer: Answer) -> None:
        """`open_checkpoints`; only for programs of this host."""
        answer(self.checkpoints.open(client.client, OpenCheckpoints.from_request(request)))

    # --- what happens around them --------------------------------------------------------------

    def topics_changed(self) -> None:
        """Topics were made, altered or deleted: members follow."""
        self.coordinator.set_topics(self._views(), now_ms())
        self.soon()

    def durable_end(self, partition: Partition) -> int | None:
        """One past the last durable offset; None: there is no such partition.

        Raises TimedOut, retriable, while it is being opened: where it ends is not known then."""
        bounds = self.bounds(partition)
        return None if bounds is None else bounds.end

    def bounds(self, partition: Partition) -> Bounds | None:
        """Where the durable log begins and ends, as `durable_end`."""
        place = self._plan.places.get(partition)
        if place is None:
            return None
        table = self._memory.tables.get(place.writer)
        if table is None or table.slot_epoch(place.slot) != place.slot_epoch:
            raise errors.TimedOut(f"{place.topic}-{place.partition} is still being opened")
        slot = table.slot(place.slot)
        if slot["state"] in _OPENING:
            raise errors.TimedOut(f"{place.topic}-{place.partition} is still being opened")
        return Bounds(int(slot["log_start_offset"]), int(slot["durable_offset"]))

    def client_gone(self, client: Client) -> None:
        """It has hung up: what it stored counts, and is all."""
        self.checkpoints.client_gone(client.client)

    def close(self) -> None:
        """The broker stops: what members stored becomes durable, before shared memory goes."""
        self.checkpoints.close()
        self.gathering.flush(unix_ms())
        self.checkpoints.unmap()

    def soon(self) -> None:
        """Has what was asked of the coordinator stored and answered at the end of this turn."""
        if self._flushing is None:
            self._flushing = self._loop.after(0, self._flush)

    def counts(self) -> dict[str, int]:
        """For `status`: groups and members."""
        groups = [self.coordinator.group(name) for name in self.coordinator.names()]
        return {"groups": len(groups), "members": sum(len(g.members) for g in groups)}

    # --- the loop's turns ----------------------------------------------------------------------

    def _flush(self) -> None:
        if self._ticking is None or self._ticking[0] <= now_ms():  # something is due now
            self.checkpoints.look()  # before anybody is put out
        self._flushing = None  # only now: what looking hands in is flushed here
        due_ms = self.coordinator.tick(now_ms())
        failed = self.gathering.flush(unix_ms())
        if failed is not None and not self._failing:
            _log.error("groups can't be stored; their members wait", reason=str(failed))
        self._failing = failed is not None
        if not self._failing:
            self._tell_news()
        self._tick_at(due_ms)

    def _tell_news(self) -> None:
        for group, member in self.coordinator.take_news():
            client = self._speakers.get((group, member))
            if client is not None:
                self._tell(client, messages.encode_event("group", group=group, member=member))
        if len(self._speakers) > 2 * self.counts()["members"] + 64:
            self._forget_speakers()

    def _forget_speakers(self) -> None:
        here = {
            (name, member)
            for name in self.coordinator.names()
            for member in self.coordinator.group(name).members
        }
        self._speakers = {key: who for key, who in self._speakers.items() if key in here}

    def _tick_at(self, due_ms: int | None) -> None:
        if due_ms is None or (self._ticking is not None and self._ticking[0] <= due_ms):
            return
        if self._ticking is not None:
            self._ticking[1].cancel()
        timer = self._loop.after(max(0, due_ms - now_ms()) / 1000, self._tick)
        self._ticking = due_ms, timer

    def _tick(self) -> None:
        self._ticking = None
        self.soon()

    def _expire(self) -> None:
        self._loop.after(EXPIRE_EVERY_S, self._expire)
        try:
            gone = self.gathering.expire(unix_ms(), self._retention_ms)
        except errors.StoreFailed as error:
            _log.error("offsets can't be expired", reason=str(error))
            return
        if gone:
            _log.info("groups without members or offsets forgotten", groups=gone)

    def _views(self) -> list[TopicView]:
        return [TopicView(t.topic_id, t.name, t.partitions) for t in self._topics.shown()]


def settings_of(config: GroupsSection) -> GroupSettings:
    """The coordinator's settings as the operator has them."""
    return GroupSettings(
        session_timeout_ms=config.session_timeout_ms,
        session_timeout_min_ms=config.session_timeout_min_ms,
        session_timeout_max_ms=config.session_timeout_max_ms,
        heartbeat_ms=config.heartbeat_ms,
        rebalance_timeout_ms=config.rebalance_timeout_ms,
        gather_ms=config.gather_ms,
        assignor=config.assignor,
        members_max=config.members_max,
        groups_max=config.groups_max,
    )


def now_ms() -> int:
    """The coordinator's clock: monotonic."""
    return time.monotonic_ns() // 1_000_000


def unix_ms() -> int:
    """What is stored with an offset."""
    return time.time_ns() // 1_000_000


__all__ = ["EXPIRE_EVERY_S", "Groups", "now_ms", "settings_of", "unix_ms"]
