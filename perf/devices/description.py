"""What a storage device is, by its directory: psutil, /sys, and a try of O_DIRECT."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import psutil

from shmbroker._core import scan
from shmbroker.log.iomode import detect_io_mode


def describe(directory: Path) -> dict[str, Any]:
    """Device, file system, queue and direct I/O of what `directory` is on; "" where unknown."""
    mount = _mount_of(directory)
    queue, name = _block_of(directory)
    mode = detect_io_mode(str(directory))
    rotational = _text(queue / "rotational")
    return {
        "file_system": mount.fstype if mount else "unknown",
        "mount_options": mount.opts if mount else "",
        "device": mount.device if mount else "unknown",
        "block_device": name,
        "model": " ".join(filter(None, (_text(queue.parent / "device" / part)
                                        for part in ("vendor", "model")))),
        "rotational": rotational == "1" if rotational else None,
        "scheduler": _text(queue / "scheduler"),
        "write_cache": _text(queue / "write_cache"),
        "direct_io": mode.direct,
        "direct_io_unit": mode.unit if mode.direct else 0,
        "direct_io_reason": mode.reason,
        "dio_alignment": _alignment(directory),
        "free_bytes": shutil.disk_usage(directory).free,
    }  # fmt: skip


def line(found: dict[str, Any]) -> str:
    """The same in one line."""
    kind = {True: "says that it is rotational", False: "says that it does not rotate"}
    direct = f"O_DIRECT in units of {found['direct_io_unit']} bytes"
    if found["dio_alignment"]:
        memory, offset = found["dio_alignment"]
        direct += f" (statx: memory {memory}, offset {offset})"
    return "; ".join(
        (
            f"{found['file_system']} on {found['device']}",
            found["model"] or "no model named",
            kind.get(found["rotational"], "rotation unknown"),
            f"scheduler {found['scheduler'] or '?'}",
            f"write cache {found['write_cache'] or '?'}",
            direct if found["direct_io"] else f"no O_DIRECT: {found['direct_io_reason']}",
            f"{found['free_bytes'] / 1e9:.0f} GB free",
        )
    )


def _mount_of(directory: Path) -> Any:
    parents = {str(path) for path in (directory.resolve(), *directory.resolve().parents)}
    mounts = [m for m in psutil.disk_partitions(all=True) if m.mountpoint in parents]
    return max(mounts, key=lambda m: len(m.mountpoint), default=None)


def _block_of(directory: Path) -> tuple[Path, str]:
    """The queue in /sys and the name; a partition has its whole disk's queue."""
    number = directory.stat().st_dev
    block = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not block.exists():
        return Path("/nonexistent"), ""
    block = block.resolve()
    disk = block.parent if (block / "partition").exists() else block
    return disk / "queue", block.name


def _alignment(directory: Path) -> tuple[int, int] | None:
    path = directory / f".alignment-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):
            found: tuple[int, int] | None = scan.dio_alignment(fd)
            return found
        return None
    finally:
        os.close(fd)
        path.unlink()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


__all__ = ["describe", "line"]
