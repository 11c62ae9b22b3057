"""Configuration: what is valid, what is refused and where, and whence a value came."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbroker.addresses import is_loopback
from shmbroker.config import RULES, BrokerConfig, Source, TopicSettings, load
from shmbroker.errors import ConfigError, InvalidConfig
from shmbroker.toml_lines import key_lines
from shmbroker.topic_settings import TOPIC_RULES, altered
from shmbroker.units import format_bytes, format_ms, parse_bytes, parse_ms, parse_s

CONFIGS = Path(__file__).parents[2] / "configs"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "broker.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path | None = None, env: Any = None, flags: Any = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path, env or {}, flags)
    return caught.value


# Units


@pytest.mark.parametrize(
    ("text", "ms"),
    [("7d", 604_800_000), ("1h30m", 5_400_000), ("5ms", 5), ("2w", 1_209_600_000), ("1.5s", 1500)]
    + [("10", 10), (10, 10), ("1_000", 1000), (-1, -1), ("-1", -1), ("1 s", 1000), ("2000us", 2)],
)
def test_times_are_parsed(text: int | str, ms: int) -> None:
    assert parse_ms(text) == ms


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 << 20),
        ("64KB", 64_000),
        ("1.5KiB", 1536),
        (7, 7),
        ("7", 7),
        ("1 gib", 1 << 30),
    ],
)
def test_sizes_are_parsed(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "x", "7x", "ms", "-", "1..5s", "1e3", "٣s", "5ms!", "1us"])
def test_what_is_no_time_says_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|whole number"):
        parse_ms(text)


@pytest.mark.parametrize("value", ["", "MiB", "1.5", "0.3KiB", "5 apples", "--5", True, 1.5, None])
def test_what_is_no_size_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        parse_bytes(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, None])
def test_what_is_no_number_of_seconds_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        parse_s(value)


@given(st.integers(0, 2**62))
def test_formatted_quantities_parse_back(number: int) -> None:
    assert parse_bytes(format_bytes(number)) == number
    assert parse_ms(format_ms(number)) == number


# Lines


HARD = '''# [not] a = 1
[broker]   # drain_s
drain_s = "5s"
"writers" = 3
a."b c".'d' = """ x
[no]
idle = 1 """
[ log . "x\\u0041" ]
list = [ 1, # ]
  "]", {q = 1, "r" = [1]},
]
inline = { one = { two = 1 }, dotted.key = '}' } # end
when = 2020-01-01 00:00:00
lit = \'\'\'it''s\'\'\'
last = -1.5e3'''


def test_lines_of_keys_are_found_in_hard_documents() -> None:
    tomllib.loads(HARD)
    lines = key_lines(HARD)
    assert lines["broker",] == 2
    assert lines["broker", "drain_s"] == 3
    assert lines["broker", "writers"] == 4
    assert lines["broker", "a", "b c", "d"] == 5
    assert lines["log", "xA"] == 8
    assert lines["log", "xA", "list"] == 9
    assert lines["log", "xA", "inline", "one", "two"] == 12
    assert lines["log", "xA", "inline", "dotted", "key"] == 12
    assert lines["log", "xA", "last"] == 15
    assert ("no",) not in lines
    assert key_lines(HARD.replace("\n", "\r\n")) == lines


_names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=5)
_scalars = st.integers(-9, 9) | st.booleans() | _names
_values = st.recursive(
    _scalars,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(_names, v, max_size=3),
    max_leaves=8,
)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return "[" + ", # ] }\n".join(map(_toml, value)) + "\n]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return str(value)


@given(st.dictionaries(_names, _values, max_size=6))
def test_lines_of_keys_are_found_in_any_document(document: dict[str, Any]) -> None:
    text, expected = "", {}
    for key, value in document.items():
        expected[key,] = text.count("\n") + 1
        text += f"{_quoted(key)} = {_toml(value)}\n"
    assert tomllib.loads(text) == document
    lines = key_lines(text)
    assert {path: line for path, line in lines.items() if len(path) == 1} == expected


# The file


def test_default_toml_equals_the_defaults_and_lists_every_key() -> None:
    loaded = load(CONFIGS / "default.toml", {}, {})
    assert loaded.config == BrokerConfig()
    assert [k for k, s in loaded.sources.items() if s.kind != "file"] == []
    assert list(BrokerConfig().flat()) == list(RULES)


def test_default_toml_has_a_comment_before_every_key_or_its_twin() -> None:
    lines = (CONFIGS / "default.toml").read_text().splitlines()
    for number, line in enumerate(lines):
        if "=" in line and not line.startswith("#"):
            above = lines[number - 1]
            assert above.startswith("#") or "=" in above, f"line {number + 1}: {line}"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda p: p.stem)
def test_every_configuration_that_comes_with_us_is_valid(path: Path) -> None:
    load(path, {}, {})


def test_quoted_and_bare_kafka_names_are_the_same_key(tmp_path: Path) -> None:
    text = '[log]\nretention.ms = "1d"\n"segment.bytes" = "64KiB"\n[log.max]\nmessage.bytes = 500\n'
    loaded = load(write(tmp_path, text), {}, {})
    assert loaded.config.log.retention_ms == 86_400_000
    assert loaded.config.log.segment_bytes == 65_536
    assert loaded.config.log.max_message_bytes == 500
    assert loaded.sources["log.max.message.bytes"].line == 5


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        (
            "[broker]\n\ndrain_s = 5\ndrian_s = 5\n",
            4,
            "broker.drian_s",
            "did you mean 'broker.drain_s'",
        ),
        ("[broker]\na.b = 5\n", 2, "broker.a.b", "allowed: drain_s, writers"),
        ("# x\n[brokers]\n", 2, "brokers", "did you mean 'broker'"),
        ("broker = 5\n", 1, "broker", "must be a table"),
        ("[[broker]]\ndrain_s = 1\n", 1, "broker", "must be a table"),
        ("[broker]\nidle = 'sleep'\n", 2, "broker.idle", '"adaptive", "spin", "park"'),
        ("[broker]\nwriters = 0\n", 2, "broker.writers", "1 to 256"),
        ("[broker]\nwriters = true\n", 2, "broker.writers", '"auto"'),
        ("[broker]\npin = 1\n", 2, "broker.pin", "true, false"),
        ("[broker]\ndrain_s = {}\n", 2, "broker.drain_s", "a time like"),
        ("[memory]\nring_min_bytes = 65537\n", 2, "memory.ring_min_bytes", "multiples of 64KiB"),
        ("[memory]\n\nring_min_bytes = '128MiB'\n", 3, "memory.ring_min_bytes", "more than"),
        ("[memory]\nring_max_bytes = '64KiB'\n", 2, "memory.ring_max_bytes", "more than"),
        (
            "[memory]\nring_max_bytes = '1MiB'\n",
            2,
            "memory.ring_max_bytes",
            "log.max.message.bytes",
        ),
        ("[log]\nretention.sm = 1\n", 2, "log.retention.sm", "did you mean 'retention.ms'"),
        ("[log]\n'cleanup.policy' = 'compact'\n", 2, "log.cleanup.policy", "not supported yet"),
        ("[log]\nflush.messages = 1\n", 2, "log.flush.messages", "not supported yet"),
        ("[log]\nsegment.bytes = 1\n", 2, "log.segment.bytes", "64KiB to"),
        ("[broker]\nidle = \n", 2, "", "no TOML"),
        ('[broker]\nx = """\n\n', 3, "", "no TOML"),
        ("[broker]\n[broker]\n", 2, "", "no TOML"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int, key: str, words: str
) -> None:
    path = write(tmp_path, text)
    error = refused(path)
    assert (error.file, error.line, error.key) == (str(path), line, key), str(error)
    assert words in str(error)
    assert f"{path}:{line}" in str(error)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "No such file" in str(refused(tmp_path / "absent.toml"))
    assert "Is a directory" in str(refused(tmp_path))
    (tmp_path / "latin.toml").write_bytes(b"# ok\n# \xe4\n")
    assert refused(tmp_path / "latin.toml").line == 2


