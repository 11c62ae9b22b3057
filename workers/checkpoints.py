"""Checkpoints through shared memory, made durable: the acceptor's half.

Owns: the objects `<prefix>-k<N>`, one or more for each local member that asked, from their making
to their unlinking, and what was last seen in them. A member's client stores in them (checkpoint.h);
every `offsets_flush_ms` what was stored goes into the Gathering as a commit of that member, with
the checks of any other: who has the partition, since which epoch, and no further than the durable
end.

Invariants: what happens in a group comes after what its members stored before (`look`), so a member
that lets a partition go, leaves or is put out loses no checkpoint; an object is unlinked only after
a last look at every slot is durable, so the death of a member, or of the acceptor (the next one
adopts the objects), loses none either; nothing that stands in an object is believed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from shmbroker import errors
from shmbroker._core.checkpoint import CheckpointsView
from shmbroker.control.groups.checkpoint_messages import CheckpointsOpened, OpenCheckpoints
from shmbroker.control.groups.coordinator import Coordinator
from shmbroker.control.groups.gathering import Gathering
from shmbroker.control.groups.messages import Commit, CommitAnswer, CommitRow
from shmbroker.control.groups.values import Partition
from shmbroker.control.sharedmem import SharedMemory
from shmbroker.workers.logs import get_logger
from shmbroker.workers.loop import Loop, Timer

FLUSH_MS: Final = 100  # offsets_flush_ms unless an operator says otherwise
_log = get_logger("shmbroker.checkpoints")

DurableEnd = Callable[[Partition], int | None]


@dataclass(slots=True, eq=False)
class _Object:
    """One object. `ending`: it goes when all that stands in it is durable."""

    number: int
    view: CheckpointsView
    client: int
    pending: int = 0  # commits on their way to the store
    ending: bool = False
    # Slot -> the partition, and its durable end that the slot was capped at
    capped: dict[int, tuple[Partition, int]] = field(default_factory=dict)


class Checkpoints:
    """All objects. Belongs to the acceptor's one thread."""

    def __init__(
        self,
        memory: SharedMemory,
        coordinator: Coordinator,
        gathering: Gathering,
        durable_end: DurableEnd,
        loop: Loop,
        flush_soon: Callable[[], None],
        flush_ms: int = FLUSH_MS,
    ) -> None:
        """`flush_soon` has the gathering flushed, at the latest when this turn of the loop ends."""
        self._memory, self._coordinator, self._gathering = memory, coordinator, gathering
        self._durable_end, self._loop, self._flush_soon = durable_end, loop, flush_soon
        self._flush_s = flush_ms / 1000
        self._objects: dict[int, _Object] = {}
        self._of: dict[str, dict[int, _Object]] = {}  # by group
        self._timer: Timer | None = None

    def restore(self) -> None:
        """Adopts what a killed acceptor left: all of it counts that its members may say. Once, when
        the coordinator was restored."""
        for number in sorted(self._memory.checkpoints()):
            try:
                found = self._memory.open_checkpoints(number)
                try:
                    view = CheckpointsView(found.name, found.fileno())
                finally:
                    found.close()
            except (OSError, ValueError) as error:
                _log.warning("checkpoints not adopted", number=number, cause=str(error))
                self._memory.drop_checkpoints(number)
                continue
            self._add(_Object(number, view, view.client))
        for one in list(self._objects.values()):
            self._look(one)
        self._end_of_members()
        self._again()

    def open(self, client: int, asked: OpenCheckpoints) -> Mapping[str, Any]:
        """A member gets one more object. Raises MemoryBudget, and for who is no member (any more)
        UnknownMember, FencedMemberEpoch or GroupNotFound."""
        self._coordinator.check_commit(Commit(asked.group, (), asked.member_id, asked.epoch))
        number = next(n for n in itertools.count(1) if n not in self._objects)
        made, slots = self._memory.make_checkpoints(
            number, asked.slots, client, asked.group, asked.member_id
        )
        try:
            view = CheckpointsView(made.name, made.fileno())
        except BaseException:
            self._memory.drop_checkpoints(number)
            raise
        finally:
            made.close()
        self._add(_Object(number, view, client))
        self._again()
        return CheckpointsOpened(f"k{number}", slots).to_ok()

    def look(self, group: str | None = None) -> None:
        """Hands in what members of the group (None: of every one) have stored since the last look.

        To be called before anything in the group is changed, given up or told. Costs a load for
        each object in which nothing was stored.
        """
        objects = self._objects if group is None else self._of.get(group)
        if objects:
            for one in list(objects.values()):
                if one.view.stirred:
                    self._look(one)

    def client_gone(self, client: int) -> None:
        """The client has hung up: nothing of it is stored any more; its objects go."""
        for one in list(self._objects.values()):
            if one.client == client:
                self._end(one)

    def close(self) -> None:
        """The broker stops: hands everything in, for a last flush by the caller, and unmaps."""
        for one in list(self._objects.values()):
            self._look(one, everything=True)
        if self._timer is not None:
            self._timer.cancel()

    def unmap(self) -> None:
        """After that flush; whether the objects stay is for who owns the prefix to say."""
        for one in self._objects.values():
            one.view.close()
        self._objects.clear()
        self._of.clear()

    # Inside

    def _add(self, one: _Object) -> None:
        self._objects[one.number] = one
        self._of.setdefault(one.view.group, {})[one.number] = one

    def _again(self) -> None:
        if self._timer is None and self._objects:
            self._timer = self._loop.after(self._flush_s, self._round)

    def _round(self) -> None:
        self._timer = None
        self.look()
        self._end_of_members()
        self._again()

    def _end_of_members(self) -> None:
        """Those that are out have left nothing behind: what put them out looked before."""
        for one in list(self._objects.values()):
            if one.ending or not self._is_member(one):
                self._end(one)

    def _is_member(self, one: _Object) -> bool:
        try:
            return one.view.member in self._coordinator.group(one.view.group).members
        except errors.GroupNotFound:
            return False

    def _end(self, one: _Object) -> None:
        one.ending = True
        self._look(one, everything=True)
        self._settle(one)

    def _settle(self, one: _Object) -> None:
        if one.ending and not one.pending and not one.view.stirred:
            self._drop(one)

    def _drop(self, one: _Object) -> None:
        if self._objects.pop(one.number, None) is not None:
            of_group = self._of[one.view.group]
            del of_group[one.number]
            if not of_group:
                del self._of[one.view.group]
            self._memory.drop_checkpoints(one.number)
            one.view.close()

    def _look(self, one: _Object, everything: bool = False) -> None:
        try:
            rows = one.view.look(everything)
        except ValueError as error:
            _log.warning(
                "a member's checkpoints are refused from now on",
                group=one.view.group, member=one.view.member, client=one.client, cause=str(error),
            )  # fmt: skip
            self._drop(one)
            return
        by_epoch: dict[int, dict[int, CommitRow]] = {}
        for slot, topic, number, epoch, offset, leader_epoch in rows:
            row = CommitRow((topic, number), offset, leader_epoch)
            if not self._is_capped_still(one, slot, row):
                by_epoch.setdefault(epoch, {})[slot] = row
        for epoch, slots in by_epoch.items():
            commit = Commit(one.view.group, tuple(slots.values()), one.view.member, epoch)
            one.pending += 1
            self._gathering.commit(commit, self._durable_end, partial(self._answered, one, slots))
        if by_epoch:
            self._flush_soon()

    def _is_capped_still(self, one: _Object, slot: int, row: CommitRow) -> bool:
        """It was committed up to the durable end before, and that has not moved."""
        partition, before = one.capped.pop(slot, (None, 0))
        if partition != row.partition or one.ending or row.offset <= before:
            return False
        try:
            end = self._durable_end(row.partition)
        except errors.ShmbrokerError:
            return False
        if end is None or end > before:
            return False
        self._cap(one, slot, row.partition, before)
        return True

    def _cap(self, one: _Object, slot: int, partition: Partition, end: int) -> None:
        one.capped[slot] = (partition, end)
        one.view.forget(slot)  # it is looked at again in each round, until it is durable

    def _answered(
        self, one: _Object, slots: Mapping[int, CommitRow], ok: Mapping[str, Any] | BaseException
    ) -> None:
        one.pending -= 1
        if one.number not in self._objects:
            return
        if isinstance(ok, errors.StoreFailed):
            for slot in slots:
                one.view.forget(slot)  # once more, in the next round
        elif not isinstance(ok, BaseException):  # else who stored it is out: it counts for nothing
            answer = CommitAnswer.from_ok(ok)
            for slot, row in slots.items():
                refusal = answer.refused.get(row.partition)
                if refusal is not None and refusal.retriable:
                    one.view.forget(slot)  # the partition is still being opened
                end = answer.committed.get(row.partition)
                if end is not None and end < row.offset and not one.ending:
                    self._cap(one, slot, row.partition, end)
        self._settle(one)


__all__ = ["FLUSH_MS", "Checkpoints"]
