"""Topics: made, looked up and deleted, in the store first, then in the writers.

Invariants: a topic is durable in `meta.db` before any writer hears of it, and marked as going
there before its first file is removed; a deletion that a crash cut short goes on at the next
`up`; the state behind `reason` is the writer's own word.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from shmbroker import errors
from shmbroker.config import TopicSettings
from shmbroker.control import messages
from shmbroker.control.datadir import sync_dir
from shmbroker.control.meta import MAX_PARTITIONS, MetaStore, Topic, check_topic_name
from shmbroker.control.plan import Place, Plan
from shmbroker.control.sharedmem import SharedMemory
from shmbroker.workers.logs import get_logger
from shmbroker.workers.writer_link import OnDone

_log = get_logger("shmbroker.topics")
_PAGE_BYTES = 64 << 10

Answer = Callable[[Mapping[str, Any] | BaseException], None]


class Writers(Protocol):
    """What is asked of the acceptor here."""

    def ask(self, writer: int, op: str, args: Mapping[str, Any], on_done: OnDone) -> None: ...
    def need_writers(self, writers: Iterable[int]) -> None: ...


class Topics:
    """All topics of the broker. Belongs to the loop's thread."""

    def __init__(
        self,
        meta: MetaStore,
        plan: Plan,
        memory: SharedMemory,
        data_dir: Path,
        defaults: TopicSettings,
        writers: Writers,
    ) -> None:
        self._meta, self._plan, self._memory = meta, plan, memory
        self._data_dir, self._defaults, self._writers = data_dir, defaults, writers
        self._by_name: dict[str, Topic] = {topic.name: topic for topic in meta.topics()}
        self._reasons: dict[tuple[int, int], tuple[str, str]] = {}  # (writer, slot) -> state, text

    def resume(self) -> None:
        """After `up`: places for partitions that have none, and deletions that were cut short."""
        for topic in self._by_name.values():
            have = {place.partition for place in self._plan.of_topic(topic.topic_id)}
            missing = [p for p in range(topic.partitions) if p not in have]
            places = self._place(topic, missing)
            self._writers.need_writers({place.writer for place in places})
        for topic in self._meta.topics_being_deleted():
            self._remove_directories(topic)
            self._meta.end_delete(topic.topic_id)

    def create(
        self,
        name: str,
        partitions: int,
        config: Mapping[str, Any],
        if_not_exists: bool,
        answer: Answer,
    ) -> None:
        """Answers with the topic's metadata once every partition of it is online."""
        check_topic_name(name)
        if name in self._by_name:
            if not if_not_exists:
                raise errors.TopicExists(name)
            answer({"topics": self.metadata([name])})
            return
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise errors.InvalidPartitions(
                f"topic {name!r} can't have {partitions} partitions; allowed: 1 to {MAX_PARTITIONS}"
            )
        settings = TopicSettings.from_kafka(config, self._defaults)
        self._check_promise(name, settings)
        own = settings.differing_from(self._defaults)
        with self._meta.transaction():  # undone if the tables have no room
            topic = self._meta.create_topic(name, partitions, own)
            places = self._place(topic, range(partitions))
        self._by_name[name] = topic
        self._writers.need_writers({place.writer for place in places})

        failures: list[errors.ShmbrokerError] = []
        left = len(places)

        def assigned(place: Place, reply: messages.Reply) -> None:
            nonlocal left
            left -= 1
            error = reply.error or self._state_error(place, reply.ok)
            if error is not None:
                failures.append(error)
            if left:
                return
            if not failures:
                answer({"topics": self.metadata([name])})
                return
            _log.error("topic not created", topic=name, cause=str(failures[0]))
            self._delete(topic, lambda _: answer(failures[0]))

        for place in places:
            self._writers.ask(
                place.writer,
                "assign",
                self.assign_args(place),
                partial(assigned, place),
            )

    def delete(self, name: str, answer: Answer) -> None:
        """Answers {} once the topic's files are gone."""
        if name not in self._by_name:
            raise errors.UnknownTopic(name)
        self._delete(self._by_name[name], answer)

    def metadata(self, names: Iterable[str] | None) -> dict[str, Any]:
        """By name: id, settings in force, and where each partition is served."""
        topics = self._by_name if names is None else {n: self._by_name.get(n) for n in names}
        found: dict[str, Any] = {}
        for name, topic in sorted(topics.items()):
            if topic is not None:
                found[name] = {
                    "id": topic.topic_id,
                    "config": self._settings(topic).to_kafka(),
                    "partitions": [
                        {
                            "partition": place.partition,
                            "writer": place.writer,
                            "slot": place.slot,
                            "slot_epoch": place.slot_epoch,
                            "directory": self._directory(place.topic, place.partition),
                        }
                        for place in self._plan.of_topic(topic.topic_id)
                    ],
                }
        return found

    def state(self, name: str, partition: int) -> dict[str, str]:
        """State and reason of a partition; raises UnknownTopic."""
        topic = self._by_name.get(name)
        if topic is None:
            raise errors.UnknownTopic(name)
        for place in self._plan.of_topic(topic.topic_id):
            if place.partition == partition:
                return self.place_state(place)
        raise errors.UnknownTopic(name, partition, topic.partitions)

    def place_state(self, place: Place) -> dict[str, str]:
        """The state out of the table, with the text that belongs to it."""
        state = "opening"
        table = self._memory.tables.get(place.writer)
        if table is not None and table.slot_epoch(place.slot) == place.slot_epoch:
            state = table.state(place.slot)
        told, text = self._reasons.get((place.writer, place.slot), ("", ""))
        return {"state": state, "reason": text if told == state else ""}

    def told(self, writer: int, found: Mapping[str, Any]) -> None:
        """A writer says what state a slot of it is in, and why."""
        slot, state = found.get("slot"), found.get("state")
        if isinstance(slot, int) and isinstance(state, str):
            reason = str(found.get("reason") or "")
            before, self._reasons[writer, slot] = (
                self._reasons.get((writer, slot)),
                (state, reason),
            )
            if before != (state, reason) and state not in ("online", "opening", "closed"):
                _log.error("partition", writer=writer, slot=slot, state=state, reason=reason)

    def assign_args(self, place: Place) -> dict[str, Any]:
        """The arguments of `assign` for a place."""
        return {
            "slot": place.slot,
            "slot_epoch": place.slot_epoch,
            "topic": place.topic,
            "topic_id": place.topic_id,
            "partition": place.partition,
            "directory": self._directory(place.topic, place.partition),
            "settings": self._settings(self._by_name[place.topic]).to_kafka(),
        }

    def topics(self) -> Mapping[str, Topic]:
        """By name."""
        return self._by_name

    def _delete(self, topic: Topic, answer: Answer) -> None:
        self._meta.begin_delete(topic.name)
        del self._by_name[topic.name]
        places = self._plan.of_topic(topic.topic_id)
        left, failures = len(places), list[errors.ShmbrokerError]()

        def unassigned(place: Place, reply: messages.Reply) -> None:
            nonlocal left
            left -= 1
            if reply.error is not None:
                failures.append(reply.error)
            else:
                self._plan.release(place)
                self._reasons.pop((place.writer, place.slot), None)
            if left:
                return
            if failures:  # the rest is removed at the next start
                answer(failures[0])
                return
            self._remove_directories(topic)
            self._meta.end_delete(topic.topic_id)
            answer({})

        for place in places:
            self._writers.ask(
                place.writer,
                "unassign",
                {"slot": place.slot, "delete": True},
                partial(unassigned, place),
            )
        if not places:
            self._remove_directories(topic)
            self._meta.end_delete(topic.topic_id)
            answer({})

    def _place(self, topic: Topic, partitions: Iterable[int]) -> list[Place]:
        return self._plan.place(topic.topic_id, topic.name, partitions, self._memory.slot_epoch)

    def _settings(self, topic: Topic) -> TopicSettings:
        return TopicSettings.from_kafka(topic.settings, self._defaults)

    def largest_batch_bytes(self) -> int:
        """The largest batch that any topic promises to take; 0 without topics."""
        found = (self._settings(topic).largest_batch_bytes for topic in self._meta.topics())
        return max(found, default=0)

    def _directory(self, topic: str, partition: int) -> str:
        return str(self._data_dir / f"{topic}-{partition}")

    def _remove_directories(self, topic: Topic) -> None:
        """What a writer that died in between may have left."""
        for partition in range(topic.partitions):
            shutil.rmtree(self._directory(topic.name, partition), ignore_errors=True)
        sync_dir(self._data_dir)

    def _check_promise(self, name: str, settings: TopicSettings) -> None:
        """`max.message.bytes` is a promise: some ring must be able to hold such a batch."""
        needed = -(-settings.largest_batch_bytes // _PAGE_BYTES) * _PAGE_BYTES + _PAGE_BYTES
        room = self._memory.log_memory_bytes(max(1, len(self._plan.writers)))
        room = min(room, self._memory.ingress_budget_bytes // 2)
        if needed > room:
            raise errors.MemoryBudget(
                f"topic {name!r} can't have max.message.bytes={settings.max_message_bytes}: its "
                f"rings would need {needed} bytes each, and the memory budget leaves {room} for "
                "one; lower it, or raise memory.budget_bytes",
                needed_bytes=needed,
                available_bytes=room,
            )

    def _state_error(self, place: Place, found: Mapping[str, Any]) -> errors.ShmbrokerError | None:
        self.told(place.writer, {"slot": place.slot, **found})
        state, reason = str(found.get("state", "online")), str(found.get("reason") or "")
        if state in ("online", "opening"):
            return None
        if state == "no_space":
            return errors.DiskFull(
                f"{place.topic}-{place.partition} can't be made: {reason or 'no space is left'}; "
                f"free some on {self._data_dir}",
                path=str(self._data_dir),
            )
        if state == "readonly":
            return errors.PartitionReadOnly(place.topic, place.partition, reason)
        return errors.PartitionOffline(place.topic, place.partition, reason or state)


__all__ = ["Answer", "Topics", "Writers"]
