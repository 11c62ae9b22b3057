"""A checkpoint on its way to the disk, while the housekeeper goes on.

Made whole in the housekeeper's thread; `run`, which waits for the disk, may be called in another.
Whoever would write the next checkpoint, or touch the index files, waits for it (`settle` in
partition.py); rolls don't.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from shmbroker.errors import ShmbrokerError
from shmbroker.log import checkpoint
from shmbroker.log.checkpoint import Checkpoint


class PendingCheckpoint:
    """One; `point` counts when `result` has returned."""

    def __init__(self, directory: str, point: Checkpoint, index_paths: Sequence[str]) -> None:
        self.point = point
        self._directory, self._index_paths = directory, index_paths
        self._done = threading.Event()
        self._error: OSError | ShmbrokerError | None = None

    @property
    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        return self._done.is_set()

    def run(self) -> None:
        """Syncs the index files, then replaces the checkpoint. Raises nothing: see `result`."""
        try:
            for path in self._index_paths:
                _sync(path)
            checkpoint.store(self._directory, self.point)
        except (OSError, ShmbrokerError) as error:
            self._error = error
        finally:
            self._done.set()

    def result(self) -> Checkpoint:
        """Waits, and raises what went wrong: DiskFull, OSError."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self.point


def _sync(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # an index without an entry yet
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


__all__ = ["PendingCheckpoint"]
