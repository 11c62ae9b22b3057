"""The log file of a detached broker: bounded in size, kept in so many pieces.

    broker.log, broker.log.1 (the one before), … broker.log.<logging.keep>

Who writes: all processes of the broker, through descriptors 1 and 2, appending. The acceptor looks
at the size once a second; past `logging.max_bytes` it renames the pieces and opens a new file in
place of its descriptors, then has every worker do the same. Until then a worker writes into the
piece that was renamed, so no line is lost. A new broker begins a new piece.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # who only begins a file does not load ZeroMQ
    from shmbroker.workers.loop import Loop

_LOOK_S: Final = 1.0


class LogFile:
    """Belongs to the acceptor's loop. `tell` has the workers call `reopen`."""

    def __init__(
        self, path: str, max_bytes: int, keep: int, loop: Loop, tell: Callable[[], None]
    ) -> None:
        self._path, self._max_bytes, self._keep = path, max_bytes, keep
        self._loop, self._tell = loop, tell
        loop.after(_LOOK_S, self._look)

    def _look(self) -> None:
        self._loop.after(_LOOK_S, self._look)
        if os.fstat(2).st_size >= self._max_bytes:
            shift(self._path, self._keep)
            reopen(self._path)
            self._tell()


def begin(path: str | os.PathLike[str], keep: int) -> int:
    """A new file, the ones before renamed; returns its descriptor."""
    shift(os.fspath(path), keep)
    return _open(os.fspath(path))


def reopen(path: str) -> None:
    """Standard output and error go to `path` from now on."""
    fd = _open(path)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def shift(path: str, keep: int) -> None:
    """Makes `path` free: path.1 is the newest of at most `keep` pieces."""
    names = [path]
    while os.path.exists(names[-1]):
        names.append(f"{path}.{len(names)}")
    for n in range(len(names) - 2, -1, -1):
        if n < keep:
            os.rename(names[n], names[n + 1])
        else:
            os.unlink(names[n])


def _open(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


__all__ = ["LogFile", "begin", "reopen", "shift"]
