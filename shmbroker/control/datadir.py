"""The data directory: its identity, its format version, and the lock that guards it.

Owns: `datadir.json` {"format_version", "data_dir_id"}, written once, when the directory is made,
and `lock`, a line of JSON {"pid", "started"}, which says whose broker it is.

The lock is `flock`: `up` takes it exclusively, which waits until the last process of a killed
broker is really gone, since its last write lands after its death; then it keeps it shared, as every
worker does. So a directory whose lock can be had exclusively is one that nobody writes to. The
conversion is not atomic, and need not be: who loses the race finds the lock taken and is refused.

Invariants: the identity never changes; a newer format is refused and nothing in it is touched;
`lock` is never unlinked (two processes could then hold locks on two files of one name).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from shmbroker.errors import DataDirLocked, DataDirVersion
from shmbroker.places import shm_prefix

FORMAT_VERSION: Final = 1
IDENTITY_FILE: Final = "datadir.json"
LOCK_FILE: Final = "lock"
META_FILE: Final = "meta.db"
_POLL_S: Final = (
    0.005  # flock can't wait with a limit except by a signal, which is not ours to take
)


@dataclass(frozen=True, slots=True)
class DataDir:
    """A data directory of a version that this program can read."""

    path: Path
    data_dir_id: str  # 32 hex digits
    format_version: int = FORMAT_VERSION

    @property
    def shm_prefix(self) -> str:
        """How the names of its shared memory begin."""
        return shm_prefix(self.data_dir_id)

    @property
    def meta_path(self) -> Path:
        """The metadata store's file."""
        return self.path / META_FILE


class DataDirLock:
    """Holds the lock until `release` or the end of the process. Not thread-safe, not forkable."""

    def __init__(self, path: Path, fd: int, *, exclusive: bool) -> None:
        self.path = path
        self.exclusive = exclusive
        self._fd = fd

    def share(self) -> None:
        """Turns the exclusive lock of `up` into a shared one, before workers start.

        Raises DataDirLocked if another broker slipped in; the lock is then given up.
        """
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise _locked(self.path) from None
        self.exclusive = False

    def release(self) -> None:
        """Gives the lock up; twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def open_data_dir(path: Path, *, create: bool = True) -> DataDir:
    """Opens the data directory at `path`, or makes it, durably, when `create` and it is empty.

    Raises DataDirVersion for a newer format, for a file that can't be read, and for a directory
    with somebody else's files in it. Call it under the lock.
    """
    identity = path / IDENTITY_FILE
    try:
        text = identity.read_text(encoding="utf-8")
    except FileNotFoundError:
        if not create:
            raise _no_data_dir(path, f"has no {IDENTITY_FILE}") from None
        return _create(path)
    try:
        found = json.loads(text)
        version, data_dir_id = found["format_version"], uuid.UUID(found["data_dir_id"]).hex
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _no_data_dir(path, f"has a damaged {IDENTITY_FILE}") from None
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise DataDirVersion(
            f"data directory {path} has format version {version}, and this shmbroker reads up to "
            f"{FORMAT_VERSION}; use the version that wrote it, or another --data-dir",
            path=str(path),
        )
    return DataDir(path, data_dir_id, version)


def lock_exclusive(path: Path, timeout_s: float = 10.0) -> DataDirLock:
    """The lock for `up`, on the directory `path`, which is made if need be.

    Refuses at once, with the other's pid, while another broker lives; waits up to `timeout_s` for
    what is left of a dead one. Raises DataDirLocked.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_s
    try:
        while not _try(fd, fcntl.LOCK_EX):
            if _holder(path)[1] or time.monotonic() >= deadline:
                raise _locked(path)
            time.sleep(_POLL_S)
        _write_holder(fd)
    except BaseException:
        os.close(fd)
        raise
    return DataDirLock(path, fd, exclusive=True)


def lock_shared(path: Path) -> DataDirLock:
    """The lock for a worker or an offline tool that writes; raises DataDirLocked at once."""
    fd = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _try(fd, fcntl.LOCK_SH):
        os.close(fd)
        raise _locked(path)
    return DataDirLock(path, fd, exclusive=False)


def sync_dir(path: Path) -> None:
    """Makes names made, renamed or removed in `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _create(path: Path) -> DataDir:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path / f"{IDENTITY_FILE}.new"
    others = sorted({entry.name for entry in path.iterdir()} - {LOCK_FILE, new.name, "lost+found"})
    if others:
        raise _no_data_dir(path, f"has no {IDENTITY_FILE} and holds other files ({others[0]} …)")
    return give_identity(path)


def give_identity(path: Path) -> DataDir:
    """Makes `path`, whatever it holds, a data directory with an id of its own; durable on return.

    For a restore, whose last step it is: what has no identity is no broker's. Under the lock.
    """
    new = path / f"{IDENTITY_FILE}.new"
    data_dir = DataDir(path, uuid.uuid4().hex)
    with new.open("w", encoding="utf-8") as file:
        json.dump({"format_version": FORMAT_VERSION, "data_dir_id": data_dir.data_dir_id}, file)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    new.rename(path / IDENTITY_FILE)
    sync_dir(path)
    sync_dir(path.parent)
    return data_dir


def _try(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_holder(fd: int) -> None:
    line = json.dumps({"pid": os.getpid(), "started": _start_ticks(os.getpid())}) + "\n"
    os.ftruncate(fd, 0)
    os.pwrite(fd, line.encode(), 0)


def _holder(path: Path) -> tuple[int, bool]:
    """The pid in the lock file (-1: none) and whether that very process still lives.

    The start time tells it from another process that was given the same pid.
    """
    found: Any = None
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((path / LOCK_FILE).read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not isinstance(found.get("pid"), int):
        return -1, False
    pid = found["pid"]
    ticks = _start_ticks(pid)
    return pid, ticks is not None and ticks == found.get("started")


def _start_ticks(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        after_name = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        )
    except OSError:
        return None
    return None if after_name[0] in "ZX" else int(after_name[19])


def _locked(path: Path) -> DataDirLocked:
    pid, alive = _holder(path)
    return DataDirLocked(str(path), pid, alive)


def _no_data_dir(path: Path, reason: str) -> DataDirVersion:
    return DataDirVersion(
        f"{path} is no data directory of shmbroker: it {reason}; choose an empty or a new "
        "directory with --data-dir",
        path=str(path),
    )


__all__ = [
    "FORMAT_VERSION",
    "IDENTITY_FILE",
    "LOCK_FILE",
    "META_FILE",
    "DataDir",
    "DataDirLock",
    "give_identity",
    "lock_exclusive",
    "lock_shared",
    "open_data_dir",
    "sync_dir",
]
