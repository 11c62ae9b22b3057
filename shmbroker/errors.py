"""Every error that shmbroker raises, as one table.

Owns: the names, the numbers and the wire form of errors. Each class says whether the same call may
simply be tried again (`retriable`) and its number (`kafka_code`): Kafka's where Kafka has the
error, otherwise one of ours from 1000 on. Receipts of the C core carry the number, control messages
the wire form, and both come back as the class through `ERROR_BY_CODE`, `from_code` and `from_wire`.

Invariants: a number belongs to one class and is never given to another, since programs of different
versions exchange it; every error survives pickling and the wire with its class, message and fields;
an attribute that a class declares exists on every instance, also on one made from a bare number.

Source of the numbers below 1000: Kafka's protocol guide, "Error Codes".
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from typing import Any, ClassVar, Final


class ShmbrokerError(Exception):
    """The root: `except shmbroker.ShmbrokerError` catches whatever shmbroker raises."""

    retriable: ClassVar[bool] = False
    kafka_code: ClassVar[int] = -1  # UNKNOWN_SERVER_ERROR

    def __init__(self, message: str = "", /, **fields: Any) -> None:
        """`fields` become attributes and travel with the error; the class must declare them."""
        super().__init__(message)
        for name, value in fields.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no field {name!r}")
            setattr(self, name, value)

    @property
    def message(self) -> str:
        """The text for the user: the thing, the cause and the way out."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, dict(self.__dict__))

    def to_wire(self) -> dict[str, Any]:
        """The error as plain JSON values; `from_wire` is its inverse."""
        fields = {k: _plain(v) for k, v in self.__dict__.items() if not k.startswith("__")}
        wire: dict[str, Any] = {
            "code": self.kafka_code,
            "name": type(self).__name__,
            "message": self.message,
        }
        if fields:
            wire["fields"] = fields
        return wire


# --- the broker and the way to it ---------------------------------------------------------------


class NoBroker(ShmbrokerError):
    """Nobody answers for the instance: it is not running, or runs elsewhere."""

    retriable, kafka_code = True, 1000
    instance: str = ""
    looked_in: str = ""

    def __init__(self, instance: str, looked_in: str, reason: str = "") -> None:
        because = f" ({reason})" if reason else ""
        way_out = "" if instance == "default" else f" --instance {instance}"
        if "://" in instance:
            text = (
                f"no broker answers at {instance}{because}; look on its host what is bound, with: "
                "shmbroker status (docs/remote.md, When it does not work)"
            )
        else:
            text = (
                f"no broker answers for instance {instance!r}: looked in {looked_in}{because}; "
                f"start it with: shmbroker up{way_out}"
            )
        super().__init__(text, instance=instance, looked_in=looked_in)


class BrokerGone(ShmbrokerError):
    """The broker went away and did not come back within `reconnect_s`."""

    retriable, kafka_code = True, 1001


class OutcomeUnknown(ShmbrokerError):
    """Whether the records were appended can't be settled: sending them again may double them."""

    kafka_code = 1002


class TimedOut(ShmbrokerError, builtins.TimeoutError):
    """The wait ended before what it waited for; what was asked may still happen."""

    retriable, kafka_code = True, 7  # REQUEST_TIMED_OUT


class NotSupported(ShmbrokerError):
    """Exists in Kafka or in the design, and not yet in this version."""

    kafka_code = 1003


class InvalidRequest(ShmbrokerError):
    """A control message or an argument that makes no sense to the broker."""

    kafka_code = 42  # INVALID_REQUEST
    request_id: int | None = None  # of the message that was refused, if it could be read


class UnsupportedVersion(ShmbrokerError):
    """The two sides speak no common version of the protocol."""

    kafka_code = 35  # UNSUPPORTED_VERSION
    request_id: int | None = None  # of the message that was refused, if it could be read


