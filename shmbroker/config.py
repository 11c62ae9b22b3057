"""The broker's configuration: TOML, environment and flags become frozen dataclasses.

Owns: every key of the configuration, its default and bounds (`configs/default.toml` explains each,
and a test holds the two together), and the precedence flag > environment > file > default, with the
source of each value kept for `shmbroker config show`.

Names: `section.key`; the environment's name is `SHMBROKER_SECTION_KEY`. `[log]` holds the defaults
of topics under Kafka's own names (`log.retention.ms`, `SHMBROKER_LOG_RETENTION_MS`).

Invariants: a `BrokerConfig` that `load` returns is valid as a whole; a key that is not known is an
error with file, line and what is allowed, and so is an unknown `SHMBROKER_<SECTION>_…` variable.
Reads files only when asked to by `load`; starts nothing, remembers nothing.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from shmbroker.addresses import parse_tcp
from shmbroker.errors import ConfigError, InvalidConfig
from shmbroker.places import Places, shm_prefix
from shmbroker.rule import Kind, Rule, did_you_mean
from shmbroker.toml_lines import key_lines
from shmbroker.topic_settings import TOPIC_RULES, TopicSettings, parse_setting

_KIB: Final = 1 << 10
_MIB: Final = 1 << 20
_RING_UNIT: Final = 64 * _KIB  # capacities are multiples of the largest page there is (aarch64)
ENV_PREFIX: Final = "SHMBROKER_"


def _key(default: Any, kind: Kind, **bounds: Any) -> Any:
    return field(default=default, metadata={"rule": Rule(kind, **bounds)})


@dataclass(frozen=True, slots=True)
class BrokerSection:
    """`[broker]`: processes, flushing, shutdown."""

    drain_s: float = _key(30.0, "s", low=0, high=86_400)
    writers: int | Literal["auto"] = _key("auto", "count", low=1, high=256, words=("auto",))
    flush_depth: int | Literal["auto"] = _key("auto", "count", low=1, high=64, words=("auto",))
    flush_max_bytes: int = _key(
        4 * _MIB, "bytes", low=64 * _KIB, high=64 * _MIB, multiple_of=64 * _KIB
    )
    direct_io: bool = _key(True, "bool")
    idle: Literal["adaptive", "spin", "park"] = _key(
        "adaptive", "word", words=("adaptive", "spin", "park")
    )
    pin: bool | Literal["auto"] = _key("auto", "bool", words=("auto",))
    checkpoint_bytes: int = _key(64 * _MIB, "bytes", low=_MIB, high=1 << 40)
    checkpoint_interval_ms: int = _key(10_000, "ms", low=100, high=3_600_000)


@dataclass(frozen=True, slots=True)
class MemorySection:
    """`[memory]`: what the rings may take of `/dev/shm`."""

    budget_bytes: int | Literal["auto"] = _key("auto", "bytes", low=_MIB, words=("auto",))
    ring_min_bytes: int = _key(
        256 * _KIB, "bytes", low=_RING_UNIT, high=1 << 30, multiple_of=_RING_UNIT
    )
    ring_max_bytes: int = _key(
        64 * _MIB, "bytes", low=_RING_UNIT, high=1 << 30, multiple_of=_RING_UNIT
    )
    ingress_min_bytes: int = _key(
        256 * _KIB, "bytes", low=_RING_UNIT, high=1 << 30, multiple_of=_RING_UNIT
    )
    ingress_max_bytes: int = _key(
        4 * _MIB, "bytes", low=_RING_UNIT, high=1 << 30, multiple_of=_RING_UNIT
    )

    def budget_in(self, shm_free_bytes: int) -> int:
        """The budget in bytes: "auto" is a quarter of what `/dev/shm` has free, at most 1 GiB."""
        if self.budget_bytes == "auto":
            return min(shm_free_bytes // 4, 1 << 30)
        return self.budget_bytes


@dataclass(frozen=True, slots=True)
class SupervisionSection:
    """`[supervision]`: how a dead worker is replaced."""

    restart_backoff_ms: int = _key(50, "ms", low=0, high=60_000)
    restart_backoff_max_ms: int = _key(5_000, "ms", low=1, high=3_600_000)
    stable_after_ms: int = _key(30_000, "ms", low=1, high=86_400_000)


@dataclass(frozen=True, slots=True)
class PressureSection:
    """`[pressure]`: when a partition counts as pressed; control/pressure.py has the rules."""

    soft_fill_percent: int = _key(50, "count", low=1, high=100)
    hard_fill_percent: int = _key(90, "count", low=1, high=100)
    margin_percent: int = _key(10, "count", low=0, high=100)
    slow_write_ms: int = _key(100, "ms", low=1, high=3_600_000)
    stalled_ms: int = _key(500, "ms", low=1, high=3_600_000)
    calm_ms: int = _key(500, "ms", low=0, high=3_600_000)


@dataclass(frozen=True, slots=True)
class GroupsSection:
    """`[groups]`: consumer groups; docs/groups.md has the rules."""

    session_timeout_ms: int = _key(15_000, "ms", low=1_000, high=1_800_000)
    session_timeout_min_ms: int = _key(1_000, "ms", low=100, high=1_800_000)
    session_timeout_max_ms: int = _key(1_800_000, "ms", low=1_000, high=86_400_000)
    heartbeat_ms: int = _key(3_000, "ms", low=100, high=600_000)
    rebalance_timeout_ms: int = _key(300_000, "ms", low=1_000, high=86_400_000)
    gather_ms: int = _key(20, "ms", low=0, high=10_000)
    assignor: Literal["sticky", "range", "roundrobin"] = _key(
        "sticky", "word", words=("sticky", "range", "roundrobin")
    )
    members_max: int = _key(1_000, "count", low=1, high=100_000)
    groups_max: int = _key(10_000, "count", low=1, high=1_000_000)
    offsets_retention_minutes: int = _key(10_080, "count", low=1, high=52_560_000)
    offsets_flush_ms: int = _key(100, "ms", low=1, high=60_000)


@dataclass(frozen=True, slots=True)
class ListenSection:
    """`[listen]`: what programs elsewhere (other hosts, other containers) reach; nothing else."""

    address: str = _key("", "address", words=("",))
    ingress_port: int | Literal["auto"] = _key("auto", "count", high=65_535, words=("auto",))
    data_port: int | Literal["auto"] = _key("auto", "count", high=65_535, words=("auto",))
    events_port: int | Literal["auto"] = _key("auto", "count", high=65_535, words=("auto",))
    unix: bool = _key(False, "bool")
    keys: str = _key("", "word", words=("",), free_text=True)
    insecure: bool = _key(False, "bool")
    readers: int = _key(1, "count", low=1, high=64)
    max_connections: int = _key(4_096, "count", low=1, high=1_000_000)
    credit_bytes: int = _key(8 * _MIB, "bytes", low=64 * _KIB, high=1 << 30)
    heartbeat_ms: int = _key(3_000, "ms", low=100, high=60_000)
    dead_ms: int = _key(9_000, "ms", low=300, high=600_000)

    @property
    def tcp(self) -> tuple[str, int] | None:
        """Host and port of control; None: no TCP port is opened."""
        return parse_tcp(self.address) if self.address else None

    @property
    def anything(self) -> bool:
        """Whether anything listens for programs elsewhere."""
        return bool(self.address) or self.unix


@dataclass(frozen=True, slots=True)
class LoggingSection:
    """`[logging]`: the broker's own log, not the records."""

    level: Literal["debug", "info", "warning", "error"] = _key(
        "info", "word", words=("debug", "info", "warning", "error")
    )
    format: Literal["text", "json"] = _key("text", "word", words=("text", "json"))
    file: str = _key("", "word", words=("",), free_text=True)
    max_bytes: int = _key(16 * _MIB, "bytes", low=4 * _KIB, high=1 << 40)
    keep: int = _key(4, "count", low=0, high=1000)


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """All of it. `log` holds the defaults of topics."""

    broker: BrokerSection = field(default_factory=BrokerSection)
    memory: MemorySection = field(default_factory=MemorySection)
    log: TopicSettings = field(default_factory=TopicSettings)
    groups: GroupsSection = field(default_factory=GroupsSection)
    listen: ListenSection = field(default_factory=ListenSection)
    supervision: SupervisionSection = field(default_factory=SupervisionSection)
    pressure: PressureSection = field(default_factory=PressureSection)
    logging: LoggingSection = field(default_factory=LoggingSection)

    def flat(self) -> dict[str, Any]:
        """Every key with its value: {"broker.drain_s": 30.0, …, "log.retention.ms": …}."""
        values: dict[str, Any] = {}
        for section in dataclasses.fields(self):
            group = getattr(self, section.name)
            if isinstance(group, TopicSettings):
                values |= {f"log.{name}": value for name, value in group.to_kafka().items()}
            else:
                names = [f.name for f in dataclasses.fields(group)]
                values |= {f"{section.name}.{name}": getattr(group, name) for name in names}
        return values


