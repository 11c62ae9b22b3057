"""The events that tell of pressure: what is sent, and what one who hears them keeps.

    pressure/<topic>/<partition>/   a partition's state or its cause has become another one
    snapshot/                       all partitions that are pressed; those that are not in it are ok

Each message is two frames: one of the above, by which ZeroMQ filters, and an event of the control
codec (messages.py). `run` tells one life of the acceptor from the next; `seq` counts changes, and a
snapshot bears the one that it includes. Who misses messages (ZeroMQ drops those of who reads too
slowly) is right again with the next snapshot. A long one comes in parts that follow each other.

Owns: this form and its bounds, and `Board`, the picture that arises from what is heard.

Invariants: no I/O, no clock: `now_s` is the caller's. Nothing that arrives raises anything but
InvalidRequest or UnsupportedVersion, and then the board is as it was; it holds at most
PARTS_MAX * LEVELS_A_PART partitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from shmbroker.control import messages
from shmbroker.control.pressure import CAUSES, STATES, WAITS, PartitionPressure
from shmbroker.errors import InvalidRequest

MAX_EVENT_BYTES: Final = 256 << 10
LEVELS_A_PART: Final = 64
PARTS_MAX: Final = 1024
REASON_MAX: Final = 300  # characters
TOPIC_MAX: Final = 249  # characters; as Kafka's
SNAPSHOT: Final = b"snapshot/"

Frames = tuple[bytes, bytes]


def prefix_of(topic: str | None = None, partition: int | None = None) -> bytes:
    """What to subscribe to for one partition, one topic or all; and SNAPSHOT besides."""
    if topic is None:
        return b"pressure/"
    return f"pressure/{topic}/".encode() + (b"" if partition is None else b"%d/" % partition)


def encode_change(run: str, seq: int, level: PartitionPressure) -> Frames:
    """One partition's new state."""
    body = messages.encode_event("pressure", run=run, seq=seq, **_to_wire(level))
    return prefix_of(level.topic, level.partition), body


def encode_snapshot(run: str, seq: int, levels: Sequence[PartitionPressure]) -> list[Frames]:
    """All that is not at rest, in as many messages as that takes; what is more than fits, the
    least pressed of it, is left out."""
    worst = sorted(levels, key=lambda level: -level.rank)[: LEVELS_A_PART * PARTS_MAX]
    parts = [worst[n : n + LEVELS_A_PART] for n in range(0, len(worst), LEVELS_A_PART)] or [[]]
    return [
        (
            SNAPSHOT,
            messages.encode_event(
                "pressure_snapshot",
                run=run,
                seq=seq,
                part=number,
                parts=len(parts),
                partitions=[_to_wire(level) for level in part],
            ),
        )
        for number, part in enumerate(parts)
    ]


class Board:
    """What one who hears knows of all partitions. Not thread-safe."""

    def __init__(self) -> None:
        self.heard_s: float | None = None  # when a message that counts came last
        self.complete = False  # a snapshot has been heard, so what is not here is ok
        self._run = ""
        self._seq = -1
        self._levels: dict[tuple[str, int], tuple[PartitionPressure, float]] = {}
        self._parts: list[PartitionPressure] = []  # of a snapshot that is arriving …
        self._arriving = ("", -1, 0, 0)  # … its run and seq, parts, and the next part

    def hear(self, frames: Sequence[bytes], now_s: float) -> list[PartitionPressure]:
        """Takes a message in; returns the partitions that it tells something new of."""
        if len(frames) != 2 or len(frames[1]) > MAX_EVENT_BYTES:
            raise InvalidRequest(f"an event of {len(frames)} frames, or a longer one than allowed")
        event = messages.decode(frames[1])
        if not isinstance(event, messages.Event):
            raise InvalidRequest("a message on the events channel that is no event")
        if event.name not in ("pressure", "pressure_snapshot"):
            return []  # of a later version: not for us
        run, seq = event.arg("run", str), event.arg("seq", int)
        if event.name == "pressure":
            return self._change(run, seq, _from_wire(event.args), now_s)
        wire = event.arg("partitions", list)
        if len(wire) > LEVELS_A_PART:
            raise InvalidRequest(f"a snapshot's part of {len(wire)} partitions")
        part, parts = event.arg("part", int), event.arg("parts", int)
        if not 0 <= part < parts <= PARTS_MAX:
            raise InvalidRequest(f"part {part} of {parts} of a snapshot")
        return self._snapshot((run, seq, parts, part), [_from_wire(w) for w in wire], now_s)

    def level(self, topic: str, partition: int, now_s: float) -> PartitionPressure:
        """As last heard; ok if it is in nothing that was heard."""
        found = self._levels.get((topic, partition))
        if found is None:
            return PartitionPressure(topic, partition)
        level, heard_s = found
        return replace(level, since_s=level.since_s + max(0.0, now_s - heard_s))

    def _change(
        self, run: str, seq: int, level: PartitionPressure, now_s: float
    ) -> list[PartitionPressure]:
        if run != self._run:  # another life of the broker: what was known of the one before is void
            self._run, self._seq, self.complete = run, -1, False
            self._levels.clear()
        if seq <= self._seq:
            return []  # the snapshot had it
        self.heard_s = now_s
        if (level.topic, level.partition) not in self._levels and self._full:
            return []
        self._levels[level.topic, level.partition] = level, now_s
        return [level]

    @property
    def _full(self) -> bool:
        return len(self._levels) >= LEVELS_A_PART * PARTS_MAX

    def _snapshot(
        self, which: tuple[str, int, int, int], levels: list[PartitionPressure], now_s: float
    ) -> list[PartitionPressure]:
        *of, part = which
        self.heard_s = now_s
        if part == 0:
            self._parts = []
        elif (*of, part) != self._arriving:
            self._arriving = ("", -1, 0, 0)  # a part is missing: the next snapshot will do
            return []
        self._parts += levels
        run, seq, parts, _ = which
        if part + 1 < parts:
            self._arriving = (run, seq, parts, part + 1)
            return []
        self._arriving = ("", -1, 0, 0)
        before = self._levels if run == self._run else {}
        self._levels = {(p.topic, p.partition): (p, now_s) for p in self._parts}
        self._parts = []
        self._run, self._seq, self.complete = run, seq, True
        return _news(before, self._levels)


