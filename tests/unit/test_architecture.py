"""The file map in docs/ARCHITECTURE.md is true: every source file is in it, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "shmbroker/": (".py",),
    "shmbroker/_core/": (".py", ".h", ".pyx", ".pxi"),
    "shmbroker/log/": (".py",),
    "shmbroker/wire/native/": (".py",),
    "shmbroker/control/": (".py",),
    "shmbroker/control/groups/": (".py",),
    "shmbroker/client/": (".py",),
    "shmbroker/client/aio/": (".py",),
    "shmbroker/client/remote/": (".py",),
    "workers/": (".py",),
    "workers/streams/": (".py",),
    "shmbroker/cli/": (".py",),
    "perf/": (".py",),
    "perf/cases/": (".py",),
    "perf/devices/": (".py", ".c", ".h"),
    "perf/peers/": (".py", ".java"),
}


def mapped() -> list[str]:
    """Every file that the map names, with its folder."""
    text = (ROOT / "docs/ARCHITECTURE.md").read_text()
    found, folder = [], ""
    for line in text[text.index("## File map") : text.index("## Attach")].splitlines():
        if heading := re.match(r"### `([^`]+)`", line):
            folder = heading[1]
        elif row := re.match(r"\| `([^`]+)` \| (.+) \|$", line):
            assert row[2].strip(), f"{row[1]}: what does it own?"
            found.append(folder + row[1])
    return found


def test_the_file_map_names_every_source_file_once() -> None:
    there = [
        folder + path.name
        for folder, endings in FOLDERS.items()
        for path in (ROOT / folder).iterdir()
        if path.suffix in endings and path.name != "__init__.py"
    ]
    assert sorted(mapped()) == sorted(there)
