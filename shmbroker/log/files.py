"""Durable files: directory syncs, whole-file replacement, and the text of a full disk.

Owns no file. Used by whatever in `log` writes one, in the writer process (and by `shmbroker log
repair` while no broker runs). Not for record batches: those are the engine's.
"""

from __future__ import annotations

import errno
import os

from shmbroker.errors import DiskFull

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def disk_full(path: str, what: str, error: OSError) -> DiskFull:
    """The typed error for ENOSPC and its like; the partition returns by itself with space."""
    return DiskFull(
        f"no room for {what} of {path}: {error.strerror}; free space on its disk, or lower "
        "retention.bytes or retention.ms of the topic: the partition goes on by itself then",
        path=path,
    )


def sync_directory(directory: str) -> None:
    """Returns when creates, renames and unlinks in `directory` are durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | bytearray | memoryview, position: int) -> None:
    """pwrite that goes on after a short write."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(fd, view, position)
        view = view[written:]
        position += written


def replace_file(directory: str, name: str, data: bytes, aside: str) -> None:
    """Writes `data` under the name `aside`, syncs it, renames it to `name`, syncs the directory.

    Returns after the new content is durable; at any moment before that the old one is there whole.
    Raises DiskFull, OSError.
    """
    tmp, path = os.path.join(directory, aside), os.path.join(directory, name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        fd = os.open(tmp, flags, 0o600)
        try:
            write_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(tmp, path)
        sync_directory(directory)
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(path, "a new version", error) from error
        raise


def unlink_quietly(path: str) -> bool:
    """Unlinks; False when nothing was there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