@dataclass(frozen=True, slots=True)
class Source:
    """Whence a value came; `where` is a file, a variable or a flag, `line` counts from 1."""

    kind: Literal["flag", "environment", "file", "default"]
    where: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.where}:{self.line}" if self.line else self.where
        return f"{self.kind} {place}" if place else self.kind


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A valid configuration and the source of each key of `config.flat()`."""

    config: BrokerConfig
    sources: Mapping[str, Source]

    def refused(self, key: str, problem: str, allowed: str = "") -> ConfigError:
        """The error for a value that this host has no use for; it stands where it was set."""
        source = self.sources[key]
        where = source.where or "configuration"
        return ConfigError(problem, file=where, line=source.line, key=key, allowed=allowed)


def _rules() -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    defaults = BrokerConfig()
    for section in dataclasses.fields(BrokerConfig):
        group = getattr(defaults, section.name)
        if isinstance(group, TopicSettings):
            rules |= {f"log.{name}": rule for name, rule in TOPIC_RULES.items()}
        else:
            for key in dataclasses.fields(group):
                rules[f"{section.name}.{key.name}"] = key.metadata["rule"]
    return rules


#: Every key and what it may be, in the order of `configs/default.toml`.
RULES: Final[Mapping[str, Rule]] = _rules()
_SECTIONS: Final = tuple(f.name for f in dataclasses.fields(BrokerConfig))
_BY_ENV: Final = {ENV_PREFIX + key.upper().replace(".", "_"): key for key in RULES}


def load(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> LoadedConfig:
    """The configuration out of a file (none: defaults), the environment and flags.

    `env` is `os.environ` when None; `flags` are {"broker.drain_s": value}, None values count as not
    given. Raises ConfigError with file, line, key and what is allowed; not retriable.
    """
    values: dict[str, Any] = {}
    sources: dict[str, Source] = {key: Source("default") for key in RULES}
    for key, raw, source in _given(path, os.environ if env is None else env, flags or {}):
        values[key] = _parse(key, raw, source)
        sources[key] = source
    config = _build(values)
    _check(config, sources)
    return LoadedConfig(config, sources)


def is_configuration(variable: str) -> bool:
    """Whether an environment variable of that name is (or is meant to be) a key of a section."""
    section = variable.removeprefix(ENV_PREFIX).partition("_")[0].lower()
    return variable.startswith(ENV_PREFIX) and section in _SECTIONS


def _given(
    path: Path | None, env: Mapping[str, str], flags: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Source]]:
    """What was set, lowest precedence first."""
    if path is not None:
        yield from _from_file(path)
    for name, text in sorted(env.items()):
        if name in _BY_ENV:
            yield _BY_ENV[name], text, Source("environment", name)
        elif is_configuration(name):
            section = name.removeprefix(ENV_PREFIX).partition("_")[0]
            raise ConfigError(
                f"unknown variable{did_you_mean(name, _BY_ENV)}",
                file=name,
                allowed=", ".join(n for n in _BY_ENV if n.startswith(f"{ENV_PREFIX}{section}_")),
            )
    for key, value in flags.items():
        if value is not None:
            yield key, value, Source("flag", "command line")


def _from_file(path: Path) -> Iterator[tuple[str, Any, Source]]:
    name = str(path)
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(name, text, error) from None
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise ConfigError("not UTF-8", file=name, line=line) from None
    except OSError as error:
        raise ConfigError(f"can't be read: {error.strerror}", file=name) from None
    lines = key_lines(text)
    for section, table in document.items():
        at = Source("file", name, lines.get((section,)))
        if section not in _SECTIONS:
            raise ConfigError(
                f"unknown section{did_you_mean(section, _SECTIONS)}",
                file=name,
                line=at.line,
                key=section,
                allowed=", ".join(f"[{s}]" for s in _SECTIONS),
            )
        if not isinstance(table, dict):
            raise ConfigError(
                "must be a table", file=name, line=at.line, key=section, allowed=f"[{section}]"
            )
        # `retention.ms = 1`, unquoted, is a table in a table: both spellings are the key.
        for keys, value in _leaves((section,), table):
            yield ".".join(keys), value, Source("file", name, lines.get(keys, at.line))


def _leaves(path: tuple[str, ...], table: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves((*path, key), value)
        else:
            yield (*path, key), value


def _syntax_error(file: str, text: str, error: tomllib.TOMLDecodeError) -> ConfigError:
    match = re.search(r"^(.*) \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
    if match is None:
        return ConfigError(f"no TOML: {error}", file=file)
    line = int(match[2]) if match[2] else max(1, len(text.splitlines()))
    return ConfigError(f"no TOML: {match[1]}", file=file, line=line)


def _parse(key: str, raw: Any, source: Source) -> Any:
    where = source.where or source.kind
    section, _, name = key.partition(".")
    rule = RULES.get(key)
    if rule is not None and section != "log":
        try:
            return rule.parse(raw)
        except ValueError as error:
            raise ConfigError(
                str(error), file=where, line=source.line, key=key, allowed=rule.allowed
            ) from None
    if section == "log":
        try:
            return parse_setting(name, raw)
        except InvalidConfig as error:
            problem, _, allowed = error.message.partition("; allowed: ")
            problem = problem.removeprefix(f"{name}: ")
            raise ConfigError(
                problem, file=where, line=source.line, key=key, allowed=allowed
            ) from None
    known = [k for k in RULES if k.startswith(f"{section}.")] or list(RULES)
    raise ConfigError(
        f"unknown key{did_you_mean(key, known)}",
        file=where,
        line=source.line,
        key=key,
        allowed=", ".join(k.partition(".")[2] if section in _SECTIONS else k for k in known),
    )


def _build(values: Mapping[str, Any]) -> BrokerConfig:
    groups: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for key, value in values.items():
        section, _, name = key.partition(".")
        groups[section][name.replace(".", "_")] = value
    defaults = BrokerConfig()
    return BrokerConfig(
        **{
            section: dataclasses.replace(getattr(defaults, section), **group)
            for section, group in groups.items()
        }
    )


def _check(config: BrokerConfig, sources: Mapping[str, Source]) -> None:
    """What no key says by itself. The error stands where the one that was set stands."""
    memory = config.memory
    most = memory.ring_max_bytes - _RING_UNIT  # a batch shares the ring with a partial last block
    for smaller, small, larger, large in (
        (
            "memory.ring_min_bytes",
            memory.ring_min_bytes,
            "memory.ring_max_bytes",
            memory.ring_max_bytes,
        ),
        (
            "memory.ingress_min_bytes",
            memory.ingress_min_bytes,
            "memory.ingress_max_bytes",
            memory.ingress_max_bytes,
        ),
        (
            "supervision.restart_backoff_ms",
            config.supervision.restart_backoff_ms,
            "supervision.restart_backoff_max_ms",
            config.supervision.restart_backoff_max_ms,
        ),
        (
            "listen.heartbeat_ms doubled",
            2 * config.listen.heartbeat_ms,
            "listen.dead_ms",
            config.listen.dead_ms,
        ),
        (
            "log.max.message.bytes",
            config.log.max_message_bytes,
            "memory.ring_max_bytes less 64KiB",
            most,
        ),
        (
            "pressure.soft_fill_percent",
            config.pressure.soft_fill_percent,
            "pressure.hard_fill_percent",
            config.pressure.hard_fill_percent,
        ),
        (
            "pressure.margin_percent",
            config.pressure.margin_percent,
            "pressure.soft_fill_percent",
            config.pressure.soft_fill_percent,
        ),
    ):
        if small > large:
            key = smaller.partition(" ")[0]
            show = RULES[key].format
            if sources[key].kind == "default":
                key = larger.partition(" ")[0]
            source = sources[key]
            raise ConfigError(
                f"{smaller} ({show(small)}) is more than {larger} ({show(large)})",
                file=source.where or source.kind,
                line=source.line,
                key=key,
                allowed=f"{smaller} <= {larger}",
            )


__all__ = [
    "ENV_PREFIX",
    "RULES",
    "BrokerConfig",
    "BrokerSection",
    "GroupsSection",
    "ListenSection",
    "LoadedConfig",
    "LoggingSection",
    "MemorySection",
    "Places",
    "PressureSection",
    "Source",
    "SupervisionSection",
    "TopicSettings",
    "is_configuration",
    "load",
    "shm_prefix",
]
