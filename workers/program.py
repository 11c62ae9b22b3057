"""The command line of a detached broker, apart from the program itself (acceptor_main.py), so that
who only starts one does not load ZeroMQ and the rest."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shmbroker.config import Places


@dataclass(frozen=True, slots=True)
class Owner:
    """The program that an embedded broker belongs to."""

    pidfd: int  # readable when it is gone
    lock_fd: int  # of its scratch directory; held as long as either of the two lives
    home: str  # the scratch directory, removed at the end
    keeps_data: bool  # the data lies elsewhere and outlives the broker


def command(
    places: Places,
    ready_fd: int,
    writer_module: str | None = None,
    flags: Mapping[str, Any] | None = None,
    owner: Owner | None = None,
    log_file: str | None = None,
    front_module: str | None = None,
) -> list[str]:
    """Starts a broker for `places` that tells `ready_fd` when it is ready, or why it is not."""
    given = {
        "instance": places.instance,
        "data_dir": str(places.data_dir),
        "config": str(places.config_file) if places.config_file else None,
        "ready_fd": ready_fd,
        "writer_module": writer_module,
        "flags": dict(flags or {}),
        "log_file": log_file,
        "front_module": front_module,
        "owner": None
        if owner is None
        else [owner.pidfd, owner.lock_fd, owner.home, owner.keeps_data],
    }
    return [sys.executable, "-m", "shmbroker.workers.acceptor_main", json.dumps(given)]


__all__ = ["Owner", "command"]
