"""`shmbroker produce` from a file and `shmbroker consume --format value` into a pipe.

Whole commands, from their start to their end, as a person meets them. The limit is `cat` of the
same bytes through a pipe. What was consumed is compared with what was produced.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shmbroker.perf.case import Bench, Case, Sizes, written
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.rounds import repeat

_TOPIC: Final = "lines"
_LEAST: Final = 3e6  # lines a second
_VALUE_BYTES: Final = 100
_CHUNK_BYTES: Final = 1 << 20
_LINES_AT_ONCE: Final = 100_000


def _run(bench: Bench) -> list[Row]:
    count = 2 * bench.sizes.values  # 10 million
    path = bench.home / "lines"
    try:
        expected = _write(path, count)
        with bench.broker() as broker:
            with broker.connect() as client:
                client.create_topic(_TOPIC)
            words = [sys.executable, "-m", "shmbroker.cli.main"]
            where = [_TOPIC, "--instance", broker.instance, "--data-dir", str(broker.data_dir)]

            def produce() -> float:
                began = time.perf_counter()
                subprocess.run([*words, "produce", *where, str(path)], check=True,
                               stderr=subprocess.DEVNULL)  # fmt: skip
                return time.perf_counter() - began

            def consume() -> float:
                command = [*words, "consume", *where, "--from", f"-{count}", "--exit-at-end"]
                took, got = _drain(command)
                if got != expected:
                    raise AssertionError("what came out is not what went in")
                return took

            def bare() -> float:
                return count / _drain(["cat", str(path)])[0]

            return [
                _row(bench, "cli-produce", "produce, lines of a file", count, produce, bare),
                _row(bench, "cli-consume", "consume --format value, a pipe", count, consume, bare),
            ]
    finally:
        path.unlink(missing_ok=True)


def _row(
    bench: Bench,
    case: str,
    figure: str,
    count: int,
    command: Callable[[], float],
    bare: Callable[[], float],
) -> Row:
    bench.say(figure)
    rates = tuple(repeat(lambda: count / command(), bench.sizes.plan))
    limit = Limit("cat through a pipe", statistics.median(bare() for _ in rates), "records/s")
    rate = statistics.median(rates)
    return Row(
        case=case,
        figure=f"{figure}, {_VALUE_BYTES} B",
        unit="records/s",
        values=rates,
        limit=limit,
        ratio=rate / limit.value,
        target=f">= {_LEAST / 1e6:g} M/s",
        met=rate >= _LEAST,
        note=f"{count:,} lines, whole command",
    )


def _write(path: Path, count: int) -> int:
    """A file of so many distinct lines; returns the CRC of its bytes."""
    crc, rest = 0, b"x" * (_VALUE_BYTES - 10)
    with path.open("wb") as file:
        for first in range(0, count, _LINES_AT_ONCE):
            numbers = range(first, min(first + _LINES_AT_ONCE, count))
            data = b"".join([b"%010d%b\n" % (n, rest) for n in numbers])
            crc = zlib.crc32(data, crc)
            file.write(data)
    return crc


def _drain(command: list[str]) -> tuple[float, int]:
    """Seconds from the start of a command to the end of its output, and that output's CRC."""
    crc = 0
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        while data := process.stdout.read(_CHUNK_BYTES):
            crc = zlib.crc32(data, crc)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return time.perf_counter() - began, crc


def _space(sizes: Sizes) -> int:
    rounds = sizes.plan.rounds + sizes.plan.warmups + 1
    return rounds * written(2 * sizes.values, _VALUE_BYTES)


CASES: Final = (Case("cli-lines", "the command line's produce and consume", _run, _space),)

__all__ = ["CASES"]
