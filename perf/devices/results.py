"""The results of a run as a file: written after each case, so that a run can go on where it ended.

`results.json` holds what the run is about, the machine, and by device and case every value, of the
device's own cases and of the systems measured on it. It is replaced whole (aside, then renamed). A
run goes on only with the same devices and effort.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shmbroker.perf.report import Limit, Row

FORMAT: Final = 1
FILE: Final = "results.json"


class Unusable(RuntimeError):
    """A file of results that can't be used as asked; the text says what to do."""


@dataclass(slots=True)
class PeerResults:
    """What is known of one system on a device; `cases` by mode."""

    name: str
    title: str
    clients: dict[str, str] = field(default_factory=dict)  # "python", "fastest"
    modes: list[dict[str, str]] = field(default_factory=list)  # "case", "acks", "words"
    networked: bool = True
    stores: bool = True
    versions: dict[str, str] = field(default_factory=dict)
    cases: dict[str, list[Row]] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """Of all modes, in order."""
        return [row for rows in self.cases.values() for row in rows]

    def row(self, case: str) -> Row | None:
        """The one of this name, if it has values."""
        return next((row for row in self.rows() if row.case == case and row.values), None)


@dataclass(slots=True)
class DeviceResults:
    """What is known of one device."""

    name: str
    directory: str
    modelled: str = ""  # what the model charges, with the word; "": a real device
    about: dict[str, Any] = field(default_factory=dict)
    line: str = ""
    cases: dict[str, list[Row]] = field(default_factory=dict)
    peers: list[PeerResults] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The name, and "modelled" where it is."""
        return f"{self.name} (modelled)" if self.modelled else self.name

    def peer(self, name: str) -> PeerResults | None:
        """The system of this name, if it is measured."""
        return next((peer for peer in self.peers if peer.name == name), None)

    def rows(self) -> list[Row]:
        """Of all cases of the device's own, in order."""
        return [row for rows in self.cases.values() for row in rows]

    def row(self, case: str) -> Row | None:
        """The one of this name, if it has values."""
        return next((row for row in self.rows() if row.case == case and row.values), None)


@dataclass(slots=True)
class Results:
    """One run."""

    effort: str
    devices: list[DeviceResults]
    command: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    machine_line: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    started_s: float = field(default_factory=time.time)
    finished_s: float | None = None
    sessions: int = 1  # how often it was begun or gone on with

    @property
    def key(self) -> list[Any]:
        """What must be equal for a run to go on."""
        return [self.effort, [(d.name, d.directory, d.modelled) for d in self.devices]]

    def sections(self) -> list[tuple[str, list[Row]]]:
        """All rows under the names of what they are about: a device, a system on a device."""
        found = []
        for device in self.devices:
            found.append((device.title, device.rows()))
            found += [(f"{device.title}: {peer.title}", peer.rows()) for peer in device.peers]
        return found

    def save(self, path: Path) -> None:
        """Replaces the file."""
        content = {"format": FORMAT, "kind": "devices", **dataclasses.asdict(self)}
        for device, found in zip(content["devices"], self.devices, strict=True):
            device["cases"] = _cases_json(found.cases)
            for peer, one in zip(device["peers"], found.peers, strict=True):
                peer["cases"] = _cases_json(one.cases)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        new.rename(path)


def load(path: Path) -> Results:
    """The run in a file; raises Unusable, OSError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content.pop("format"), content.pop("kind")) != (FORMAT, "devices"):
            raise Unusable(f"{path}: not the results of `shmbroker perf` of this version")
        devices = [_device(found) for found in content.pop("devices")]
        return Results(devices=devices, **content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unusable(f"{path}: not the results of `shmbroker perf`: {error!r}") from error


def _cases_json(cases: dict[str, list[Row]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [row.to_json() for row in rows] for name, rows in cases.items()}


def _device(found: dict[str, Any]) -> DeviceResults:
    peers = [PeerResults(**{**peer, "cases": _cases(peer)}) for peer in found.pop("peers", [])]
    return DeviceResults(**{**found, "cases": _cases(found)}, peers=peers)


def _cases(found: dict[str, Any]) -> dict[str, list[Row]]:
    return {name: [_row(row) for row in rows] for name, rows in found["cases"].items()}


def _row(found: dict[str, Any]) -> Row:
    found = {name: value for name, value in found.items() if name != "median"}
    limit = found.pop("limit")
    found["values"], found["thrown"] = tuple(found["values"]), tuple(found["thrown"])
    return Row(**found, limit=Limit(**limit) if limit else None)


__all__ = ["FILE", "DeviceResults", "PeerResults", "Results", "Unusable", "load"]
