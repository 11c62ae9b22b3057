"""What `status` says: gathered from the writers, the tables and the acceptor itself.

The tables are read in place, so status needs no writer to answer; what only a writer knows
(segments, I/O mode, what waits at the head of an ingress ring) is merged in when it answers
within a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from shmbroker._core import shm
from shmbroker.control.plan import Plan
from shmbroker.control.sessions import Client, Sessions
from shmbroker.control.sharedmem import SharedMemory
from shmbroker.workers.topics import Topics

ASK_LIMIT_S: Final = 1.0


def writers_status(
    memory: SharedMemory,
    plan: Plan,
    links: Mapping[int, str],
    told: Mapping[int, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """One entry a writer: its table's head and counters, and its own words."""
    found = []
    for writer in sorted(plan.writers):
        table = memory.tables.get(writer)
        head: dict[str, Any] = table.head() if table is not None else {"writer": writer}
        beat_ns = head.pop("heartbeat_ns", 0)
        head["heartbeat_age_s"] = round(time.monotonic() - beat_ns / 1e9, 3) if beat_ns else None
        entry = head | dict(told.get(writer, {}).get("writer") or {})
        entry |= {
            "state": links.get(writer, "away"),
            "partitions": len(plan.of_writer(writer)),
            "answered": writer in told,
        }
        found.append(entry)
    return found


def partitions_status(
    memory: SharedMemory, plan: Plan, topics: Topics, told: Mapping[int, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One entry a partition, by topic and number; positions are bytes, ends are exclusive."""
    by_slot = {
        (writer, entry.get("slot")): entry
        for writer, answer in told.items()
        for entry in answer.get("partitions") or ()
    }
    found = []
    for place in sorted(plan.places.values(), key=lambda p: (p.topic, p.partition)):
        table = memory.tables.get(place.writer)
        entry: dict[str, Any] = {"topic": place.topic, "partition": place.partition,
                                 "writer": place.writer}  # fmt: skip
        if table is not None and table.slot_epoch(place.slot) == place.slot_epoch:
            slot = table.slot(place.slot)
            unsynced = slot["log_end_position"] - slot["durable_position"]
            entry |= slot | {"ring_fill_bytes": unsynced, "error_code": slot["reason"]}
            blocked = slot["blocked_why"] != "none" and slot["blocked_ns"]
            entry["blocked_s"] = time.monotonic() - slot["blocked_ns"] / 1e9 if blocked else None
        entry |= dict(by_slot.get((place.writer, place.slot)) or {})
        entry |= topics.place_state(place)
        entry["slot"], entry["slot_epoch"] = place.slot, place.slot_epoch
        found.append(entry)
    return found


def clients_status(
    prefix: str,
    sessions: Sessions,
    partitions: Iterable[Mapping[str, Any]],
    told: Mapping[int, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """One entry a client, with its rings and which partition each waits for, and why."""
    by_slot = {(p["writer"], p["slot"]): p for p in partitions}
    words: dict[int | None, dict[str, Any]] = {}
    for writer, answer in told.items():
        for entry in answer.get("ingress") or ():
            blocking = by_slot.get((writer, entry.get("blocked_slot")))
            words[entry.get("ingress")] = dict(entry) | {"waits_for": _waits_for(blocking)}
    return [_client(prefix, client, words) for client in sessions.clients.values()]


def _waits_for(partition: Mapping[str, Any] | None) -> str | None:
    if partition is None:
        return None
    why = partition["state"]
    if why == "online":
        why = partition.get("blocked_why", "none")
    return f"{partition['topic']}-{partition['partition']}: {why}"


def _client(
    prefix: str, client: Client, words: Mapping[int | None, Mapping[str, Any]]
) -> dict[str, Any]:
    rings = []
    for ring in client.rings.values():
        entry: dict[str, Any] = {
            "ingress": ring.ingress, "writer": ring.writer, "capacity": ring.capacity,
            "slots": ring.slots, "closing": ring.closing,
        }  # fmt: skip
        try:
            at = shm.read_ingress(prefix, ring.ingress)
            entry |= {"head": at["head"], "tail": at["tail"], "receipts": at["receipts"],
                      "fill_bytes": at["head"] - at["tail"]}  # fmt: skip
            entry["detached"] = at["detached"]
        except FileNotFoundError:  # just being dropped
            entry["closing"] = True
        rings.append(entry | dict(words.get(ring.ingress) or {}))
    return {
        "client": client.client,
        "pid": client.pid,
        "name": client.name,
        "attached_s": client.attached_s,
        "connected": client.connection is not None,
        "ingress": rings,
    }


def totals(partitions: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many partitions are in which state."""
    found: dict[str, int] = {}
    for entry in partitions:
        found[entry["state"]] = found.get(entry["state"], 0) + 1
    return found


__all__ = ["ASK_LIMIT_S", "clients_status", "partitions_status", "totals", "writers_status"]