class AuthenticationFailed(ShmbrokerError):
    """The broker does not know who asks: no token, or a wrong one."""

    kafka_code = 58  # SASL_AUTHENTICATION_FAILED


class AuthorizationFailed(ShmbrokerError):
    """The broker knows who asks, and they may not: what is for programs on its host only."""

    kafka_code = 31  # CLUSTER_AUTHORIZATION_FAILED


class QuotaExceeded(ShmbrokerError):
    """More connections or clients at once than the broker takes (`listen.max_connections`)."""

    retriable, kafka_code = True, 89  # THROTTLING_QUOTA_EXCEEDED


class Detached(ShmbrokerError):
    """The broker cut this client off: it wrote rubbish into its ring; the reason is logged."""

    kafka_code = 1004


# --- the use of a client ------------------------------------------------------------------------


class ClosedError(ShmbrokerError):
    """The client, producer or consumer is closed, or was closed while the call waited."""

    kafka_code = 1005


class ForkedError(ShmbrokerError):
    """The object was made before a fork and this is the child."""

    kafka_code = 1006

    def __init__(self, what: str = "this object", /, **fields: Any) -> None:
        super().__init__(
            f"{what} was made before a fork and can't be used in the child: "
            "call shmbroker.connect() again after the fork",
            **fields,
        )


class ConcurrentUse(ShmbrokerError):
    """Two threads or tasks are inside one consumer, which belongs to one at a time."""

    kafka_code = 1007


class BufferFull(ShmbrokerError, builtins.TimeoutError):
    """The ring stayed full for `max_block_ms`, or was full; the record was not taken.

    `sent`: how many records, from the first on, a send_many() had taken before; else None.
    """

    retriable, kafka_code = True, 1008
    sent: int | None = None


class DeliveryError(ShmbrokerError):
    """Records failed and nobody had looked at their receipts."""

    kafka_code = 1009
    count: int = 0
    first: BaseException | None = None

    def __init__(self, count: int, first: BaseException) -> None:
        were = "record was" if count == 1 else "records were"
        cause = str(first) or type(first).__name__
        super().__init__(f"{count} {were} not delivered; the first because: {cause}")
        self.count, self.first = count, first
        self.__cause__ = first


# --- records and batches ------------------------------------------------------------------------


class OffsetOutOfRange(ShmbrokerError):
    """The offset asked for is not in the log: retired, deleted, or not yet written."""

    kafka_code = 1  # OFFSET_OUT_OF_RANGE
    topic: str = ""
    partition: int = -1
    offset: int = -1
    log_start_offset: int = -1  # inclusive: the first offset that is there
    log_end_offset: int = -1  # exclusive: the next offset to be given

    def __init__(
        self, topic: str, partition: int, offset: int, log_start_offset: int, log_end_offset: int
    ) -> None:
        lost = ""
        if offset < log_start_offset:
            lost = f", so {log_start_offset - offset} records are gone (retention or deletion)"
        super().__init__(
            f"offset {offset} of {topic}-{partition} is out of range: the log starts at "
            f"{log_start_offset} and ends before {log_end_offset}{lost}; seek to an offset that is "
            'there, or use on_gap="earliest"',
            topic=topic,
            partition=partition,
            offset=offset,
            log_start_offset=log_start_offset,
            log_end_offset=log_end_offset,
        )


class LogTruncated(ShmbrokerError):
    """Records that had been read were lost with the host before they were durable."""

    kafka_code = 1010
    topic: str = ""
    partition: int = -1
    offset: int = -1  # where the reader stood
    end_offset: int = -1  # exclusive end of what the reader's leader epoch still has


class RecordTooLarge(ShmbrokerError):
    """A record or batch is larger than the topic's max.message.bytes."""

    kafka_code = 10  # MESSAGE_TOO_LARGE
    size_bytes: int = -1
    limit_bytes: int = -1


