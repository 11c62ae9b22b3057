"""Who waits for what, because of what, and since when: the part of `status` that explains.

A producer's batch waits in front of its ring for its partition; all behind it wait with it. Who it
is, a program here or a remote producer behind the ingress process, and why the partition lets it
wait, is put together here out of what the writers, the tables and the front ends say. Nobody waits
for a consumer, so none is ever named; how far consumers are behind is no part of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from shmbroker.control.plan import Plan
from shmbroker.control.pressure import WAITS
from shmbroker.workers.pressure import Pressures

Answer = Mapping[str, Any]
FULL_PERCENT: Final = 90  # of its ring: a producer whose ring is so full waits, or will in a moment


def add_pressure(partitions: Iterable[dict[str, Any]], pressures: Pressures, plan: Plan) -> None:
    """Gives each entry of `partitions_status` its pressure as it is now."""
    pressures.look()
    for entry in partitions:
        place = plan.at(entry["writer"], entry["slot"])
        if place is not None:
            level = asdict(pressures.level(place))
            for name in ("topic", "partition", "ingress_fill"):
                del level[name]
            entry["pressure"] = level


def waits(
    clients: Iterable[Answer],
    partitions: Sequence[Answer],
    writers: Mapping[int, Answer],
    front_ends: Mapping[str, Answer],
    now_s: float,
) -> list[dict[str, Any]]:
    """One entry for each who waits, longest first; the arguments are other parts of `status`, and
    what the front ends answered, by name."""
    by_slot = {(p["writer"], p["slot"]): p for p in partitions}
    by_name = {(p["topic"], p["partition"]): p for p in partitions}
    found = [
        entry
        for client in clients
        for ring in client["ingress"]
        if (entry := _of_ring(client, ring, by_slot, ring["writer"] in writers, now_s))
    ]
    for name, told in front_ends.items():
        found += _of_front_end(name, told, by_name)
    return sorted(found, key=lambda entry: -(entry["since_s"] or 0.0))


def _of_ring(
    client: Answer,
    ring: Answer,
    by_slot: Mapping[tuple[int, int], Answer],
    answered: bool,
    now_s: float,
) -> dict[str, Any] | None:
    """Of a program on this host and one of its rings; None: nothing waits in it."""
    used, writer = ring.get("fill_bytes", 0), ring["writer"]
    fill = used / ring["capacity"] if ring["capacity"] else 0.0
    slot = ring.get("blocked_slot")
    partition = by_slot.get((writer, slot)) if slot is not None else None
    since_s = now_s - ring["blocked_ns"] / 1e9 if ring.get("blocked_ns") else None
    if not used or ring.get("closing"):
        return None
    if partition is None and answered:  # the sequencer itself may be in a write that does not end
        partition = _with_cause(by_slot, writer, "stalled")
    if partition is not None:
        because = why(partition)
    elif not answered:
        known = _with_cause(by_slot, writer, "writer")
        because = f"writer-{writer} does not answer" if known is None else why(known)
    elif 100 * fill >= FULL_PERCENT:
        because = f"writer-{writer} takes in what comes as fast as it can"
    else:
        return None
    return _entry(partition, writer, because, since_s, used) | {
        "client": client["client"],
        "pid": client["pid"],
        "name": client["name"],
        "ingress": ring["ingress"],
        "fill": round(fill, 4),
    }


def _with_cause(
    by_slot: Mapping[tuple[int, int], Answer], writer: int, cause: str
) -> Answer | None:
    """A partition of the writer that is pressed for that cause."""
    for (of, _), partition in by_slot.items():
        if of == writer and partition.get("pressure", {}).get("cause") == cause:
            return partition
    return None


def _of_front_end(
    name: str, told: Answer, by_name: Mapping[tuple[str, int], Answer]
) -> list[dict[str, Any]]:
    """Of remote producers: an ingress process holds their batches in a line for each writer."""
    found = []
    for line in told.get("waiting") or ():
        partition = by_name.get((line["topic"], line["partition"]))
        because = line["reason"] if partition is None else why(partition) or line["reason"]
        entry = _entry(partition, line["writer"], because, line["waiting_s"], line["bytes"])
        entry |= {"via": name, "client": None, "pid": None, "ingress": None, "fill": None}
        held = [p for p in told.get("producers") or () if line["writer"] in p["waits_for_writers"]]
        found += [entry | {"name": p["name"], "waiting_bytes": p["held_bytes"]} for p in held]
        if not held:
            found.append(entry | {"name": "remote producers"})
    return found


def _entry(
    partition: Answer | None, writer: int, because: str, since_s: float | None, used: int
) -> dict[str, Any]:
    return {
        "topic": None if partition is None else partition["topic"],
        "partition": None if partition is None else partition["partition"],
        "writer": writer,
        "why": because,
        "since_s": None if since_s is None else round(max(0.0, since_s), 3),
        "waiting_bytes": used,
    }


def why(partition: Answer) -> str:
    """Why a partition lets somebody wait, in words."""
    pressure = partition.get("pressure") or {}
    if pressure.get("reason"):
        return str(pressure["reason"])
    waiting = WAITS.get(partition.get("blocked_why", ""))
    if waiting:
        return f"a batch waits {waiting}"
    return str(partition.get("reason") or "it goes on in a moment")


__all__ = ["FULL_PERCENT", "add_pressure", "waits", "why"]
