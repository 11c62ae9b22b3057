"""What changes of a topic that is there: its settings, its partitions, where its logs start.

Invariants: an alteration is durable in `meta.db`, whole, before any writer hears of it, so that the
next `up` completes what a killed acceptor had begun: writers open with the settings of the store,
and partitions without a place get one. Clients see the topic as it was until its writers know it
otherwise. Every step may be taken twice. Runs in the acceptor's one thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shmbroker import errors
from shmbroker.config import TopicSettings
from shmbroker.control.meta import MetaStore
from shmbroker.control.plan import Place
from shmbroker.topic_settings import altered
from shmbroker.workers.topics import Answer, Topics


def alter(
    topics: Topics,
    meta: MetaStore,
    name: str,
    config: Mapping[str, Any],
    partitions: int | None,
    answer: Answer,
) -> None:
    """Answers with the topic's metadata once its writers work by it.

    `config`: settings to change, None takes one back to the broker's default. `partitions`: how
    many there shall be; never fewer. Raises UnknownTopic, InvalidConfig, InvalidPartitions,
    MemoryBudget, and then nothing has changed.
    """
    topic = topics.get(name)
    own = altered(topic.settings, config)
    count = topic.partitions if partitions is None else partitions
    settings = TopicSettings.from_kafka(own, topics.defaults)
    if settings.largest_batch_bytes > topics.settings(topic).largest_batch_bytes:
        topics.check_promise(name, settings)
    old = topics.places_of(topic)
    have = {place.partition for place in old}
    with meta.transaction():
        meta.alter_topic(name, own)
        topic = meta.add_partitions(name, count)
        new = topics.place(topic, [p for p in range(count) if p not in have])
    topics.replace(topic)
    failures: list[errors.ShmbrokerError] = []
    left = 2

    def settled(found: list[errors.ShmbrokerError]) -> None:
        nonlocal left
        failures.extend(found)
        left -= 1
        if left:
            return
        topics.show(topic)
        if failures:
            answer(_with_note(failures[0], name))
        else:
            answer({"topics": topics.metadata([name])})

    # Both at once: a deletion that is asked for meanwhile must come behind them.
    topics.assign(new, settled)
    topics.ask_all(
        old if config else [],
        "settings",
        lambda place: {"slot": place.slot, "settings": settings.to_kafka()},
        _no_error,
        settled,
    )


def delete_records(
    topics: Topics, name: str, before_offsets: Mapping[str, Any], answer: Answer
) -> None:
    """Answers {"log_start_offsets": {partition: offset}} once the new starts are durable.

    `before_offsets`: partition (JSON's keys are texts) to the first offset that is kept, or -1 for
    the durable end, which also caps it. Partitions that fail leave the others done; the answer is
    then their error. Raises UnknownTopic, InvalidRequest, and then nothing has changed.
    """
    topic = topics.get(name)
    places = {place.partition: place for place in topics.places_of(topic)}
    wanted: dict[int, int] = {}
    for key, offset in before_offsets.items():
        partition = int(key) if key.isdecimal() else -1
        if partition not in places:
            raise errors.UnknownTopic(name, partition, topic.partitions)
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < -1:
            raise errors.InvalidRequest(
                f"{name}-{partition}: {offset!r} is no offset; allowed: 0 and more, or -1 for the "
                "durable end"
            )
        wanted[partition] = offset
    starts: dict[str, int] = {}

    def moved(place: Place, found: Mapping[str, Any]) -> None:
        starts[str(place.partition)] = int(found["log_start_offset"])

    def done(failures: list[errors.ShmbrokerError]) -> None:
        answer(failures[0] if failures else {"log_start_offsets": starts})

    topics.ask_all(
        [places[partition] for partition in wanted],
        "delete_records",
        lambda p: {"slot": p.slot, "before_offset": wanted[p.partition]},
        moved,
        done,
    )


def _no_error(_place: Place, _found: Mapping[str, Any]) -> None:
    return None


def _with_note(error: errors.ShmbrokerError, name: str) -> errors.ShmbrokerError:
    """The alteration stands all the same, and who asked for it must know."""
    error.args = (
        f"topic {name!r} is altered, and not all of it works yet: {error.message}",
        *error.args[1:],
    )
    return error


__all__ = ["alter", "delete_records"]