class CorruptBatch(ShmbrokerError):
    """A batch fails its CRC, or its lengths and counts contradict each other."""

    kafka_code = 2  # CORRUPT_MESSAGE


class InvalidRecord(ShmbrokerError):
    """A batch that is whole and not allowed: unknown attributes, or a control bit from a client."""

    kafka_code = 87  # INVALID_RECORD


class UnsupportedCompression(ShmbrokerError):
    """A batch names a compression that is not known here."""

    kafka_code = 76  # UNSUPPORTED_COMPRESSION_TYPE


class OutOfOrderSequence(ShmbrokerError):
    """A producer's batch does not follow the one before: something between them is missing."""

    kafka_code = 45  # OUT_OF_ORDER_SEQUENCE_NUMBER


class DuplicateSequence(ShmbrokerError):
    """The batch was appended before, too long ago to say at which offset."""

    kafka_code = 46  # DUPLICATE_SEQUENCE_NUMBER


class InvalidProducerEpoch(ShmbrokerError):
    """A newer life of the same producer id has written: this one is fenced."""

    kafka_code = 47  # INVALID_PRODUCER_EPOCH


class UnknownProducerId(ShmbrokerError):
    """The partition has nothing of this producer id, and the sequence is not 0."""

    kafka_code = 59  # UNKNOWN_PRODUCER_ID


class EarlierRejected(ShmbrokerError):
    """An earlier batch of the same producer and partition was rejected, and this one with it."""

    retriable, kafka_code = True, 1011


# --- topics and partitions ----------------------------------------------------------------------


class UnknownTopic(ShmbrokerError):
    """The topic, or that partition of it, does not exist. Topics are never made by sending."""

    kafka_code = 3  # UNKNOWN_TOPIC_OR_PARTITION
    topic: str = ""
    partition: int | None = None

    def __init__(
        self, topic: str, partition: int | None = None, partitions: int | None = None
    ) -> None:
        if partition is None or partitions is None:
            text = f"topic {topic!r} does not exist; create it with: shmbroker topic create {topic}"
        else:
            text = (
                f"topic {topic!r} has no partition {partition}: "
                f"it has {partitions}, numbered from 0 to {partitions - 1}"
            )
        super().__init__(text, topic=topic, partition=partition)


class TopicExists(ShmbrokerError):
    """A topic of that name exists already."""

    kafka_code = 36  # TOPIC_ALREADY_EXISTS
    topic: str = ""

    def __init__(self, topic: str) -> None:
        super().__init__(
            f"topic {topic!r} exists already; use if_not_exists=True (--if-not-exists) to accept "
            f"it, or look at it with: shmbroker topic describe {topic}",
            topic=topic,
        )


class InvalidTopic(ShmbrokerError):
    """A name that no topic may have."""

    kafka_code = 17  # INVALID_TOPIC_EXCEPTION
    topic: str = ""

    def __init__(self, topic: str, reason: str = "") -> None:
        super().__init__(
            f"{topic!r} can't be a topic's name: "
            + (reason or "1 to 249 of a-z A-Z 0-9 . _ - are allowed, and neither '.' nor '..'"),
            topic=topic,
        )


class InvalidPartitions(ShmbrokerError):
    """A number of partitions that can't be: below 1, too many, or fewer than there are."""

    kafka_code = 37  # INVALID_PARTITIONS


class InvalidConfig(ShmbrokerError):
    """A topic setting whose name is unknown or whose value is not allowed."""

    kafka_code = 40  # INVALID_CONFIG
    key: str = ""


class PartitionOffline(ShmbrokerError):
    """A write or a sync of the partition failed; nothing is retried until it was recovered."""

    kafka_code = 56  # KAFKA_STORAGE_ERROR
    topic: str = ""
    partition: int = -1
    reason: str = ""

    def __init__(self, topic: str, partition: int, reason: str) -> None:
        super().__init__(
            f"{topic}-{partition} is offline: {reason}; what was acknowledged is on disk; "
            "mend the cause, then restart: shmbroker down, shmbroker up",
            topic=topic,
            partition=partition,
            reason=reason,
        )