# Precedence


def test_flag_goes_before_environment_before_file_before_default(tmp_path: Path) -> None:
    path = write(tmp_path, '[broker]\nwriters = 2\nflush_depth = 2\nidle = "spin"\n')
    env = {"SHMBROKER_BROKER_WRITERS": "3", "SHMBROKER_BROKER_FLUSH_DEPTH": "3", "OTHER": "1"}
    loaded = load(path, env, {"broker.writers": 4, "broker.pin": None})
    broker = loaded.config.broker
    assert (broker.writers, broker.flush_depth, broker.idle, broker.pin) == (4, 3, "spin", "auto")
    assert loaded.sources["broker.writers"] == Source("flag", "command line")
    assert str(loaded.sources["broker.flush_depth"]) == "environment SHMBROKER_BROKER_FLUSH_DEPTH"
    assert str(loaded.sources["broker.idle"]) == f"file {path}:4"
    assert str(loaded.sources["broker.pin"]) == "default"


def test_variables_and_flags_that_are_not_known_are_refused() -> None:
    error = refused(env={"SHMBROKER_LOG_RETENTION": "1d"})
    assert error.file == "SHMBROKER_LOG_RETENTION"
    assert "SHMBROKER_LOG_RETENTION_MS" in str(error)
    assert "did you mean 'broker.writers'" in str(refused(flags={"broker.writer": 1}))
    assert refused(env={"SHMBROKER_BROKER_PIN": "maybe"}).file == "SHMBROKER_BROKER_PIN"
    load(None, {"SHMBROKER_INSTANCE": "x", "SHMBROKER_TOKEN": "x"}, {})


