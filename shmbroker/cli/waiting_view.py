"""What `status` says in sentences: which partitions are pressed and why, and who waits for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.text import Text

from shmbroker.control.pressure import STATES
from shmbroker.units import about_bytes, about_s

STYLES: Final = {"ok": "", "soft": "yellow", "hard": "red", "offline": "bold red"}
_SHOWN: Final = 20  # sentences of each kind; --json has all


def sentences(found: Mapping[str, Any]) -> list[Text]:
    """One for each pressed partition, the worst first, and one for each who waits."""
    pressed = [p for p in found["partitions"] if state_of(p) != "ok"]
    pressed.sort(key=lambda p: (-STATES.index(state_of(p)), -p["pressure"]["since_s"]))
    waits = found.get("waits") or []
    if not pressed and not waits:
        count = len(found["partitions"])
        return [Text(f"pressure none: {count} partitions, and nobody waits" if count else
                     "pressure none: there are no partitions")]  # fmt: skip
    return [*_cut([_partition(p) for p in pressed]), *_cut([_wait(w) for w in waits])]


def state_of(partition: Mapping[str, Any]) -> str:
    """The state of its pressure."""
    return str((partition.get("pressure") or {}).get("state", "ok"))


def pressure(partition: Mapping[str, Any]) -> str:
    """The column of the table."""
    state = state_of(partition)
    return "-" if state == "ok" else f"{state} {about_s(partition['pressure']['since_s'])}"


def _partition(p: Mapping[str, Any]) -> Text:
    said = p["pressure"]
    return Text.assemble(
        "pressure ", (f"{p['topic']}-{p['partition']}", "bold"), " is ",
        (said["state"], STYLES[said["state"]]), f" for {about_s(said['since_s'])}: "
        f"{said['reason']}",
    )  # fmt: skip


def _wait(w: Mapping[str, Any]) -> Text:
    who = w["name"] or "a program"
    if w.get("pid"):
        who += f" (pid {w['pid']})"
    elif w.get("via"):
        who += f" (elsewhere, by {w['via']})"
    what = f"writer-{w['writer']}" if w["topic"] is None else f"{w['topic']}-{w['partition']}"
    since = "" if w["since_s"] is None else f", for {about_s(w['since_s'])} now"
    ring = "" if w.get("fill") is None else f", {100 * w['fill']:.0f} % of its ring"
    return Text.assemble(
        "waiting ", (who, "bold"), " waits for ", (what, "bold"),
        f"{since}, with {about_bytes(w['waiting_bytes'])}{ring}: {w['why']}",
    )  # fmt: skip


def _cut(lines: list[Text]) -> Iterator[Text]:
    yield from lines[:_SHOWN]
    if len(lines) > _SHOWN:
        yield Text(f"  … and {len(lines) - _SHOWN} more: shmbroker status --json")


__all__ = ["STYLES", "pressure", "sentences", "state_of"]