class PartitionReadOnly(ShmbrokerError):
    """The partition can be read and takes no records: damage was found in it."""

    kafka_code = 1012
    topic: str = ""
    partition: int = -1
    reason: str = ""

    def __init__(self, topic: str, partition: int, reason: str) -> None:
        super().__init__(
            f"{topic}-{partition} is read-only: {reason}; see what a repair would lose with: "
            "shmbroker log repair",
            topic=topic,
            partition=partition,
            reason=reason,
        )


class DiskFull(ShmbrokerError):
    """No room to preallocate: the partition is read-only and comes back by itself with space."""

    retriable, kafka_code = True, 1013
    path: str = ""


class MemoryBudget(ShmbrokerError):
    """The rings would need more shared memory than the budget has, or breaks a topic's promise."""

    kafka_code = 1014
    needed_bytes: int = -1
    available_bytes: int = -1


class DamagedLog(ShmbrokerError):
    """Bytes in front of acknowledged records fail their checks: damage, not a torn tail."""

    kafka_code = 1015
    path: str = ""
    position: int = -1  # bytes into the file


# --- consumer groups ----------------------------------------------------------------------------


class InvalidGroup(ShmbrokerError):
    """A name, or something else of a group or of a member, that none may have."""

    kafka_code = 24  # INVALID_GROUP_ID
    group: str = ""


class GroupNotFound(ShmbrokerError):
    """There is no group of that name: nobody has joined it or committed anything for it."""

    kafka_code = 69  # GROUP_ID_NOT_FOUND
    group: str = ""

    def __init__(self, group: str) -> None:
        super().__init__(
            f"group {group!r} does not exist; see those that do with: shmbroker group list",
            group=group,
        )


class GroupNotEmpty(ShmbrokerError):
    """The group has members, and what was asked is for a group without."""

    kafka_code = 68  # NON_EMPTY_GROUP
    group: str = ""
    members: int = -1

    def __init__(self, group: str, members: int, what: str) -> None:
        were = "is a member" if members == 1 else f"are {members} members"
        super().__init__(
            f"{what} is refused while group {group!r} is at work: there {were}; end them, or wait "
            "until their sessions have ended",
            group=group,
            members=members,
        )


class GroupSubscribed(ShmbrokerError):
    """Members of the group read the topic, so what was committed for it stays."""

    kafka_code = 86  # GROUP_SUBSCRIBED_TO_TOPIC
    group: str = ""
    topic: str = ""

    def __init__(self, group: str, topic: str) -> None:
        super().__init__(
            f"offsets of topic {topic!r} can't be deleted while members of group {group!r} read "
            "it; end them, or wait until their sessions have ended",
            group=group,
            topic=topic,
        )


class GroupFull(ShmbrokerError):
    """The group, or the broker, has as many members or groups as it takes."""

    kafka_code = 81  # GROUP_MAX_SIZE_REACHED
    group: str = ""


class UnknownMember(ShmbrokerError):
    """The group has no such member: it left, or was silent past its session timeout."""

    kafka_code = 25  # UNKNOWN_MEMBER_ID
    group: str = ""
    member: str = ""


class FencedMemberEpoch(ShmbrokerError):
    """The member's epoch is none that the coordinator gave it: it must join anew."""

    kafka_code = 110  # FENCED_MEMBER_EPOCH
    group: str = ""
    member: str = ""


class StaleMemberEpoch(ShmbrokerError):
    """The member did not hold the partition at the epoch it says; nothing of it was committed."""

    kafka_code = 113  # STALE_MEMBER_EPOCH
    group: str = ""
    member: str = ""
    topic: str = ""
    partition: int = -1


class FencedInstance(ShmbrokerError):
    """Another program has joined under the same instance id and taken the member's place."""

    kafka_code = 82  # FENCED_INSTANCE_ID
    group: str = ""
    instance_id: str = ""


