"""A modelled rotating disk: hddfs.c built, mounted over a directory, unmounted, nothing left.

`MODELLED` stands in the description of whatever ran on it. The mount belongs to the process that
made it: it goes with `close`, and without it when that process dies, or its own (hddfs.c's guard).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from shmbroker.perf.devices.needs import MissingTool, require

MODELLED: Final = "modelled"
SEQUENTIAL_RATIO: Final = 50.0  # what makes a rotating disk: sequential to random, 4 KiB, no sync
_SOURCES: Final = ("hddfs.c", "hdd_head.h")
_MOUNT_S: Final = 10.0
_END_S: Final = 10.0


class BadModel(RuntimeError):
    """The model doesn't behave like a rotating disk, or could not be built or mounted."""


@dataclass(frozen=True, slots=True)
class Hdd:
    """What the model charges."""

    bytes_per_s: float = 150e6
    seek_ms: float = 8.0
    rotation_ms: float = 8.3  # of 7,200 a minute

    def text(self) -> str:
        """In words, with the word."""
        return (
            f"{MODELLED}: {self.bytes_per_s / 1e6:g} MB/s, {self.seek_ms:g} ms a seek, "
            f"{self.rotation_ms:g} ms more to be durable"
        )


def judge(sequential_per_s: float, random_per_s: float) -> None:
    """Raises BadModel unless sequential 4 KiB is 50 times random, both without sync."""
    ratio = sequential_per_s / random_per_s if random_per_s > 0 else 0.0
    if not ratio >= SEQUENTIAL_RATIO:
        raise BadModel(
            f"the {MODELLED} HDD is refused: sequential 4 KiB requests without sync are "
            f"{ratio:.0f} times as fast as random ones, and must be {SEQUENTIAL_RATIO:.0f} times "
            "(is this machine too busy for the model's 27 us a request?)"
        )


def build() -> Path:
    """The program, compiled once a version of its source; raises MissingTool or BadModel."""
    here = Path(__file__).parent
    digest = hashlib.sha256(b"".join((here / name).read_bytes() for name in _SOURCES)).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shmbroker"
    program = cache / f"hddfs-{digest[:16]}"
    if program.exists():
        return program
    compiler = require("cc", "gcc libc6-dev")
    flags = subprocess.run(
        [require("pkg-config", "pkg-config"), "--cflags", "--libs", "fuse3"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if flags.returncode:
        raise MissingTool("libfuse3's headers", "on Debian: apt-get install libfuse3-dev")
    cache.mkdir(parents=True, exist_ok=True)
    new = cache / f"{program.name}.{os.getpid()}"
    command = [compiler, "-O2", "-o", str(new), str(here / _SOURCES[0]), *flags.stdout.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BadModel(f"hddfs.c does not compile:\n{done.stderr[-2000:]}")
    new.rename(program)
    return program


class ModelHdd:
    """The model as a directory, `directory`, over files in a new one below `parent`."""

    def __init__(self, parent: Path, hdd: Hdd | None = None) -> None:
        self.hdd = hdd or Hdd()
        self._parent = parent
        self._home: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def directory(self) -> Path:
        """Where it is mounted."""
        assert self._home is not None
        return self._home / "disk"

    def open(self) -> None:
        """Mounts it; raises MissingTool or BadModel."""
        require("fusermount3", "fuse3")
        program = build()
        self._home = Path(tempfile.mkdtemp(prefix="shmb-perf-hdd-", dir=self._parent))
        below = self._home / "below"
        below.mkdir()
        self.directory.mkdir()
        hdd = self.hdd
        charges = (hdd.bytes_per_s, hdd.seek_ms * 1e3, hdd.rotation_ms * 1e3)
        self._process = subprocess.Popen(
            [program, below, self.directory, *(repr(charge) for charge in charges)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl+C is for who uses it, and who then closes it
        )
        self._wait()

    def _wait(self) -> None:
        """Until the program says that it is mounted: one line, or its end with what went wrong."""
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _MOUNT_S)
        said = self._process.stdout.readline() if ready else b"it did not answer"
        if said.strip() == b"mounted":
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            rest, _ = self._process.communicate(timeout=1)
            said += rest
        self.close()
        raise BadModel(
            f"the {MODELLED} HDD could not be mounted: {said.decode(errors='replace').strip()}; "
            "FUSE needs /dev/fuse (containers: --device /dev/fuse --cap-add SYS_ADMIN)"
        )

    def close(self) -> None:
        """Unmounts it and removes its files. Twice is fine."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        home, self._home = self._home, None
        if home is not None:
            if os.path.ismount(home / "disk"):
                unmount(home / "disk")
            shutil.rmtree(home, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def unmount(mountpoint: Path) -> None:
    """Whatever is mounted there, at once, also while it is in use."""
    subprocess.run(["fusermount3", "-u", "-q", "-z", str(mountpoint)], check=False)


__all__ = ["MODELLED", "BadModel", "Hdd", "ModelHdd", "build", "judge", "unmount"]
