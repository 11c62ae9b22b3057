"""The command line: arguments, exit codes, one line an error. Brokers are in tests/integration."""

from __future__ import annotations

import inspect
import io
import json
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from shmbroker import errors
from shmbroker.cli import main
from shmbroker.cli.main import app, exit_code_of
from shmbroker.cli.status_view import render, size

runner = CliRunner()


def _commands(of: typer.Typer = app, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for command in of.registered_commands:
        assert command.callback is not None
        yield " ".join((*path, command.name or command.callback.__name__)), command.callback
    for group in of.registered_groups:
        assert group.typer_instance is not None
        yield from _commands(group.typer_instance, (*path, group.name or ""))


COMMANDS = dict(_commands())
_UNIT = re.compile(r"seconds|bytes|records|how many|number|milliseconds|per cent", re.IGNORECASE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example_and_the_exit_codes(command: str) -> None:
    result = runner.invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    assert "Example: shmbroker" in said or "| shmbroker" in said
    for text in ("0 done, 1 failed, 2 usage, 3 no broker, 4 timeout, 5 damage", "130 Ctrl+C"):
        assert text in said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_defaults_and_units(command: str) -> None:
    callback = COMMANDS[command]
    hints = typing.get_type_hints(callback, include_extras=True)
    for name, parameter in inspect.signature(callback).parameters.items():
        kind, info = typing.get_args(hints[name])[:2]
        assert info.help, f"{name} has no help"
        words = f"{info.help} {info.metavar}"
        given = parameter.default
        if given is None and "list" not in str(kind):
            assert "else" in words.lower(), f"{name}: what is without it?"
        if given is not inspect.Parameter.empty and given is not None:
            assert info.show_default, f"{name} hides its default"
        if {int, float} & {kind, *typing.get_args(kind)}:
            assert _UNIT.search(words), f"{name} has no unit"


def test_exit_codes_are_in_the_help() -> None:
    output = runner.invoke(app, ["--help"]).output
    for text in ("3 no broker", "4 timeout", "5 damage found", "130 Ctrl+C"):
        assert text in " ".join(output.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"], ["down"], ["topic", "list"], ["topic", "create", "t"],
        ["topic", "delete", "t", "--yes"], ["consume", "t"], ["produce", "t"],
    ],
)  # fmt: skip
def test_without_a_broker_the_exit_code_is_3_and_the_way_out_is_named(
    isolated_env: dict[str, str], arguments: list[str]
) -> None:
    result = runner.invoke(app, [*arguments, "--instance", "nobody", "--timeout", "0.2"])
    assert result.exit_code == 3
    assert "shmbroker up --instance nobody" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["status", "--instance", "no/slash"], "--instance"),
        (["explode"], "explode"),
        (["topic", "create"], "topic create"),
        (["topic", "create", "t", "--config", "retention.ms"], "KEY=VALUE"),
        (["topic", "alter", "t", "--config", "=7d"], "KEY=VALUE"),
        (["topic", "alter", "t"], "nothing to alter"),
        (["topic", "trim", "t", "--before", "yesterday"], "neither an offset"),
        (["topic", "trim", "t", "--before", "7"], "use --yes"),
        (["topic", "delete", "t"], "--yes"),
        (["consume", "t", "--from", "yesterday"], "earliest"),
        (["consume", "t", "--format", "xml"], "json"),
        (["produce", "t", "/no/such/file"], "/no/such/file"),
        (["log", "dump", "/no/such/dir"], "/no/such/dir"),
        (["log", "repair", "--data-dir", "/no/such/dir"], "/no/such/dir"),
    ],
)
def test_wrong_arguments_end_with_2_and_are_named(
    isolated_env: dict[str, str], arguments: list[str], named: str
) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert named in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NoBroker("default", "/run"), 3),
        (errors.BrokerGone("gone"), 3),
        (errors.TimedOut("late"), 4),
        (errors.DamagedLog("damaged"), 5),
        (errors.UnknownTopic("t"), 1),
        (errors.ConfigError("bad", file="--instance"), 2),
        (errors.ConfigError("bad", file="/etc/broker.toml", line=3), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: errors.ShmbrokerError, code: int) -> None:
    assert exit_code_of(error) == code


