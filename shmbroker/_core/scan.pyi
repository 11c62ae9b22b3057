"""Types of scan.pyx: segment scans, look-ups, fetches, and the producer table."""

from typing import Final, NamedTuple

ENTRY_BYTES: Final[int]  # of one packed index entry
PRODUCER_BATCHES: Final[int]  # remembered per producer
BATCH_HEADER_BYTES: Final[int]

class ScanResult(NamedTuple):
    stop: str
    stop_text: str
    valid_end: int
    next_offset: int
    epoch: int
    max_timestamp: int
    batches: int
    records: int
    scanned_bytes: int
    stop_offset: int
    stop_epoch: int
    stop_bytes: int
    entries: bytes
    epochs: list[tuple[int, int]]
    bytes_since_index: int

class FoundBatch(NamedTuple):
    position: int
    size_bytes: int
    base_offset: int
    epoch: int

class Search(NamedTuple):
    found: FoundBatch | None
    last_nonzero: int
    read_bytes: int

class BatchAt(NamedTuple):
    position: int
    size_bytes: int
    base_offset: int
    last_offset: int
    max_timestamp: int
    epoch: int

class ProducerTable:
    def __init__(self, max_count: int = 0, expiration_ms: int = 0) -> None: ...
    def __len__(self) -> int: ...
    def check(
        self, producer_id: int, epoch: int, base_sequence: int, count: int
    ) -> tuple[str, int]: ...
    def record(
        self,
        producer_id: int,
        epoch: int,
        base_sequence: int,
        count: int,
        base_offset: int,
        timestamp_ms: int,
    ) -> None: ...
    def expire(self, now_ms: int) -> int: ...
    def export(self, before_offset: int = ...) -> bytes: ...
    def load(self, data: bytes | bytearray | memoryview) -> None: ...

def crc32c(data: bytes | bytearray | memoryview, seed: int = 0) -> int: ...
def fallocate(fd: int, offset: int, size_bytes: int) -> None: ...
def dio_alignment(fd: int) -> tuple[int, int] | None: ...
def filesystem_type(fd: int) -> int: ...
def scan_segment(
    fd: int,
    *,
    position: int,
    limit: int,
    expected_offset: int,
    min_epoch: int = 0,
    max_epoch: int = 0x7FFFFFFF,
    index_interval_bytes: int = 0,
    bytes_since_index: int = 0,
    max_timestamp: int = -1,
    producers: ProducerTable | None = None,
) -> ScanResult: ...
def find_batch_after(
    fd: int,
    start: int,
    end: int,
    *,
    min_offset: int = 0,
    min_epoch: int = 0,
    max_epoch: int = 0x7FFFFFFF,
    min_end: int = 0,
    max_batch_bytes: int = ...,
) -> Search: ...
def locate(
    fd: int, position: int, limit: int, target_offset: int, target_timestamp: int | None = None
) -> BatchAt | None: ...
def header_at(fd: int, position: int, limit: int) -> BatchAt | None: ...
def read_batches(
    fd: int, position: int, limit: int, max_bytes: int, next_offset: int = -1
) -> tuple[bytes, int, bool]: ...
def measure_batches(
    fd: int, position: int, limit: int, max_bytes: int, next_offset: int = -1
) -> tuple[int, int, bool]: ...
