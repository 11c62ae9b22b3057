"""The table of errors: one number a class, and the way through pickle and the wire and back."""

from __future__ import annotations

import builtins
import json
import pickle
import re
from pathlib import Path

import aiokafka.errors
import pytest

import shmbroker
from shmbroker import errors
from shmbroker.errors import ERROR_BY_CODE, ShmbrokerError, from_code, from_wire

CLASSES = [getattr(errors, name) for name in errors.__all__]

SAMPLES: list[ShmbrokerError] = [
    ShmbrokerError("something"),
    errors.NoBroker("a", "/run/a/attach"),
    errors.BrokerGone("the broker went away"),
    errors.BufferFull("the ring is full"),
    errors.DeliveryError(
        3, errors.RecordTooLarge("2 MiB", size_bytes=2 << 20, limit_bytes=1 << 20)
    ),
    errors.ForkedError("Producer"),
    errors.OffsetOutOfRange("t", 1, offset=5, log_start_offset=10, log_end_offset=20),
    errors.UnknownTopic("orders"),
    errors.UnknownTopic("orders", 7, 2),
    errors.TopicExists("orders"),
    errors.InvalidTopic("a/b"),
    errors.PartitionOffline("t", 0, "write failed: EIO"),
    errors.PartitionReadOnly("t", 0, "damage at 4096"),
    errors.DataDirLocked("/d", 42),
    errors.ConfigError("unknown key", file="a.toml", line=3, key="x", allowed="y"),
    errors.SerializationError("the value of t-1@7", topic="t", partition=1, offset=7),
    errors.DamagedLog("bad CRC", path="/d/t-0/0.log", position=4096),
]


def test_every_class_says_retriable_and_has_its_own_number() -> None:
    for cls in CLASSES:
        assert isinstance(cls.retriable, bool)
        assert ERROR_BY_CODE[cls.kafka_code] is cls
    assert len(ERROR_BY_CODE) == len(CLASSES)
    assert len([c for c in CLASSES if "kafka_code" not in vars(c)]) == 0


@pytest.mark.parametrize(
    ("name", "kafka_name"),
    [
        ("OffsetOutOfRange", "OFFSET_OUT_OF_RANGE"),
        ("CorruptBatch", "CORRUPT_MESSAGE"),
        ("UnknownTopic", "UNKNOWN_TOPIC_OR_PARTITION"),
        ("TimedOut", "REQUEST_TIMED_OUT"),
        ("RecordTooLarge", "MESSAGE_SIZE_TOO_LARGE"),
        ("InvalidTopic", "INVALID_TOPIC"),
        ("UnsupportedVersion", "UNSUPPORTED_VERSION"),
        ("TopicExists", "TOPIC_ALREADY_EXISTS"),
        ("InvalidPartitions", "INVALID_PARTITIONS"),
        ("InvalidConfig", "INVALID_CONFIG"),
        ("InvalidRequest", "INVALID_REQUEST"),
        ("OutOfOrderSequence", "OUT_OF_ORDER_SEQUENCE_NUMBER"),
        ("DuplicateSequence", "DUPLICATE_SEQUENCE_NUMBER"),
        ("InvalidProducerEpoch", "INVALID_PRODUCER_EPOCH"),
        ("PartitionOffline", "KAFKA_STORAGE_ERROR"),
        ("UnknownProducerId", "UNKNOWN_PRODUCER_ID"),
    ],
)
def test_numbers_are_kafkas_where_kafka_has_the_error(name: str, kafka_name: str) -> None:
    theirs = {error.message: code for code, error in aiokafka.errors.kafka_errors.items()}
    assert getattr(errors, name).kafka_code == theirs[kafka_name]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda e: type(e).__name__)
def test_errors_survive_pickle_and_the_wire(error: ShmbrokerError) -> None:
    over_json = from_wire(json.loads(json.dumps(error.to_wire())))
    for twin in (pickle.loads(pickle.dumps(error)), over_json):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        same = {k: v for k, v in vars(error).items() if k != "first"}
        assert {k: v for k, v in vars(twin).items() if k != "first"} == same


