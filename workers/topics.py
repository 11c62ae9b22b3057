"""Topics: made, looked up and deleted, in the store first, then in the writers.

What changes of a topic that is there is `alteration.py`.

Invariants: a topic is durable in `meta.db` before any writer hears of it, and marked as going
there before its first file is removed; a deletion that a crash cut short goes on at the next
`up`; the state behind `reason` is the writer's own word.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from shmbroker.topic_settings import parse_settings
from shmbroker.workers.logs import get_logger
from shmbroker.workers.promises import Promises
from shmbroker.workers.worker_link import OnDone

_log = get_logger("shmbroker.topics")

Answer = Callable[[Mapping[str, Any] | BaseException], None]
OnAll = Callable[[list[errors.ShmbrokerError]], None]


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
        tell: Callable[[list[str]], None],
    ) -> None:
        self._meta, self._plan, self._memory = meta, plan, memory
        self._data_dir, self._writers, self.defaults = data_dir, writers, defaults
        self._tell = tell  # clients: these topics have changed
        self.on_made: Callable[[], None] = lambda: None  # there is one more
        self._by_name: dict[str, Topic] = {topic.name: topic for topic in meta.topics()}
        self._reasons: dict[tuple[int, int], tuple[str, str]] = {}  # (writer, slot) -> state, text
        # By id: as clients see it while so many alterations are on their way to its writers.
        self._shown: dict[str, tuple[Topic, int]] = {}
        self._promises = Promises(memory, plan)
        self._promises.put((name, self.settings(topic)) for name, topic in self._by_name.items())
        self._promises.tell_broken()

    def resume(self) -> None:
        """After `up`: places for partitions that have none, and deletions that were cut short."""
        for topic in self._by_name.values():
            have = {place.partition for place in self._plan.of_topic(topic.topic_id)}
            missing = [p for p in range(topic.partitions) if p not in have]
            places = self.place(topic, missing)
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
        own = parse_settings(config)
        settings = TopicSettings.from_kafka(own, self.defaults)
        self._promises.check(name, settings)
        self._promises.put([(name, settings)])
        try:
            with self._meta.transaction():  # undone if the tables have no room
                topic = self._meta.create_topic(name, partitions, own)
                places = self.place(topic, range(partitions))
        except BaseException:
            self._promises.drop(name)
            raise
        self._by_name[name] = topic

        def assigned(failures: list[errors.ShmbrokerError]) -> None:
            if not failures:
                self.on_made()
                answer({"topics": self.metadata([name])})
                return
            _log.error("topic not created", topic=name, cause=str(failures[0]))
            self._delete(topic, lambda _: answer(failures[0]))

        self.assign(places, assigned)

    def place(self, topic: Topic, partitions: Iterable[int]) -> list[Place]:
        """Places for partitions that have none; raises InvalidPartitions if the tables are full."""
        return self._plan.place(topic.topic_id, topic.name, partitions, self._memory.slot_epoch)

    def assign(self, places: list[Place], then: OnAll) -> None:
        """Has the writers open new partitions, and calls back when all have answered."""
        self._writers.need_writers({place.writer for place in places})
        self.ask_all(places, "assign", self.assign_args, self._state_error, then)

    def ask_all(
        self,
        places: list[Place],
        op: str,
        args: Callable[[Place], dict[str, Any]],
        look: Callable[[Place, Mapping[str, Any]], errors.ShmbrokerError | None],
        then: OnAll,
    ) -> None:
        """One request a place; `look` judges an answer. Calls `then` with all errors, once."""
        failures: list[errors.ShmbrokerError] = []
        left = len(places)

        def answered(place: Place, reply: messages.Reply) -> None:
            nonlocal left
            left -= 1
            error = reply.error or look(place, reply.ok)
            if error is not None:
                failures.append(error)
            if not left:
                then(failures)

        for place in places:
            self._writers.ask(place.writer, op, args(place), partial(answered, place))
        if not places:
            then(failures)

    def delete(self, name: str, answer: Answer) -> None:
        """Answers {} once the topic's files are gone."""
        self._delete(self.get(name), answer)

    def metadata(self, names: Iterable[str] | None) -> dict[str, Any]:
        """By name: id, settings in force, and where each partition is served."""
        topics = self._by_name if names is None else {n: self._by_name.get(n) for n in names}
        found: dict[str, Any] = {}
        for name, now in sorted(topics.items()):
            if now is not None:
                topic, _ = self._shown.get(now.topic_id, (now, 0))
                found[name] = {
                    "id": topic.topic_id,
                    "config": self.settings(topic).to_kafka(),
                    "partitions": [
                        {
                            "partition": place.partition,
                            "writer": place.writer,
                            "slot": place.slot,
                            "slot_epoch": place.slot_epoch,
                            "directory": self.directory(place.topic, place.partition),
                        }
                        for place in self._plan.of_topic(topic.topic_id)[: topic.partitions]
                    ],
                }
        return found

    def get(self, name: str) -> Topic:
        """The topic as it is in the store; raises UnknownTopic."""
        topic = self._by_name.get(name)
        if topic is None:
            raise errors.UnknownTopic(name)
        return topic

    def places_of(self, topic: Topic) -> list[Place]:
        """Where its partitions are served, in order."""
        return self._plan.of_topic(topic.topic_id)

    def state(self, name: str, partition: int) -> dict[str, str]:
        """State and reason of a partition; raises UnknownTopic."""
        topic = self.get(name)
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
            "directory": self.directory(place.topic, place.partition),
            "settings": self.settings(self._by_name[place.topic]).to_kafka(),
        }

    def topics(self) -> Mapping[str, Topic]:
        """By name."""
        return self._by_name

    def shown(self) -> Iterator[Topic]:
        """Every topic as clients see it: new partitions once they can be read."""
        for topic in self._by_name.values():
            yield self._shown.get(topic.topic_id, (topic, 0))[0]

    def _delete(self, topic: Topic, answer: Answer) -> None:
        self._meta.begin_delete(topic.name)
        del self._by_name[topic.name]
        self._promises.drop(topic.name)
        self._tell([topic.name])
        places = self._plan.of_topic(topic.topic_id)

        def unassigned(place: Place, _ok: Mapping[str, Any]) -> None:
            self._plan.release(place)
            self._reasons.pop((place.writer, place.slot), None)

        def done(failures: list[errors.ShmbrokerError]) -> None:
            if failures:  # the rest is removed at the next start
                answer(failures[0])
                return
            self._remove_directories(topic)
            self._meta.end_delete(topic.topic_id)
            answer({})

        self.ask_all(
            places, "unassign", lambda p: {"slot": p.slot, "delete": True}, unassigned, done
        )

    def settings(self, topic: Topic) -> TopicSettings:
        """What is in force for it."""
        return TopicSettings.from_kafka(topic.settings, self.defaults)

    def check_promise(self, name: str, settings: TopicSettings) -> None:
        """Raises MemoryBudget for settings whose largest batch no ring could take."""
        self._promises.check(name, settings)

    def replace(self, topic: Topic) -> None:
        """The store has it otherwise now. Clients are shown it as it was until `show`."""
        before, waiting = self._shown.get(topic.topic_id, (self._by_name[topic.name], 0))
        self._shown[topic.topic_id] = before, waiting + 1
        self._by_name[topic.name] = topic
        self._promises.put([(topic.name, self.settings(topic))])

    def show(self, topic: Topic) -> None:
        """The writers have taken over what one `replace` said."""
        before, waiting = self._shown.pop(topic.topic_id)
        if waiting > 1:
            self._shown[topic.topic_id] = before, waiting - 1
        self._tell([topic.name])

    def directory(self, topic: str, partition: int) -> str:
        """Where the partition's files are."""
        return str(self._data_dir / f"{topic}-{partition}")

    def _remove_directories(self, topic: Topic) -> None:
        """What a writer that died in between may have left."""
        for partition in range(topic.partitions):
            shutil.rmtree(self.directory(topic.name, partition), ignore_errors=True)
        sync_dir(self._data_dir)

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


__all__ = ["Answer", "OnAll", "Topics", "Writers"]
