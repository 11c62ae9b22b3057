"""The records of a broker on this host: its rings, mapped, and its segment files.

Owns: where the partitions of one consumer are, and the files of those whose records are no longer
in their ring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from shmbroker._core import reader as core
from shmbroker._core import shm
from shmbroker._core.reader import PartitionReader, RecordBatch
from shmbroker.client.metadata import Metadata, PartitionInfo, TopicInfo, TopicPartition
from shmbroker.client.partition_files import PartitionFiles
from shmbroker.client.source import Ends, key_of
from shmbroker.errors import BrokerGone, PartitionOffline, ShmbrokerError, UnknownTopic

if TYPE_CHECKING:
    from shmbroker.client.connection import Connection

_NOWHERE = (1 << 63) - 1  # past every end, until `seek` says where


class LocalSource:
    """A Source, see there."""

    kind: type[PartitionReader] = PartitionReader
    worth_spinning_ns: int = 30_000

    def __init__(self, connection: Connection, metadata: Metadata) -> None:
        self._connection, self._metadata = connection, metadata
        self._files: dict[TopicPartition, PartitionFiles] = {}

    def reader(self, topic: str, partition: int, appended: bool) -> PartitionReader:
        """See Source."""
        return self.reader_at(self._metadata.partition(topic, partition), appended)

    def reader_at(self, place: PartitionInfo, appended: bool) -> PartitionReader:
        """As `reader`, where the metadata says; asks nothing."""
        return self.kind(
            place.topic,
            place.partition,
            writer=place.writer,
            slot=place.slot,
            slot_epoch=place.slot_epoch,
            table=self._connection.table(place.writer),
            open_ring=self._open_ring(place),
            appended=appended,
            position=_NOWHERE,
        )

    def bind(self, reader: PartitionReader) -> None:
        """See Source."""
        self.bind_to(reader, self._metadata.get(reader.topic))

    def find(self, reader: PartitionReader) -> None:
        """See Source."""
        self.bind_to(reader, self._metadata.refresh(reader.topic))

    def seek(self, reader: PartitionReader, offset: int, leader_epoch: int = -1) -> None:
        """See Source."""
        reader.seek(offset)
        if leader_epoch >= 0:
            reader.leader_epoch, reader.recovery = leader_epoch, -1  # to be looked at

    def fetch(self, reader: PartitionReader, most: int) -> RecordBatch | None:
        """See Source."""
        return self._files_of(reader).fetch(reader, most)

    def at_end(self, reader: PartitionReader) -> None:
        """See Source."""
        state = reader.look()
        if state == "offline":
            raise PartitionOffline(reader.topic, reader.partition, self.reason(reader))
        if state in ("closed", "free"):
            connection = self._connection
            if not connection.closing and not connection.epoch.value & 1:
                try:
                    self.find(reader)  # or UnknownTopic
                except BrokerGone:  # it says that it is stopping, and we have yet to hear it
                    connection.look()  # raises when it has been gone for too long
                reader.look()
            reader.settled = core.STATE_NAMES.index(state)

    def ends(self, readers: Iterable[PartitionReader]) -> dict[TopicPartition, Ends]:
        """See Source."""
        return {key_of(r): Ends(r.log_start_offset, r.end) for r in readers}

    def before_time(self, reader: PartitionReader, timestamp_ms: int) -> int | None:
        """See Source."""
        first = self._files_of(reader).offset_for_time(reader, timestamp_ms)
        return max(first, reader.log_start_offset)

    def probe(self, reader: PartitionReader) -> PartitionReader:
        """See Source."""
        return self.reader(reader.topic, reader.partition, reader.appended)

    def drop(self, reader: PartitionReader) -> None:
        """See Source."""
        reader.close()

    def close(self) -> None:
        """See Source."""
        for files in self._files.values():
            files.close()

    # --- places --------------------------------------------------------------------------------

    def bind_to(self, reader: PartitionReader, topic: TopicInfo) -> None:
        """As `bind`, to where the metadata says. Raises UnknownTopic."""
        if reader.partition >= len(topic.partitions):
            raise UnknownTopic(reader.topic, reader.partition, len(topic.partitions))
        place = topic.partitions[reader.partition]
        table = self._connection.table(place.writer)
        reader.bind(place.writer, place.slot, place.slot_epoch, table, self._open_ring(place))
        files = self._files.get(key_of(reader))
        if files is not None and files.directory != place.directory:
            files.close()
            del self._files[key_of(reader)]

    def _open_ring(self, place: PartitionInfo) -> Callable[[int], shm.ShmObject]:
        connection, name = self._connection, f"l{place.writer}.{place.slot}"
        return lambda generation: connection.open_object(f"{name}.{generation}", shm.KIND_LOG)

    def _files_of(self, reader: PartitionReader) -> PartitionFiles:
        found = self._files.get(key_of(reader))
        if found is None:
            place = self._metadata.partition(reader.topic, reader.partition)
            found = self._files[key_of(reader)] = PartitionFiles(place.directory)
        return found

    def reason(self, reader: PartitionReader) -> str:
        """Why the partition is offline, in the broker's words."""
        try:
            answer = self._connection.request(
                "partition_state", topic=reader.topic, partition=reader.partition
            )
            return str(answer.get("reason") or f"error {reader.reason}")
        except ShmbrokerError:
            return f"error {reader.reason}"


__all__ = ["LocalSource"]
