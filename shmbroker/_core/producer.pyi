from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol

from typing_extensions import Buffer

from shmbroker._core.columns import Column

_Headers = Mapping[str, Buffer | None] | Iterable[tuple[str, Buffer | None]]

class ArrowArray(Protocol):
    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]: ...

class ArrowStream(Protocol):
    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...

Many = Sequence[Buffer | None] | Buffer | ArrowArray | ArrowStream | Column
ManyTimes = Sequence[int | datetime] | Buffer | ArrowArray | ArrowStream

DEFAULT_RING_BYTES: Final[int]
DEFAULT_SLOTS: Final[int]

# What RelayTopic.publish() returns.
RELAY_TAKEN: Final[int]
RELAY_FULL: Final[int]
RELAY_MOVING: Final[int]
RELAY_REFUSED: Final[int]
RELAY_UNREADY: Final[int]

class RecordMetadata(NamedTuple):
    topic: str
    partition: int
    offset: int | None  # None with acks="none"
    timestamp: int  # ms since 1970

class ManyMetadata(NamedTuple):
    topic: str
    records: int
    base_offsets: dict[int, int | None]  # by partition: of the first record there
    counts: dict[int, int]  # by partition: records

class Receipt:
    def __await__(self) -> Generator[Any, None, RecordMetadata]: ...
    def done(self) -> bool: ...
    def add_done_callback(self, fn: Callable[[Receipt], object]) -> None: ...
    def result(self, timeout: float | None = None) -> RecordMetadata: ...
    def exception(self, timeout: float | None = None) -> Exception | None: ...

class ManyReceipt:
    @property
    def count(self) -> int: ...
    def __len__(self) -> int: ...
    def __await__(self) -> Generator[Any, None, ManyMetadata]: ...
    def done(self) -> bool: ...
    def add_done_callback(self, fn: Callable[[ManyReceipt], object]) -> None: ...
    def result(self, timeout: float | None = None) -> ManyMetadata: ...
    def exception(self, timeout: float | None = None) -> Exception | None: ...

class Outlets:
    connection: Final[Any]
    def __init__(self, connection: Any, ring_bytes: int = ..., slots: int = ...) -> None: ...
    def on_gone(self) -> None: ...
    def on_reattached(self, adopted: bool) -> None: ...
    def counters(self) -> dict[int, dict[str, int]]: ...

class Sender:
    connection: Final[Any]
    def __init__(
        self,
        connection: Any,
        metadata: Any,
        outlets: Outlets,
        *,
        acks: str,
        compression: str | None,
        linger_ms: int,
        max_block_ms: int,
        delivery_timeout_ms: int,
        idempotent: bool,
        batch_bytes: int,
    ) -> None: ...
    @property
    def forked(self) -> bool: ...
    def check(self) -> None: ...
    def close(self) -> None: ...
    def is_closed(self) -> bool: ...
    def end_watches(self, timeout: float | None = None) -> None: ...
    def flush(self, timeout: float | None = None) -> bool: ...
    def publish(self) -> None: ...
    def failures(self) -> tuple[int, BaseException | None]: ...

class Mailbox:
    def __init__(self, fd: int) -> None: ...
    def take(self) -> list[tuple[Any, int]]: ...
    def put(self, what: object) -> None: ...

def relay_sender(
    connection: Any,
    metadata: Any,
    outlets: Outlets,
    mailbox: Mailbox,
    moved: object,
    chained: bool,
) -> Sender: ...
def batch_producer(batch: Buffer) -> tuple[int, int]: ...

class RelayedBatch:
    tag: Final[Any]
    def outcome(self, why: int) -> tuple[int, Exception | None]: ...

class RelayTopic:
    def __init__(self, sender: Sender, mailbox: Mailbox, info: Any, producer_id: int) -> None: ...
    def close(self) -> None: ...
    @property
    def name(self) -> str: ...
    def writer(self, partition: int) -> int: ...
    def busy(self) -> bool: ...
    def prepare(self, partition: int, size: int) -> None: ...
    def publish(
        self, partition: int, batch: Buffer, acks: int, tag: object, room: object
    ) -> int: ...
    def refusal(self, partition: int, base_sequence: int) -> Exception: ...
    def why_waiting(self, partition: int) -> str: ...

class ProducerBase:
    def _begin(self, sender: Sender) -> None: ...
    def send(
        self,
        topic: str,
        value: Buffer | None,
        key: Buffer | None = None,
        headers: _Headers | None = None,
        partition: int | None = None,
        timestamp: int | datetime | None = None,
    ) -> Receipt: ...
    def send_many(
        self,
        topic: str,
        values: Many,
        keys: Many | None = None,
        partition: int | None = None,
        timestamps: ManyTimes | None = None,
    ) -> ManyReceipt: ...
    def _send_many(
        self,
        topic: str,
        values: Many,
        keys: Many | None,
        partition: int | None,
        timestamps: ManyTimes | None,
        partitions: Sequence[int] | None,
    ) -> ManyReceipt: ...

class AsyncProducerBase:
    def _begin(self, sender: Sender, bridge: Any) -> None: ...
    def send(
        self,
        topic: str,
        value: Buffer | None,
        key: Buffer | None = None,
        headers: _Headers | None = None,
        partition: int | None = None,
        timestamp: int | datetime | None = None,
    ) -> Coroutine[Any, Any, Receipt]: ...
    def send_many(
        self,
        topic: str,
        values: Sequence[Buffer | None],
        keys: Sequence[Buffer | None] | None = None,
        partition: int | None = None,
        timestamps: Sequence[int | datetime] | None = None,
    ) -> Coroutine[Any, Any, ManyReceipt]: ...
    def _flush(self) -> Coroutine[Any, Any, None]: ...
    def _end_waits(self) -> None: ...
