"""A device's raw limits by `fio`: one process a job, its JSON made a Row.

One file of written blocks a device; each job runs for a time, not for a size. `O_DIRECT` wherever
the file system has it, so that no page cache answers; where it has none, buffered with the pages
dropped first. "sync" is `O_DSYNC`: each write durable before the next.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shmbroker.perf.devices.needs import require
from shmbroker.perf.report import Row

KIB: Final = 1 << 10
BLOCKS: Final = (4 * KIB, 64 * KIB, 1024 * KIB, 4096 * KIB)
_SLACK_S: Final = 120.0


class FioFailed(RuntimeError):
    """fio ended with an error, or said what is no result."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the raw limits."""

    order: str  # "sequential" or "random"
    way: str  # "read" or "write"
    block_bytes: int
    sync: bool = False
    direct: bool = True

    @property
    def case(self) -> str:
        """The row's name for machines."""
        parts = ["fio", self.order, self.way, f"{self.block_bytes // KIB}k"]
        return "-".join(parts + ["sync"] * self.sync + ["buffered"] * (not self.direct))

    @property
    def figure(self) -> str:
        """For people."""
        sync = ", each durable" if self.sync else ""
        buffered = "" if self.direct else ", through the page cache"
        return f"{self.order} {self.way}, {size_text(self.block_bytes)}{sync}{buffered}"

    @property
    def rw(self) -> str:
        """fio's word."""
        return ("rand" if self.order == "random" else "") + self.way


@dataclass(frozen=True, slots=True)
class Fio:
    """How long and how often."""

    seconds: float = 2.0
    rounds: int = 3
    file_bytes: int = 256 << 20
    blocks: tuple[int, ...] = BLOCKS


def jobs(blocks: tuple[int, ...]) -> Iterator[Job]:
    """All that is measured: by order, way, sync and size; and durable writes through the cache."""
    for block in blocks:
        for order in ("sequential", "random"):
            yield Job(order, "read", block)
            yield Job(order, "write", block)
            yield Job(order, "write", block, sync=True)
        yield Job("sequential", "write", block, sync=True, direct=False)


def size_text(nbytes: int) -> str:
    """4 KiB, 1 MiB."""
    return f"{nbytes // KIB} KiB" if nbytes < 1 << 20 else f"{nbytes >> 20} MiB"


def version() -> str:
    """fio's; raises MissingTool."""
    done = subprocess.run(
        [require("fio", "fio"), "--version"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def has_direct_io(directory: Path) -> bool:
    """Whether O_DIRECT may be opened there; said to fio, which doesn't fall back by itself."""
    path = directory / f".direct-{os.getpid()}"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600))
    except OSError:
        return False
    finally:
        path.unlink(missing_ok=True)
    return True


def command(job: Job, file: Path, seconds: float, file_bytes: int, direct: bool) -> list[str]:
    """What is run for a job."""
    words = [require("fio", "fio"), "--output-format=json", "--thread", "--ioengine=psync"]
    words += [f"--name={job.case}", f"--filename={file}", f"--size={file_bytes}"]
    words += [f"--rw={job.rw}", f"--bs={job.block_bytes}", f"--direct={int(direct and job.direct)}"]
    words += ["--time_based", f"--runtime={round(seconds * 1000)}ms", "--overwrite=1"]
    words += ["--invalidate=1", "--randrepeat=0", "--norandommap"]
    return words + (["--sync=dsync"] if job.sync else [])


def run(directory: Path, fio: Fio, say: Callable[[str], None]) -> list[Row]:
    """Every job, one after the other; removes its file."""
    file = directory / "fio.dat"
    direct = has_direct_io(directory)
    try:
        _lay_out(file, fio.file_bytes)
        rows = []
        for job in jobs(fio.blocks):
            say(job.figure)
            found = [_one(job, file, fio, direct) for _ in range(fio.rounds)]
            rows.append(_row(job, found, direct))
        return rows
    finally:
        file.unlink(missing_ok=True)


def _lay_out(file: Path, file_bytes: int) -> None:
    """Real bytes, written: extents that are only allocated are read as zeros without the disk."""
    piece = os.urandom(1 << 20)
    with open(file, "wb") as stream:
        for _ in range(0, file_bytes, len(piece)):
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())


def _one(job: Job, file: Path, fio: Fio, direct: bool) -> dict[str, Any]:
    words = command(job, file, fio.seconds, fio.file_bytes, direct)
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=file.parent,
        timeout=fio.seconds + _SLACK_S, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise FioFailed(f"{job.case}: fio ended with {done.returncode}: {done.stderr[-500:]}")
    try:
        found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    except (ValueError, KeyError, IndexError) as error:
        raise FioFailed(f"{job.case}: fio said {done.stdout[:300]!r}") from error
    if found["error"]:
        raise FioFailed(f"{job.case}: fio's job ended with error {found['error']}")
    part: dict[str, Any] = found[job.way]
    return part


def _row(job: Job, found: list[dict[str, Any]], direct: bool) -> Row:
    middle = sorted(found, key=lambda part: part["bw_bytes"])[len(found) // 2]
    percentiles = middle["clat_ns"].get("percentile", {})
    more = {"requests/s": middle["iops"]}
    for name, key in (("p50 us", "50.000000"), ("p99 us", "99.000000")):
        if key in percentiles:
            more[name] = percentiles[key] / 1e3
    return Row(
        case=job.case,
        figure=job.figure,
        unit="bytes/s",
        values=tuple(float(part["bw_bytes"]) for part in found),
        note="" if direct or not job.direct else "no O_DIRECT here: through the page cache",
        more=more,
    )


__all__ = ["BLOCKS", "Fio", "FioFailed", "Job", "command", "has_direct_io", "jobs", "run",
           "size_text", "version"]  # fmt: skip
