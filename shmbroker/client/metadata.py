"""What a client knows of topics: where each partition is, remembered until it proves wrong.

Owns: the cache of the broker's `metadata` answers. Who finds that a slot's epoch is not the one
remembered calls `refresh`; a new attachment empties the cache, since the plan may be another one.
The broker tells every attached client which topics were altered or deleted (an event on the attach
socket, after its writers work by it): their entries are forgotten, and `listen`ers are told.
Thread-safe: entries are immutable and replaced whole.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from shmbroker.errors import UnknownTopic

if TYPE_CHECKING:
    from shmbroker.client.connection import Connection, TopicListener


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """Where one partition is: slot `slot` of the table of writer `writer`."""

    topic: str
    partition: int
    writer: int
    slot: int
    slot_epoch: int  # of the slot while it is this partition's
    directory: str  # of its segment files


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """One topic as the broker described it."""

    name: str
    id: str  # 32 hex digits; a topic of the same name made later has another
    config: Mapping[str, Any]  # settings by Kafka's names
    partitions: tuple[PartitionInfo, ...]  # by number

    @classmethod
    def of(cls, name: str, wire: Mapping[str, Any]) -> TopicInfo:
        """From the answer's JSON."""
        fields = ("partition", "writer", "slot", "slot_epoch", "directory")
        found = [PartitionInfo(name, *(p[f] for f in fields)) for p in wire["partitions"]]
        found.sort(key=lambda p: p.partition)
        return cls(name, str(wire["id"]), dict(wire.get("config") or {}), tuple(found))


class Metadata:
    """The cache."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._listeners: weakref.WeakSet[TopicListener] = weakref.WeakSet()
        connection.topic_listeners.add(self)
        self._topics: dict[str, TopicInfo] = {}
        self._epoch = 0  # of the attachment that the entries are from
        self._told = 0  # how often topics were altered

    def get(self, topic: str) -> TopicInfo:
        """The topic, asked for once; UnknownTopic without it."""
        return self.known(topic) or self.refresh(topic)

    def known(self, topic: str) -> TopicInfo | None:
        """The topic as remembered, without asking and so without blocking; None: ask."""
        found = self._topics.get(topic)
        return found if self._epoch == self._connection.epoch.value else None

    def partition(self, topic: str, partition: int) -> PartitionInfo:
        """One partition; UnknownTopic when the topic hasn't it."""
        info = self.get(topic)
        if not 0 <= partition < len(info.partitions):
            info = self.refresh(topic)  # it may have got more
        if not 0 <= partition < len(info.partitions):
            raise UnknownTopic(topic, partition, len(info.partitions))
        return info.partitions[partition]

    def refresh(self, topic: str) -> TopicInfo:
        """The topic as it is now; UnknownTopic without it."""
        self._topics.pop(topic, None)
        found = self._ask([topic]).get(topic)
        if found is None:
            raise UnknownTopic(topic)
        return found

    def all(self) -> Mapping[str, TopicInfo]:
        """Every topic as it is now."""
        return self._ask(None)

    def listen(self, listener: TopicListener) -> None:
        """Tells `listener` of altered topics as long as somebody else holds it."""
        self._listeners.add(listener)

    def on_topics(self, names: frozenset[str] | None) -> None:
        """Of the connection: forgets them, and hands it on."""
        self._told += 1
        for name in list(self._topics) if names is None else names:
            self._topics.pop(name, None)
        for listener in list(self._listeners):
            listener.on_topics(names)

    def forget(self, topic: str) -> None:
        """Asks for the topic anew at its next use."""
        self._topics.pop(topic, None)

    def learn(self, answer: Mapping[str, Any]) -> dict[str, TopicInfo]:
        """Takes over what an answer of the broker's says of topics."""
        found = _topics_of(answer)
        self._topics.update(found)
        return found

    def _ask(self, names: Iterable[str] | None) -> dict[str, TopicInfo]:
        epoch = self._connection.attached()
        if epoch != self._epoch:
            self._topics, self._epoch = {}, epoch
        wanted = None if names is None else list(names)
        told = self._told
        answer = self._connection.request("metadata", topics=wanted)
        # What was answered before an alteration that we have heard of since is not remembered.
        return self.learn(answer) if told == self._told else _topics_of(answer)


def _topics_of(answer: Mapping[str, Any]) -> dict[str, TopicInfo]:
    wire: Mapping[str, Any] = answer.get("topics", {})
    return {name: TopicInfo.of(name, said) for name, said in wire.items()}


__all__ = ["Metadata", "PartitionInfo", "TopicInfo", "TopicPartition"]
