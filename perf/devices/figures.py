"""What the rows of all workloads on a device share: values by size, names, busy processes."""

from __future__ import annotations

import os
from typing import Final

from shmbroker.perf.case import Sizes
from shmbroker.perf.devices.fio import size_text
from shmbroker.perf.values import ValueSpec

#: So that cold records are not in the ring, where a consumer would find them.
SMALL_RINGS: Final = '[memory]\nring_min_bytes = "256KiB"\nring_max_bytes = "2MiB"\n'

#: In `Row.more`: processes that never wait for one another, and the cores that they have.
BUSY: Final = "busy processes"
CORES: Final = "cores"


def value_text(nbytes: int) -> str:
    """100 B, 1 KiB."""
    return f"{nbytes} B" if nbytes < 1024 else size_text(nbytes)


def spec_of(sizes: Sizes, value_bytes: int, share: int = 1) -> ValueSpec:
    """About as many bytes at each size of a value, or the `share`-th part; a multiple of 16."""
    counts = {100: sizes.values, 1024: sizes.values_1k}
    count = counts.get(value_bytes, sizes.values_1k * 1024 // value_bytes) // share
    return ValueSpec(max(16, count // 16 * 16), value_bytes)


def busy(processes: int) -> dict[str, float]:
    """For `Row.more`; more processes than cores are oversubscribed, which the report says."""
    return {BUSY: processes, CORES: len(os.sched_getaffinity(0))}


__all__ = ["BUSY", "CORES", "SMALL_RINGS", "busy", "spec_of", "value_text"]
