"""A topic's settings, under Kafka's names.

Owns: which of Kafka's topic settings exist here, their defaults and bounds, and the refusal by name
of those that do not exist yet. A field's name is Kafka's with `_` for `.`.

Invariants: a `TopicSettings` is valid once made by `from_kafka`; `from_kafka(s.to_kafka()) == s`.
Source: Kafka's documentation, "Topic Configs".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from shmbroker.errors import InvalidConfig
from shmbroker.rule import Rule, did_you_mean

_KIB: Final = 1 << 10
_MIB: Final = 1 << 20

#: Each supported setting and what it may be.
TOPIC_RULES: Final[Mapping[str, Rule]] = {
    "retention.ms": Rule("ms", unlimited=True),
    "retention.bytes": Rule("bytes", unlimited=True),
    # Positions in `.index` are signed 32-bit numbers: the last aligned block ends below 2 GiB.
    "segment.bytes": Rule("bytes", low=64 * _KIB, high=2**31 - 64 * _KIB),
    "segment.ms": Rule("ms", low=1),
    "max.message.bytes": Rule("bytes", low=128, high=32 * _MIB),
    "index.interval.bytes": Rule("bytes", low=0, high=2**31 - 1),
    "cleanup.policy": Rule("word", words=("delete",)),
    "message.timestamp.type": Rule("word", words=("CreateTime",)),
    "compression.type": Rule("word", words=("producer",)),
}

#: Values that Kafka knows for the settings above and that are not there yet.
_LATER_VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "cleanup.policy": ("compact", "compact,delete", "delete,compact"),
    "message.timestamp.type": ("LogAppendTime",),
    "compression.type": ("uncompressed", "gzip", "snappy", "lz4", "zstd"),
}

#: Settings that Kafka has and that are not there yet.
# fmt: off
_LATER: Final = frozenset(
    (
        "compression.gzip.level", "compression.lz4.level", "compression.zstd.level",
        "delete.retention.ms", "file.delete.delay.ms", "flush.messages", "flush.ms",
        "follower.replication.throttled.replicas", "leader.replication.throttled.replicas",
        "local.retention.bytes", "local.retention.ms", "max.compaction.lag.ms",
        "message.downconversion.enable", "message.format.version",
        "message.timestamp.after.max.ms", "message.timestamp.before.max.ms",
        "message.timestamp.difference.max.ms", "min.cleanable.dirty.ratio",
        "min.compaction.lag.ms", "min.insync.replicas", "preallocate", "remote.log.copy.disable",
        "remote.log.delete.on.disable", "remote.storage.enable", "segment.index.bytes",
        "segment.jitter.ms", "unclean.leader.election.enable",
    )
)
# fmt: on


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """The settings in force for one topic; sizes in bytes, times in milliseconds."""

    retention_ms: int = (
        7 * 86_400_000
    )  # a segment retires when its newest record is older; -1 never
    retention_bytes: int = -1  # of one partition; -1: no limit
    segment_bytes: int = 256 * _MIB  # a segment is rolled before it would grow past this
    segment_ms: int = 7 * 86_400_000  # and when its first record is this old
    max_message_bytes: int = _MIB + 12  # the largest record batch, as it stands on disk (Kafka's)
    index_interval_bytes: int = 4096  # of log between two entries of `.index`
    cleanup_policy: str = "delete"
    message_timestamp_type: str = "CreateTime"
    compression_type: str = "producer"

    @property
    def largest_batch_bytes(self) -> int:
        """What an append may bring: `max.message.bytes`, and no more than a segment holds."""
        return min(self.max_message_bytes, self.segment_bytes)

    @classmethod
    def from_kafka(
        cls, settings: Mapping[str, Any], defaults: TopicSettings | None = None
    ) -> TopicSettings:
        """The settings named in `settings`, over `defaults`; values may carry units ("7d").

        Raises InvalidConfig, naming the setting, for an unknown name, a setting or a value of
        Kafka's that is not supported yet, and a value that is out of bounds. Not retriable.
        """
        parsed = parse_settings(settings)
        values: dict[str, Any] = {_field(name): value for name, value in parsed.items()}
        return replace(defaults or cls(), **values)

    def to_kafka(self) -> dict[str, int | str]:
        """All settings under Kafka's names."""
        return {_name(field.name): getattr(self, field.name) for field in fields(self)}


def parse_settings(settings: Mapping[str, Any]) -> dict[str, int | str]:
    """Only what is named, under Kafka's names, each value parsed; raises InvalidConfig."""
    return {name: parse_setting(name, raw) for name, raw in settings.items()}


def parse_setting(name: str, raw: Any) -> Any:
    """The value of one setting; raises InvalidConfig that names it."""
    rule = _rule(name)
    try:
        return rule.parse(raw)
    except ValueError as error:
        if raw in _LATER_VALUES.get(name, ()):
            raise InvalidConfig(
                f"{name}={raw} is not supported yet; allowed: {rule.allowed}", key=name
            ) from None
        raise InvalidConfig(f"{name}: {error}; allowed: {rule.allowed}", key=name) from None


def altered(own: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, int | str]:
    """What is set for a topic after `changes`; None takes a setting back. Raises InvalidConfig."""
    found = dict(own)
    for name, raw in changes.items():
        if raw is None:
            _rule(name)
            found.pop(name, None)
        else:
            found[name] = parse_setting(name, raw)
    return found


def _rule(name: str) -> Rule:
    rule = TOPIC_RULES.get(name)
    if rule is None:
        if name in _LATER:
            raise InvalidConfig(
                f"{name} is a setting of Kafka's that is not supported yet; leave it out", key=name
            )
        raise InvalidConfig(
            f"{name} is no topic setting{did_you_mean(name, TOPIC_RULES)}; "
            f"allowed: {', '.join(TOPIC_RULES)}",
            key=name,
        )
    return rule


def _field(name: str) -> str:
    return name.replace(".", "_")


def _name(field: str) -> str:
    return field.replace("_", ".")


__all__ = ["TOPIC_RULES", "TopicSettings", "altered", "parse_setting", "parse_settings"]
