"""A disk that a test makes slow: slow_disk.c, compiled, and the environment that a broker needs."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("slow_disk.c")


class SlowDisk:
    """`env` is for a broker's processes; nothing is slow until `slow` says so."""

    def __init__(self, root: Path) -> None:
        library = root / "slow_disk.so"
        flags = ["-std=gnu11", "-O1", "-Wall", "-shared", "-fPIC"]
        subprocess.run(["gcc", *flags, "-o", library, _SOURCE, "-ldl"], check=True)
        self._file = root / "slow_disk.ms"
        self.env = {"LD_PRELOAD": str(library), "SHMB_TEST_SLOW_DISK": str(self._file)}

    def slow(self, write_ms: int) -> None:
        """From now on each write takes so much longer."""
        new = self._file.with_suffix(".new")
        new.write_text(str(write_ms))
        new.rename(self._file)

    def fast(self) -> None:
        """As it is by itself; a write that is held up goes on."""
        self._file.unlink(missing_ok=True)


__all__ = ["SlowDisk"]