class NoCommittedOffset(ShmbrokerError):
    """A group has committed nothing for a partition, and is not to choose by itself (start)."""

    kafka_code = 1031
    group: str = ""
    topic: str = ""
    partition: int = -1


class UnsupportedAssignor(ShmbrokerError):
    """An assignor of a name that this broker does not know."""

    kafka_code = 112  # UNSUPPORTED_ASSIGNOR


class InvalidPattern(ShmbrokerError):
    """A pattern of topic names that can't be read, or is too large."""

    kafka_code = 128  # INVALID_REGULAR_EXPRESSION
    pattern: str = ""


class InvalidSessionTimeout(ShmbrokerError):
    """A session timeout outside what the broker allows."""

    kafka_code = 26  # INVALID_SESSION_TIMEOUT


class StoreFailed(ShmbrokerError):
    """The broker could not store it: the disk of the data directory is full, or failed."""

    retriable, kafka_code = True, 1030


class CommitMetadataTooLarge(ShmbrokerError):
    """The metadata string of a commit is longer than the broker keeps."""

    kafka_code = 12  # OFFSET_METADATA_TOO_LARGE
    size_bytes: int = -1
    limit_bytes: int = -1


# --- the data directory and the configuration ---------------------------------------------------


class DataDirLocked(ShmbrokerError):
    """Another broker, or what is left of one, holds the data directory."""

    kafka_code = 1016
    path: str = ""
    pid: int = -1

    def __init__(self, path: str, pid: int, alive: bool = True) -> None:
        if pid <= 0:
            who, way_out = "a process whose pid can't be seen from here", "end it there"
        elif alive:
            who, way_out = f"the broker with pid {pid}", "stop it with: shmbroker down"
        else:
            who = f"what is left of a broker that died (pid {pid})"
            way_out = "wait for its last write to land, then try again"
        super().__init__(
            f"data directory {path} is in use by {who}; {way_out}, "
            "or choose another with --data-dir",
            path=path,
            pid=pid,
        )


class DataDirVersion(ShmbrokerError):
    """The data directory was written by a newer version, or is none of ours."""

    kafka_code = 1017
    path: str = ""


class SerializationError(ShmbrokerError):
    """A program's serializer, deserializer or partitioner failed; `__cause__` says how.

    On the way in nothing was sent. On the way out `record` is the record as it was read, and the
    consumer goes on behind it.
    """

    kafka_code = 1029
    topic: str = ""
    partition: int = -1
    offset: int = -1
    record: Any = None


class ConfigError(ShmbrokerError):
    """A configuration that can't be used: where, which key, and what is allowed."""

    kafka_code = 1018
    file: str = ""
    line: int | None = None
    key: str = ""
    allowed: str = ""

    def __init__(
        self, problem: str, *, file: str, line: int | None = None, key: str = "", allowed: str = ""
    ) -> None:
        """`file` may also name an environment variable or a flag; `line` counts from 1."""
        where = file if line is None else f"{file}:{line}"
        what = f": {key}" if key else ""
        tail = f"; allowed: {allowed}" if allowed else ""
        super().__init__(
            f"{where}{what}: {problem}{tail}", file=file, line=line, key=key, allowed=allowed
        )


def _table() -> dict[int, type[ShmbrokerError]]:
    table: dict[int, type[ShmbrokerError]] = {}
    classes: list[type[ShmbrokerError]] = [ShmbrokerError, *ShmbrokerError.__subclasses__()]
    for cls in classes:
        other = table.setdefault(cls.kafka_code, cls)
        assert other is cls, f"{other.__name__} and {cls.__name__} share {cls.kafka_code}"
    return table


ERROR_BY_CODE: Final[Mapping[int, type[ShmbrokerError]]] = _table()
_BY_NAME: Final = {cls.__name__: cls for cls in ERROR_BY_CODE.values()}


