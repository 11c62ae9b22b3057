"""The command line of a detached broker, apart from the program itself (acceptor_main.py), so that
who only starts one does not load ZeroMQ and the rest."""

from __future__ import annotations

import json
import sys

from shmbroker.config import Places


def command(places: Places, ready_fd: int, writer_module: str | None = None) -> list[str]:
    """Starts a broker for `places` that tells `ready_fd` when it is ready, or why it is not."""
    given = {
        "instance": places.instance,
        "data_dir": str(places.data_dir),
        "config": str(places.config_file) if places.config_file else None,
        "ready_fd": ready_fd,
        "writer_module": writer_module,
    }
    return [sys.executable, "-m", "shmbroker.workers.acceptor_main", json.dumps(given)]


__all__ = ["command"]