def test_config_show_names_the_source_and_check_names_the_line(
    isolated_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("[broker]\ndrain_s = 5\n")
    bad.write_text("[broker]\n\ndrain_s = 'soon'\n")
    monkeypatch.setenv("SHMBROKER_BROKER_IDLE", "park")
    lines = runner.invoke(app, ["config", "show", "--config", str(good)]).stdout.splitlines()
    (drain,) = [line for line in lines if line.startswith("broker.drain_s")]
    (idle,) = [line for line in lines if line.startswith("broker.idle")]
    assert f"file {good}:2" in drain
    assert "environment SHMBROKER_BROKER_IDLE" in idle
    shown = runner.invoke(app, ["config", "show", "--json"]).stdout.splitlines()
    assert all({"key", "value", "source"} == json.loads(line).keys() for line in shown)
    assert runner.invoke(app, ["config", "check", str(good)]).exit_code == 0
    failed = runner.invoke(app, ["config", "check", str(bad)])
    assert failed.exit_code == 1
    assert f"{bad}:3: broker.drain_s" in failed.stderr


def test_completion_without_a_broker_is_silent_and_empty(isolated_env: dict[str, str]) -> None:
    env = isolated_env | {
        "_SHMBROKER_COMPLETE": "complete_bash",
        "COMP_WORDS": "shmbroker consume ", "COMP_CWORD": "2",
    }  # fmt: skip
    done = _complete(env)
    assert (done.stdout.strip(), done.stderr) == ("", "")
    assert done.returncode == 0
    words = _complete(env | {"COMP_WORDS": "shmbroker con", "COMP_CWORD": "1"}).stdout.split()
    assert set(words) == {"consume", "config"}


def _complete(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program = "import sys; sys.argv[0] = 'shmbroker'; from shmbroker.cli.main import app; app()"
    return subprocess.run(
        [sys.executable, "-c", program],
        env=env, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_a_refused_question_ends_with_1_and_an_interrupted_one_with_130() -> None:
    small = typer.Typer(cls=main._Group)

    @small.command()
    def refused() -> None:
        typer.confirm("really?", abort=True)

    @small.command()
    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise typer.Abort from None  # as a prompt does

    assert runner.invoke(small, ["refused"], input="n\n").exit_code == 1
    assert runner.invoke(small, ["interrupted"]).exit_code == 130


def test_parsing_a_command_loads_no_broker_and_no_socket_library() -> None:
    code = (
        "import sys, shmbroker.cli.main; heavy = 'zmq psutil structlog sqlite3 orjson'.split(); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_config_show_names_whence_each_place_came(
    isolated_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sources(*words: str) -> dict[str, tuple[Any, str]]:
        lines = runner.invoke(app, ["config", "show", "--json", *words]).stdout.splitlines()
        return {f["key"]: (f["value"], f["source"]) for f in map(json.loads, lines)}

    found = sources()
    assert found["instance"] == ("default", "default")
    assert found["config"] == (None, "environment XDG_CONFIG_HOME")
    assert found["data_dir"] == (
        f"{tmp_path}/data/shmbroker/default", "environment XDG_DATA_HOME",
    )  # fmt: skip
    monkeypatch.setenv("SHMBROKER_INSTANCE", "a")
    monkeypatch.setenv("SHMBROKER_DATA_DIR", "/somewhere")
    found = sources()
    assert found["instance"] == ("a", "environment SHMBROKER_INSTANCE")
    assert found["data_dir"] == ("/somewhere", "environment SHMBROKER_DATA_DIR")
    assert found["runtime_dir"][0] == f"{tmp_path}/run/shmbroker/a"
    found = sources("--instance", "b", "--data-dir", "/else")
    assert found["instance"] == ("b", "flag --instance")
    assert found["data_dir"] == ("/else", "flag --data-dir")
    usual = tmp_path / "config" / "shmbroker" / "b.toml"
    usual.parent.mkdir()
    usual.write_text('[memory]\nbudget_bytes = "512MiB"\n[log]\nretention.ms = "7d"\n')
    found = sources("--instance", "b")
    assert found["config"] == (str(usual), "environment XDG_CONFIG_HOME")
    assert found["memory.budget_bytes"] == (512 << 20, f"file {usual}:2")
    assert found["log.retention.ms"] == (7 * 86_400_000, f"file {usual}:4")
    other = tmp_path / "other.toml"
    other.write_text("")
    assert sources("--config", str(other))["config"] == (str(other), "flag --config")


def _status(partitions: int) -> dict[str, Any]:
    memory = dict.fromkeys(
        ("used_bytes", "budget_bytes", "log_bytes", "ingress_bytes", "table_bytes",
         "shm_free_bytes"), 123_456_789,
    )  # fmt: skip
    part = {"writer": 0, "state": "online", "reason": "", "blocked_s": 3.5, "blocked_why": "ring",
            "log_start_offset": 0, "log_end_offset": 10**12, "durable_offset": 10**12 - 5,
            "segments": [1, 2], "io_mode": "direct", "ring_bytes": 1 << 20}  # fmt: skip
    ring = {"ingress": 3, "writer": 0, "capacity": 1 << 20, "waits_for": "ticks-0: ring"}
    return {
        "instance": "default", "state": "running", "broker_pid": 1, "uptime_s": 9.0,
        "adopted": False, "data_dir": "/data", "data_dir_id": "f" * 32, "memory": memory,
        "endpoints": {"attach": "/run/attach"},
        "processes": [{"name": "acceptor", "pid": 1, "cpus": [0, 1, 2, 4]}],
        "partitions": [part | {"topic": "a-rather-long-name" * 3, "partition": n}
                       for n in range(partitions)],
        "clients": [{"client": 1, "pid": 2, "name": "a program with a long name" * 2,
                     "attached_s": 0, "ingress": [ring]}],
    }  # fmt: skip


@pytest.mark.parametrize("width", [80, 200])
def test_status_fits_the_terminal_and_leaves_out_the_least(width: int) -> None:
    from rich.console import Console

    out = Console(width=width, record=True, file=io.StringIO())
    found = _status(2)
    out.print(render(found, width, found | {"uptime_s": 8.0}))
    lines = out.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    text = "\n".join(lines)
    for always in ("partition", "state", "records/s", "a-rather-long-name"):
        assert always in text
    assert ("segments" in text) == (width == 200)


def test_sizes_are_written_for_people() -> None:
    assert [size(n) for n in (0, 1023, 1024, 1536, 1 << 20, 5 << 40)] == [
        "0 B", "1023 B", "1 KiB", "1.5 KiB", "1 MiB", "5120 GiB",
    ]  # fmt: skip