def test_the_budget_is_a_quarter_of_shared_memory_and_at_most_one_gib() -> None:
    memory = BrokerConfig().memory
    assert memory.budget_in(2 << 30) == 512 << 20
    assert memory.budget_in(64 << 30) == 1 << 30
    assert load(None, {}, {"memory.budget_bytes": "2GiB"}).config.memory.budget_in(0) == 2 << 30


# Listening


@pytest.mark.parametrize(
    ("address", "tcp", "written"),
    [
        ("tcp://127.0.0.1:9300", ("127.0.0.1", 9300), "tcp://127.0.0.1:9300"),
        (" tcp://[::1]:0", ("::1", 0), "tcp://[::1]:0"),
        ("tcp://*:65535", ("*", 65535), "tcp://*:65535"),
        ("tcp://broker-1.example.org:9300", ("broker-1.example.org", 9300), None),
        ("", None, None),
    ],
)
def test_nothing_listens_but_what_an_address_says(
    address: str, tcp: tuple[str, int] | None, written: str | None
) -> None:
    assert not BrokerConfig().listen.anything
    listen = load(None, {"SHMBROKER_LISTEN_ADDRESS": address}, {}).config.listen
    assert listen.tcp == tcp
    assert listen.anything == (tcp is not None)
    assert listen.address == (written or address)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:9300", "tcp://127.0.0.1", "tcp://:1", "tcp://::1:9300", "tcp://h:65536", "ipc",
     "tcp://h:x", "http://h:1", "tcp://h/x:1", "tcp://[nonsense]:1", 9300],
)  # fmt: skip
def test_what_is_no_address_says_what_is(tmp_path: Path, address: Any) -> None:
    error = refused(flags={"listen.address": address})
    assert error.key == "listen.address"
    assert "allowed: tcp://HOST:PORT" in str(error)


@pytest.mark.parametrize(
    ("host", "only_here"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("localhost", True), ("::1", True), ("*", False),
     ("0.0.0.0", False), ("127.0.0.1.example.org", False), ("10.0.0.1", False), ("::", False)],
)  # fmt: skip
def test_loopback_is_what_only_this_host_can_reach(host: str, only_here: bool) -> None:
    assert is_loopback(host) == only_here


def test_who_is_given_up_before_it_could_speak_is_an_error() -> None:
    error = refused(flags={"listen.heartbeat_ms": "3s", "listen.dead_ms": "5s"})
    assert "listen.heartbeat_ms doubled (6s) is more than listen.dead_ms (5s)" in str(error)
    assert refused(flags={"listen.dead_ms": "5s"}).key == "listen.dead_ms"


# Topic settings


def test_topic_settings_bear_kafkas_names_and_round_trip() -> None:
    settings = TopicSettings.from_kafka({"retention.ms": "86400000", "segment.bytes": "64KiB"})
    assert (settings.retention_ms, settings.segment_bytes) == (86_400_000, 65_536)
    assert set(settings.to_kafka()) == set(TOPIC_RULES)
    assert TopicSettings.from_kafka(settings.to_kafka()) == settings
    assert settings.largest_batch_bytes == 65_536
    assert TopicSettings.from_kafka({"retention.ms": 1}, settings).segment_bytes == 65_536


def test_an_altered_setting_is_checked_and_none_takes_it_back() -> None:
    own = {"retention.ms": 5, "segment.ms": 7}
    assert altered(own, {"retention.ms": None, "segment.bytes": "1MiB"}) == {
        "segment.ms": 7,
        "segment.bytes": 1 << 20,
    }
    assert altered(own, {"segment.bytes": None}) == own
    for name, value in (("flush.ms", None), ("retention.mss", None), ("segment.ms", 0)):
        with pytest.raises(InvalidConfig, match=name):
            altered(own, {name: value})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("cleanup.policy", "compact", "cleanup.policy=compact is not supported yet"),
        ("cleanup.policy", "shred", "'shred' is not known"),
        ("compression.type", "zstd", "compression.type=zstd is not supported yet"),
        (
            "min.insync.replicas",
            2,
            "min.insync.replicas is a setting of Kafka's that is not supported",
        ),
        ("retention_ms", 2, "did you mean 'retention.ms'"),
        ("retention.ms", "soon", "allowed: a number or a time"),
        ("retention.ms", -2, "-1 for no limit"),
        ("max.message.bytes", "1GiB", "128 to 32MiB"),
        ("cleanup.policy", ["delete"], "is not known"),
        ("retention.bytes", None, "is no size"),
    ],
)
def test_topic_settings_are_refused_by_name(name: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        TopicSettings.from_kafka({name: value})
    assert caught.value.key == name
    assert words in str(caught.value)