def _news(
    before: Mapping[tuple[str, int], tuple[PartitionPressure, float]],
    after: Mapping[tuple[str, int], tuple[PartitionPressure, float]],
) -> list[PartitionPressure]:
    """Whose state or cause is another one now."""
    news = []
    for where, (level, _) in after.items():
        was = before[where][0] if where in before else PartitionPressure(*where)
        if (was.state, was.cause) != (level.state, level.cause):
            news.append(level)
    gone: Iterable[tuple[str, int]] = before.keys() - after.keys()
    return news + [PartitionPressure(*w) for w in gone if before[w][0].state != "ok"]


def _to_wire(level: PartitionPressure) -> dict[str, Any]:
    return {
        "topic": level.topic,
        "partition": level.partition,
        "state": level.state,
        "cause": level.cause,
        "reason": level.reason[:REASON_MAX],
        "since_ms": round(level.since_s * 1000),
        "ring_fill": None if level.ring_fill is None else round(level.ring_fill, 4),
        "ring_bytes": level.ring_bytes,
        "unsynced_bytes": level.unsynced_bytes,
        "write_ms": round(level.write_ms, 3),
        "waits_for": level.waits_for,
    }


def _from_wire(wire: Any) -> PartitionPressure:
    if not isinstance(wire, Mapping):
        raise InvalidRequest("a partition's pressure that is no table")
    topic, reason = _text(wire, "topic", TOPIC_MAX), _text(wire, "reason", REASON_MAX)
    state, cause = _text(wire, "state", 20), _text(wire, "cause", 40)
    if state not in STATES:
        raise InvalidRequest(f"a partition's pressure of state {state!r}")
    waits = _text(wire, "waits_for", 40)
    fill = None if wire.get("ring_fill") is None else _number(wire, "ring_fill", 1.0)
    return PartitionPressure(
        topic,
        int(_number(wire, "partition", 2**31 - 1)),
        state,
        cause if cause in CAUSES else "unknown",
        reason,
        _number(wire, "since_ms", 2**53) / 1000,
        fill,
        int(_number(wire, "ring_bytes", 2**53)),
        int(_number(wire, "unsynced_bytes", 2**53)),
        _number(wire, "write_ms", 2**53),
        waits if waits in WAITS else "",
    )


def _text(wire: Mapping[str, Any], name: str, longest: int) -> str:
    value = wire.get(name)
    if not isinstance(value, str) or len(value) > longest:
        raise InvalidRequest(f"a partition's pressure whose {name} is {value!r:.60}")
    return value


def _number(wire: Mapping[str, Any], name: str, most: float) -> float:
    value = wire.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise InvalidRequest(f"a partition's pressure whose {name} is {value!r:.60}")
    return value


__all__ = [
    "LEVELS_A_PART",
    "MAX_EVENT_BYTES",
    "PARTS_MAX",
    "REASON_MAX",
    "SNAPSHOT",
    "Board",
    "Frames",
    "encode_change",
    "encode_snapshot",
    "prefix_of",
]
