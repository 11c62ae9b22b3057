"""Which segments have had their time: retention.ms, retention.bytes, deleted records.

Pure; `PartitionLog.retire` executes. Segments go whole, oldest first, never the active one, and
never one with records at or above the durable offset. Source: Kafka's
`UnifiedLog.deleteOldSegments`:
  - retention.ms: while the segment's largest timestamp is older;
  - retention.bytes: while the log without the segment would still have at least that many bytes;
  - below the log start offset (delete_records): while all of its records are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class SegmentFacts(NamedTuple):
    """What retention looks at."""

    base_offset: int
    end_offset: int  # base offset of the next segment, exclusive
    size_bytes: int
    max_timestamp: int  # ms; of the newest record, or when the file was written


def count_to_retire(
    sealed: Sequence[SegmentFacts],
    active_bytes: int,
    *,
    now_ms: int,
    durable_offset: int,
    log_start_offset: int,
    retention_ms: int,
    retention_bytes: int,
) -> int:
    """How many of the oldest sealed segments go. -1 as a limit is none."""
    excess = sum(s.size_bytes for s in sealed) + active_bytes - retention_bytes
    count = 0
    for segment in sealed:
        too_old = 0 <= retention_ms < now_ms - segment.max_timestamp
        too_much = retention_bytes >= 0 and excess >= segment.size_bytes
        deleted = segment.end_offset <= log_start_offset
        if segment.end_offset > durable_offset or not (too_old or too_much or deleted):
            break
        excess -= segment.size_bytes
        count += 1
    return count
