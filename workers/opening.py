"""Opening a partition in its writer: from disk, or out of the hands of a killed writer.

Owns the decision which of the two. Taking over (invariants 8 and 10): the slot's positions and
ring are believed after every batch past the durable position was verified; the log is scanned
exactly up to that position, for the producer table, and nothing is cut. Whatever does not add up
is recovered from disk.
"""

from __future__ import annotations

from typing import Any

from shmbroker import errors
from shmbroker._core import engine as core
from shmbroker.config import TopicSettings
from shmbroker.log.iomode import IoMode
from shmbroker.log.partition import PartitionLog
from shmbroker.workers.logs import get_logger
from shmbroker.workers.rings import Rings
from shmbroker.workers.served import Assignment, Served

_log = get_logger("shmbroker.writer")
_ALIVE = ("online", "no_space")


class Opener:
    """Opens partitions into one engine."""

    def __init__(
        self, engine: core.Engine, rings: Rings, io_mode: IoMode, flush_max_bytes: int
    ) -> None:
        self._engine = engine
        self._rings = rings
        self._io_mode = io_mode
        self._flush_max_bytes = flush_max_bytes

    def open(self, place: Assignment, *, adopt: bool) -> Served:
        """The partition, served: its slot says online, readonly or offline with the reason.

        Raises nothing for what is wrong with one partition: the others go on.
        """
        try:
            served = self._adopt(place) if adopt else None
            if served is None:
                self._engine.assign_slot(
                    place.slot, bytes.fromhex(place.topic_id), place.partition, place.slot_epoch
                )
                served = self._recover(place)
        except (OSError, errors.ShmbrokerError) as error:
            served = Served(place, reason=str(error))
            self._engine.mark_slot(place.slot, "offline", errors.PartitionOffline.kafka_code)
            _log.error("partition can't be opened", partition=place.name, reason=served.reason)
        return served

    def forget(self, slot: int) -> None:
        """Frees a slot of a killed writer that the plan no longer has."""
        info = self._engine.slot_info(slot)
        if info["state"] != "free":
            self._discard(slot, info)
            self._engine.free_slot(slot)

    def reach(self, settings: TopicSettings) -> int:
        """The most that one write covers: a batch larger than flush_max_bytes goes out whole."""
        largest = max(self._flush_max_bytes, settings.max_message_bytes)
        return largest + 2 * self._io_mode.unit

    def _log_of(self, place: Assignment, known_durable: tuple[int, int] | None) -> PartitionLog:
        return PartitionLog.open(
            place.directory,
            place.topic_id,
            place.topic,
            place.partition,
            place.settings,
            self._io_mode,
            write_reach_bytes=self.reach(place.settings),
            known_durable=known_durable,
            create=True,
        )

    def _recover(self, place: Assignment) -> Served:
        log = self._log_of(place, None)
        part = self._engage(place, log, adopt=False, ring=None)
        found = log.recovery
        served = Served(place, log, part, found.reason)
        read_only = found.state == "readonly"
        part.set_state(found.state, errors.PartitionReadOnly.kafka_code if read_only else 0)
        if found.state != "online":
            _log.error("partition is read-only", partition=place.name, reason=found.reason)
        return served

    def _adopt(self, place: Assignment) -> Served | None:
        """None: nothing to take over, or nothing that can be believed."""
        engine, slot = self._engine, place.slot
        engine.settle_slot(slot)
        info = engine.slot_info(slot)
        self._rings.unlink_stray(slot, info["generation"] + 1)  # made, and not yet put in
        if info["state"] not in _ALIVE or info["topic_id"].hex() != place.topic_id:
            self._discard(slot, info)
            return None
        log = None
        try:
            ring = None
            if info["ring_bytes"]:
                fd = self._rings.open_existing(slot, info["generation"], info["ring_bytes"])
                ring = (fd, info["ring_bytes"])
            log = self._log_of(place, (info["flush_base_offset"], info["durable_bytes"]))
            part = self._engage(place, log, adopt=True, ring=ring)
        except (OSError, ValueError, errors.ShmbrokerError) as error:
            _log.warning(
                "ring can't be taken over; recovering from disk",
                partition=place.name,
                reason=str(error),
            )
            if log is not None:
                log.close()
            self._discard(slot, info)
            return None
        served = Served(place, log, part, started=ring is not None)
        if part.roll_waits is not None:
            if not log.has_next:
                log.prepare_next()
            served.roll()
        if ring is not None:
            base, _ = part.append_segment
            part.set_alloc(base, log.extend(1))
        part.set_state(info["state"])
        return served

    def _engage(
        self, place: Assignment, log: PartitionLog, *, adopt: bool, ring: tuple[int, int] | None
    ) -> core.Partition:
        active = log.active
        return self._engine.open_partition(
            place.slot,
            log.producers,
            fd=-1 if active is None else active.fd,
            adopt=adopt,
            file_position=0 if active is None else active.length,
            segment_base_offset=log.log_end_offset if active is None else active.base_offset,
            next_offset=log.log_end_offset,
            log_start_offset=log.log_start_offset,
            leader_epoch=log.leader_epoch,
            alloc_bytes=0 if active is None else active.allocated_bytes,
            segment_bytes=place.settings.segment_bytes,
            max_message_bytes=place.settings.max_message_bytes,
            index_interval_bytes=place.settings.index_interval_bytes,
            max_timestamp=-1 if active is None else active.max_timestamp,
            unit=self._io_mode.unit,
            ring_ceiling=self._rings.largest_bytes,
            ring_fd=-1 if ring is None else ring[0],
            ring_bytes=0 if ring is None else ring[1],
        )

    def _discard(self, slot: int, info: dict[str, Any]) -> None:
        """The ring of a slot that is recovered from disk goes."""
        if self._engine.partition(slot) is not None:
            self._engine.close_partition(slot)
        self._rings.drop(slot)
        self._rings.unlink_stray(slot, info["generation"])