def from_code(code: int, message: str = "", **fields: Any) -> ShmbrokerError:
    """The error for a number out of a receipt; an unknown number becomes the root class.

    `message` is used as it is (the class's docstring when empty); `fields` that the class does not
    declare are ignored, so that a caller may always say topic and partition.
    """
    cls = ERROR_BY_CODE.get(code, ShmbrokerError)
    if not message:
        message = (cls.__doc__ or "").splitlines()[0]
        if cls is ShmbrokerError:
            message = f"the broker reported error {code}, which this version doesn't know"
    known = {k: v for k, v in fields.items() if hasattr(cls, k)}
    return _rebuild(cls, message, known)


def from_wire(wire: Mapping[str, Any]) -> ShmbrokerError:
    """The error that `to_wire` described; what this version doesn't know becomes the root class."""
    code, name, fields = wire.get("code"), wire.get("name"), wire.get("fields")
    cls = _BY_NAME.get(name) if isinstance(name, str) else None
    if cls is None:
        cls = ERROR_BY_CODE.get(code, ShmbrokerError) if isinstance(code, int) else ShmbrokerError
    known: dict[str, Any] = {}
    for key, value in fields.items() if isinstance(fields, Mapping) else ():
        if hasattr(cls, key) and not hasattr(ShmbrokerError, key):
            known[key] = from_wire(value) if isinstance(value, Mapping) else value
            if key == "first" and isinstance(value, str):  # no error of ours: only its words came
                known[key] = ShmbrokerError(value)
    return _rebuild(cls, str(wire.get("message", "")), known)


def _rebuild(cls: type[ShmbrokerError], message: str, fields: Mapping[str, Any]) -> ShmbrokerError:
    """Makes an error without its `__init__`, which would write the message anew."""
    error = cls.__new__(cls, message)
    error.args = (message,)
    error.__dict__.update(fields)
    if isinstance(error, DeliveryError):
        error.__cause__ = error.first
    return error


def _plain(value: Any) -> Any:
    """A field as JSON can carry it."""
    if isinstance(value, ShmbrokerError):
        return value.to_wire()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value) or type(value).__name__


# The classes only: `shmbroker` hands them on as its own.
__all__ = [
    "AuthenticationFailed",
    "AuthorizationFailed",
    "BrokerGone",
    "BufferFull",
    "ClosedError",
    "CommitMetadataTooLarge",
    "ConcurrentUse",
    "ConfigError",
    "CorruptBatch",
    "DamagedLog",
    "DataDirLocked",
    "DataDirVersion",
    "DeliveryError",
    "Detached",
    "DiskFull",
    "DuplicateSequence",
    "EarlierRejected",
    "FencedInstance",
    "FencedMemberEpoch",
    "ForkedError",
    "GroupFull",
    "GroupNotEmpty",
    "GroupNotFound",
    "GroupSubscribed",
    "InvalidConfig",
    "InvalidGroup",
    "InvalidPartitions",
    "InvalidPattern",
    "InvalidProducerEpoch",
    "InvalidRecord",
    "InvalidRequest",
    "InvalidSessionTimeout",
    "InvalidTopic",
    "LogTruncated",
    "MemoryBudget",
    "NoBroker",
    "NoCommittedOffset",
    "NotSupported",
    "OffsetOutOfRange",
    "OutOfOrderSequence",
    "OutcomeUnknown",
    "PartitionOffline",
    "PartitionReadOnly",
    "QuotaExceeded",
    "RecordTooLarge",
    "SerializationError",
    "ShmbrokerError",
    "StaleMemberEpoch",
    "StoreFailed",
    "TimedOut",
    "TopicExists",
    "UnknownMember",
    "UnknownProducerId",
    "UnknownTopic",
    "UnsupportedAssignor",
    "UnsupportedCompression",
    "UnsupportedVersion",
]
