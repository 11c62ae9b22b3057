"""A group member's checkpoints, in its client: opened, given to partitions, moved after a restart.

Owns: which shared-memory objects the member has, and when it asks for another. What is stored, and
how, is `_core/checkpoint.pyx`'s; what becomes of it, the acceptor's (workers/checkpoints.py).
Belongs to the consuming thread.

Invariants: a partition has a slot from when the member takes it up until its acceptor knows that it
was let go; a slot bears the epoch since which the member has the partition, so what is stored too
late counts for nothing, whatever the client does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from shmbroker._core import shm
from shmbroker._core.checkpoint import Checkpoints
from shmbroker._core.reader import Mapping
from shmbroker.client.local_connection import LocalConnection
from shmbroker.control.groups.checkpoint_messages import CheckpointsOpened, OpenCheckpoints
from shmbroker.errors import NotSupported

if TYPE_CHECKING:
    from shmbroker.client.connection import Connection

Taken = tuple[str, str, int]  # topic, its id in hex, partition
_SLOTS_LEAST: Final = 1  # the acceptor gives what fits a page: some hundreds


class MemberCheckpoints:
    """The objects of one membership."""

    def __init__(self, connection: Connection, group: str, member_id: str) -> None:
        """Asks nothing yet. NotSupported with a broker elsewhere: there is no memory to share."""
        if not isinstance(connection, LocalConnection):
            raise NotSupported(
                f"checkpoints go through shared memory, and {connection.broker} is not on this "
                "host: use commit(), or auto_commit_ms"
            )
        self._connection = connection
        self._group, self._member_id = group, member_id
        self._epoch = 0  # the member's, as last told
        self._attachment = connection.epoch.value
        self.slots = Checkpoints()

    def take(self, partitions: Iterable[Taken], epoch: int) -> None:
        """The member has these now, since `epoch` unless it had them before.

        Raises MemoryBudget, and what the broker says to who is no member any more.
        """
        self._epoch = epoch
        self.reattached()
        known = set(self.slots.kept())
        fresh = [one for one in partitions if (one[0], one[2]) not in known]
        if len(fresh) > self.slots.room:
            self.slots.add(self._open(len(fresh) - self.slots.room))
        for topic, topic_id, number in fresh:
            self.slots.take(topic, bytes.fromhex(topic_id), number, epoch)

    def let_go(self, topic: str, partition: int) -> None:
        """The member has it no more, and the broker has answered that."""
        self.slots.drop(topic, partition)

    def reattached(self) -> None:
        """After an attach: if the objects are gone, all that was stored is stored again in another.

        A broker that was killed and started again goes on with the same ones. Raises as `take`.
        """
        now = self._connection.epoch.value
        if now == self._attachment:
            return
        mappings = self.slots.mappings
        if not all(mapping.current for mapping in mappings):
            self.slots.replace(self._open(max(_SLOTS_LEAST, len(self.slots.kept()))))
        self._attachment = now

    def close(self) -> None:
        """Nothing is stored any more; the broker unlinks the objects when the member left."""
        self.slots.close()

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