def test_the_first_cause_survives() -> None:
    error = errors.DeliveryError(2, errors.RecordTooLarge("big", size_bytes=7))
    for twin in (pickle.loads(pickle.dumps(error)), from_wire(error.to_wire())):
        assert isinstance(twin, errors.DeliveryError)
        assert isinstance(twin.first, errors.RecordTooLarge)
        assert twin.first.size_bytes == 7
        assert twin.__cause__ is twin.first
    foreign = from_wire(errors.DeliveryError(1, ValueError("no")).to_wire())
    assert isinstance(foreign, errors.DeliveryError)
    assert str(foreign.first) == "no"


def test_waits_that_end_are_also_timeout_errors() -> None:
    for cls in (errors.BufferFull, errors.TimedOut):
        assert issubclass(cls, builtins.TimeoutError)
        assert str(cls("full")) == "full"


@pytest.mark.parametrize("code", sorted(ERROR_BY_CODE))
def test_an_error_from_a_bare_number_has_every_declared_field(code: int) -> None:
    error = from_code(code, topic="t", partition=3, nonsense=1)
    assert error.message
    assert not hasattr(error, "nonsense")
    for name in getattr(type(error), "__annotations__", {}):
        getattr(error, name)
    if code in (1, 3, 56):
        assert vars(error) == {"topic": "t", "partition": 3}


def test_unknown_numbers_and_names_become_the_root() -> None:
    assert type(from_code(31_337)) is ShmbrokerError
    assert "31337" in str(from_code(31_337))
    wire = {"code": 31_337, "name": "FromTheFuture", "message": "m", "fields": {"args": 1, "x": 2}}
    assert (type(from_wire(wire)), str(from_wire(wire))) == (ShmbrokerError, "m")
    assert type(from_wire({"code": "x", "name": [], "fields": []})) is ShmbrokerError
    assert type(from_wire({"code": 3})) is errors.UnknownTopic
    assert type(from_wire({"name": "from_code"})) is ShmbrokerError


def test_a_field_that_is_not_declared_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="no field 'colour'"):
        errors.DiskFull("full", colour="red")


def test_errors_name_the_thing_the_cause_and_the_way_out() -> None:
    unknown = "topic 'orders' does not exist; create it with: shmbroker topic create orders"
    assert str(errors.UnknownTopic("orders")) == unknown
    assert "pid 42" in str(errors.DataDirLocked("/d", 42))
    assert "shmbroker up --instance a" in str(errors.NoBroker("a", "/x"))
    assert "starts at 10 and ends before 20" in str(SAMPLES[6])
    assert str(SAMPLES[14]) == "a.toml:3: x: unknown key; allowed: y"


def test_the_package_hands_every_error_on() -> None:
    for name in errors.__all__:
        assert getattr(shmbroker, name) is getattr(errors, name)
        assert name in shmbroker.__all__


def test_the_page_of_errors_names_each_with_its_code_and_what_to_do() -> None:
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(\w+)` \| (-?\d+)[^|]* \| (yes|no) \| ([^|]+) \| ([^|]+) \|$", page, re.M
    )
    assert [row[0] for row in rows] == list(dict.fromkeys(row[0] for row in rows))
    assert {row[0] for row in rows} == {cls.__name__ for cls in CLASSES}
    for name, code, retriable, happened, to_do in rows:
        cls = getattr(errors, name)
        assert int(code) == cls.kafka_code
        assert (retriable == "yes") is cls.retriable
        assert happened == (cls.__doc__ or "").splitlines()[0].rstrip(".")
        assert ("TimeoutError" in to_do) is issubclass(cls, builtins.TimeoutError)


@pytest.mark.parametrize("error", [errors.BufferFull("full"), errors.TimedOut("late")])
def test_what_waited_too_long_is_a_timeout_error_too(error: ShmbrokerError) -> None:
    assert isinstance(error, builtins.TimeoutError)
    assert error.retriable
