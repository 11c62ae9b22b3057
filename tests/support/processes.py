"""Which processes still live; a zombie is dead, whenever init gets round to reaping it."""

from __future__ import annotations

from collections.abc import Iterable

import psutil


def living(processes: Iterable[psutil.Process | int]) -> list[psutil.Process]:
    """Those that run (given as processes or pids)."""
    found = []
    for each in processes:
        try:
            process = psutil.Process(each) if isinstance(each, int) else each
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


__all__ = ["living"]
