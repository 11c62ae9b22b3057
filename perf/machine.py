"""The machine that a run is about: cores, kernel, versions, its directory's device; and pinning."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import psutil

import shmbroker
from shmbroker.perf.devices.description import describe

_PACKAGES: Final = ("cython", "pyzmq", "cramjam", "posix-ipc", "psutil")


def pin_bench(cores: int) -> list[int]:
    """Keeps this process, and all that it starts, on the first `cores` cores it may use."""
    allowed = sorted(os.sched_getaffinity(0))
    chosen = allowed[:cores] if cores else allowed
    os.sched_setaffinity(0, chosen)
    return chosen


def about(directory: Path) -> dict[str, Any]:
    """What the report says of the machine and of what runs on it."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_used": sorted(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "shm_free_bytes": shutil.disk_usage("/dev/shm").free,
        "load": [round(load, 2) for load in os.getloadavg()],
        "kernel": platform.release(),
        **describe(directory),
        "python": platform.python_version(),
        "shmbroker": shmbroker.__version__,
        "packages": {name: metadata.version(name) for name in _PACKAGES if _installed(name)},
    }


def versions() -> dict[str, str]:
    """Of what runs: the broker, the language, the kernel and the packages."""
    found = {"shmbroker": shmbroker.__version__, "Python": platform.python_version(),
             "Linux": platform.release()}  # fmt: skip
    return found | {name: metadata.version(name) for name in _PACKAGES if _installed(name)}


def line(found: dict[str, Any]) -> str:
    """The same in one line."""
    used = len(found["cores_used"])
    load = found["load"][0]
    return (
        f"{found['cpu']}, {used} of {found['cores']} cores used, "
        f"{found['memory_bytes'] / (1 << 30):.0f} GiB; Linux {found['kernel']}; "
        f"{found['file_system']} on {found['device']} (write cache: {found['write_cache'] or '?'}, "
        f"scheduler: {found['scheduler'] or '?'}); Python {found['python']}, "
        f"shmbroker {found['shmbroker']}; load before the run {load:g}"
    )


def _cpu_model() -> str:
    for text in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if text.startswith("model name"):
            return text.partition(":")[2].strip()
    return platform.machine()


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


__all__ = ["about", "line", "pin_bench", "versions"]
