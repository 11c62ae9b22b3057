from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, final

from typing_extensions import Buffer

from shmbroker._core.compression import Compression
from shmbroker.errors import CorruptBatch as CorruptBatch

Headers = Sequence[tuple[str, Buffer | None]]

class BatchInfo(NamedTuple):
    position: int
    size: int
    base_offset: int
    last_offset: int
    leader_epoch: int
    crc: int
    attributes: int
    compression: Compression
    log_append_time: bool
    transactional: bool
    control: bool
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, as Kafka's name for it

@final
class Record:
    def __init__(
        self,
        topic: str,
        partition: int,
        offset: int,
        timestamp: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = ...,
    ) -> None: ...
    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> list[tuple[str, bytes | None]]: ...
    def __hash__(self) -> int: ...
    def __eq__(self, other: object) -> bool: ...

@final
class RecordBatch:
    def __init__(
        self,
        raw: Buffer,
        topic: str = "",
        partition: int = -1,
        start_offset: int = 0,
        *,
        verify: bool = True,
    ) -> None: ...
    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def start_offset(self) -> int: ...
    @property
    def raw(self) -> bytes: ...
    @property
    def info(self) -> BatchInfo: ...
    @property
    def base_offset(self) -> int: ...
    @property
    def last_offset(self) -> int: ...
    @property
    def leader_epoch(self) -> int: ...
    @property
    def base_timestamp(self) -> int: ...
    @property
    def max_timestamp(self) -> int: ...
    @property
    def producer_id(self) -> int: ...
    @property
    def producer_epoch(self) -> int: ...
    @property
    def base_sequence(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def compression(self) -> Compression: ...
    @property
    def is_control(self) -> bool: ...
    @property
    def is_transactional(self) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Record]: ...
    def values(self) -> list[bytes | None]: ...
    def records(self) -> list[Record]: ...
    def keys(self) -> list[bytes | None]: ...
    def offsets(self) -> list[int]: ...
    def timestamps(self) -> list[int]: ...

def crc32c(data: Buffer, crc: int = 0) -> int: ...
def crc32c_implementation() -> Literal["avx512-vpclmul", "sse4.2", "armv8-crc", "portable"]: ...
def murmur2(key: Buffer) -> int: ...
def partition_for_key(key: Buffer, n: int) -> int: ...
def next_batch(buf: Buffer, pos: int = 0, *, verify: bool = True) -> BatchInfo | None: ...
def batch_headers(buf: Buffer, *, verify: bool = True) -> Iterator[BatchInfo]: ...
def validate(buf: Buffer, *, from_log: bool = False, compacted: bool = False) -> None: ...
def find_batch(
    buf: Buffer,
    min_base_offset: int = 0,
    min_epoch: int = 0,
    max_epoch: int = 0x7FFFFFFF,
    max_batch_bytes: int = 0x7FFFFFFF,
) -> int: ...
def split_batches(
    buf: Buffer,
    topic: str = "",
    partition: int = -1,
    start_offset: int = 0,
    *,
    verify: bool = True,
) -> list[RecordBatch]: ...
def decode_values(
    buf: Buffer, start_offset: int = 0, *, verify: bool = True
) -> list[bytes | None]: ...
def decode_records(
    buf: Buffer,
    topic: str = "",
    partition: int = -1,
    start_offset: int = 0,
    *,
    verify: bool = True,
) -> list[Record]: ...
def encode_batch(
    records: Iterable[tuple[int, Buffer | None, Buffer | None, Headers | None]],
    *,
    base_offset: int = 0,
    leader_epoch: int = 0,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    compression: Compression = "none",
    level: int | None = None,
    transactional: bool = False,
    control: bool = False,
    log_append_time: bool = False,
) -> bytes: ...
def encode_values(
    values: list[bytes | None] | list[bytes],
    timestamp: int,
    *,
    base_offset: int = 0,
    leader_epoch: int = 0,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    compression: Compression = "none",
    level: int | None = None,
) -> bytes: ...
