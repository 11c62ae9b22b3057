"""A group member's checkpoints, in its client: opened, given to partitions, moved after a restart.

Owns: which shared-memory objects the member has, and when it asks for another. What is stored, and
how, is `_core/checkpoint.pyx`'s; what becomes of it, the acceptor's (workers/checkpoints.py).
Belongs to the consuming thread.

Invariants: a partition has a slot from when the member takes it up until it lets it go, and that
slot is another's only when the acceptor knows; a slot bears an epoch at which the member has had
the partition, so what is stored too late counts for nothing, whatever the client does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from shmbroker._core import shm
from shmbroker._core.checkpoint import Checkpoints
from shmbroker._core.reader import Mapping, RecordStream
from shmbroker.client.local_connection import LocalConnection
from shmbroker.control.groups.checkpoint_messages import CheckpointsOpened, OpenCheckpoints
from shmbroker.errors import NotSupported

if TYPE_CHECKING:
    from shmbroker.client.connection import Connection

Taken = tuple[str, str, int]  # topic, its id in hex, partition


class MemberCheckpoints:
    """The objects of one membership."""

    def __init__(
        self, connection: Connection, stream: RecordStream, group: str, by_itself: bool = False
    ) -> None:
        """Asks nothing yet. `by_itself`: each position of `stream` that was asked past is stored.

        NotSupported with a broker elsewhere: there is no memory to share.
        """
        if not isinstance(connection, LocalConnection):
            raise NotSupported(
                f"checkpoints go through shared memory, and {connection.broker} was not reached "
                "by it: use commit(), or auto_commit_ms"
            )
        self._connection, self._stream = connection, stream
        self._group, self._by_itself = group, by_itself
        self._attachment = connection.epoch.value
        self._begin("", 0)

    def take(self, partitions: Iterable[Taken], member_id: str, epoch: int) -> None:
        """The member has these now; a slot for those that have none. Under another id it is another
        member, and nothing of the one before counts.

        Raises MemoryBudget, and what the broker says to who is no member any more.
        """
        if member_id != self._member_id:
            self.end()
            self._begin(member_id, epoch)
        self._epoch = epoch
        self.reattached()
        self.slots.recycle()
        known = set(self.slots.kept())
        fresh = [one for one in partitions if (one[0], one[2]) not in known]
        if len(fresh) > self.slots.room:
            self.slots.add(self._open(len(fresh) - self.slots.room))
        for topic, topic_id, number in fresh:
            self.slots.take(topic, bytes.fromhex(topic_id), number, epoch)

    def reattached(self) -> None:
        """After an attach: if the objects are gone, all that was stored is stored again in another.

        A broker that was killed and started again goes on with the same ones. Raises as `take`.
        """
        now = self._connection.epoch.value
        if now == self._attachment:
            return
        if not all(mapping.current for mapping in self.slots.mappings):
            self.slots.replace(self._open(max(1, len(self.slots.kept()))))
        self._attachment = now

    def end(self) -> None:
        """Nothing is stored any more; the broker unlinks the objects when the member is out."""
        self.slots.close()
        self._stream._checkpoints = None

    def _begin(self, member_id: str, epoch: int) -> None:
        self._member_id, self._epoch = member_id, epoch
        self.slots = Checkpoints()
        self._stream._checkpoints = self.slots
        self._stream._stores_itself = self._by_itself

    def _open(self, slots: int) -> Mapping:
        asked = OpenCheckpoints(self._group, self._member_id, self._epoch, slots)
        opened = CheckpointsOpened.from_ok(
            self._connection.request("open_checkpoints", **asked.to_args())
        )
        found = self._connection.open_object(opened.suffix, shm.KIND_CHECKPOINTS, writable=True)
        try:
            return Mapping(found.name, found.fileno(), writable=True)
        finally:
            found.close()


__all__ = ["MemberCheckpoints", "Taken"]
