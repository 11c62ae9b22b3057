"""The command line against real brokers: each step as a person would take it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import eventually

sys.path.insert(0, str(Path(__file__).parent))

from acceptor_harness import REPOSITORY, run_cli


@pytest.fixture
def cli_env(isolated_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("SHMBROKER_INSTANCE", "cli")


@pytest.fixture
def broker(cli_env: None) -> Iterator[dict[str, object]]:
    up = run_cli("up", "--detach")
    assert up.returncode == 0, up.stderr
    assert "pid" in up.stdout
    assert "broker.log" in up.stdout
    status = json.loads(run_cli("status", "--json").stdout)
    yield status
    if run_cli("status").returncode == 0:
        down = run_cli("down")
        assert down.returncode == 0, down.stderr


def test_lines_go_in_and_come_out(broker: dict[str, object], tmp_path: Path) -> None:
    assert run_cli("topic", "create", "ticks", "-p", "2", "-c", "retention.ms=1d").returncode == 0
    assert run_cli("topic", "list").stdout == "ticks\t2 partitions\n"
    assert "retention.ms = 86400000" in run_cli("topic", "describe", "ticks").stdout
    lines = tmp_path / "lines"
    lines.write_text("".join(f"key{n % 7}:{n}\n" for n in range(20_000)))
    done = run_cli("produce", "ticks", str(lines), "--key-separator", ":")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "20,000 records" in done.stderr
    out = run_cli("consume", "ticks", "--from", "earliest", "--exit-at-end", "--format", "json")
    records = [json.loads(line) for line in out.stdout.splitlines()]
    assert len(records) == 20_000
    for key in {r["key"] for r in records}:
        values = [int(r["value"]) for r in records if r["key"] == key]
        assert values == sorted(values)
    two = run_cli("consume", "ticks", "--from", "earliest", "--max", "2", "--format", "value")
    assert len(two.stdout.splitlines()) == 2
    again = run_cli("topic", "create", "ticks")
    assert again.returncode == 1
    assert "--if-not-exists" in again.stderr
    assert run_cli("topic", "delete", "ticks", "--yes").returncode == 0
    assert run_cli("topic", "list").stdout == ""


def test_topics_are_altered_and_trimmed_from_the_command_line(broker: dict[str, object]) -> None:
    made = run_cli("topic", "create", "t", "-c", "retention.ms=7d", "-c", "segment.bytes=512MiB")
    assert made.returncode == 0, made.stderr
    assert run_cli("produce", "t", input="".join(f"{n}\n" for n in range(100))).returncode == 0
    done = run_cli("topic", "alter", "t", "--config", "retention.ms=12h", "--unset",
                   "segment.bytes", "--partitions", "3")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "topic 't': 3 partitions",
        "  retention.ms = 43200000 (12h)",
        "  segment.bytes = 268435456 (256MiB)",
    ]
    trimmed = run_cli("topic", "trim", "t", "--before", "40", "--partition", "0", "--yes", "--json")
    assert [json.loads(line) for line in trimmed.stdout.splitlines()] == [
        {"topic": "t", "partition": 0, "log_start_offset": 40}
    ]
    assert run_cli("topic", "trim", "t", "--before", "latest", "--yes").stdout.splitlines() == [
        "t-0 starts at offset 100", "t-1 starts at offset 0", "t-2 starts at offset 0"
    ]  # fmt: skip
    listed = run_cli("topic", "list", "--json").stdout.splitlines()
    assert [(t["name"], t["partitions"]) for t in map(json.loads, listed)] == [("t", 3)]
    described = json.loads(run_cli("topic", "describe", "t", "--json").stdout)
    assert described["config"]["retention.ms"] == 43_200_000
    assert [p["log_start_offset"] for p in described["partitions"]] == [100, 0, 0]
    fewer = run_cli("topic", "alter", "t", "--partitions", "2")
    assert fewer.returncode == 1
    assert "allowed: 3 to" in fewer.stderr


def test_a_closed_pipe_ends_quietly(broker: dict[str, object]) -> None:
    run_cli("topic", "create", "t")
    run_cli("produce", "t", input="".join(f"{n}\n" for n in range(100_000)))
    command = f"{sys.executable} -m shmbroker.cli.main consume t --from earliest --exit-at-end"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "0\n"
    assert done.stderr == ""


def test_a_log_is_dumped_and_its_damage_found_and_repaired(cli_env: None, tmp_path: Path) -> None:
    data = tmp_path / "data-dir"
    assert run_cli("up", "--detach", "--data-dir", str(data)).returncode == 0
    run_cli("topic", "create", "t")
    run_cli("produce", "t", input="one\ntwo\n")
    run_cli("produce", "t", input="three\n")
    live = run_cli("log", "dump", str(data / "t-0"), "--json")
    assert live.returncode == 0, live.stderr
    assert sum(json.loads(line)["kind"] == "batch" for line in live.stdout.splitlines()) == 2
    verified = run_cli("log", "verify", "--data-dir", str(data), "--json")
    assert verified.returncode == 0, verified.stderr
    (found,) = map(json.loads, verified.stdout.splitlines())
    assert (found["start_offset"], found["end_offset"], found["problems"]) == (0, 3, [])
    refused = run_cli("log", "repair", "--data-dir", str(data))
    assert refused.returncode == 1
    assert "shmbroker down" in refused.stderr
    assert run_cli("down").returncode == 0
    fine = run_cli("log", "repair", "--data-dir", str(data))
    assert fine.returncode == 0, fine.stderr
    assert "nothing to repair" in fine.stdout
    segment = data / "t-0" / f"{0:020}.log"
    broken = bytearray(segment.read_bytes())
    broken[70] ^= 0xFF
    segment.write_bytes(broken)
    assert run_cli("log", "dump", str(data / "t-0")).returncode == 5
    damaged = run_cli("log", "verify", "t-0", "--data-dir", str(data))
    assert damaged.returncode == 5
    assert f"{segment.name} at byte 0" in damaged.stdout
    assert "checkpoint at byte 0: offset 3 was durable" in damaged.stdout
    assert run_cli("log", "verify", "t-1", "--data-dir", str(data)).returncode == 2
    said = run_cli("log", "repair", "t-0", "--data-dir", str(data))
    assert said.returncode == 5
    assert "loses" in said.stdout
    plan = run_cli("log", "repair", "t-0", "--json", "--data-dir", str(data))
    assert (plan.returncode, json.loads(plan.stdout)["needed"]) == (5, True)
    done = run_cli("log", "repair", "t-0", "--yes", "--data-dir", str(data))
    assert done.returncode == 0, done.stderr
    assert run_cli("log", "dump", str(segment)).returncode == 0


@pytest.mark.parametrize("form", [("--json",), ()])
def test_status_is_watched_until_ctrl_c(broker: dict[str, object], form: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "shmbroker.cli.main", "status", "--watch", "--interval", "0.1"]
    process = subprocess.Popen(
        [*command, *form], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        seen = 0
        while seen < 3:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            seen += line.startswith(("{", "broker "))
            if form:
                assert json.loads(line)["broker_pid"] == broker["broker_pid"]
            assert "\x1b" not in line
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(40) == 0
        assert process.stderr.read() == ""
        assert "\x1b" not in rest


def test_completion_names_the_topics_of_a_running_broker(broker: dict[str, object]) -> None:
    for name in ("ticks", "trades", "other"):
        run_cli("topic", "create", name)
    program = "import sys; sys.argv[0] = 'shmbroker'; from shmbroker.cli.main import app; app()"
    env = os.environ | {
        "_SHMBROKER_COMPLETE": "complete_bash",
        "COMP_WORDS": "shmbroker consume t", "COMP_CWORD": "2",
    }  # fmt: skip

    def completes() -> bool:  # it never makes a shell wait: a busy host may get nothing
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.stderr == ""
        assert done.stdout.split() in ([], ["ticks", "trades"])
        return bool(done.stdout)

    eventually(completes)


def test_sockets_in_a_directory_with_a_long_path_are_no_error(
    cli_env: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "/".join(["a-long-name-of-a-directory" * 2] * 4)
    runtime.mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    up = run_cli("up", "--detach")
    assert up.returncode == 0, up.stderr
    assert str(runtime) in up.stdout
    try:
        assert run_cli("topic", "create", "t").returncode == 0
        assert run_cli("produce", "t", input="1\n").returncode == 0
        assert run_cli("consume", "t", "--from", "-1", "-e").stdout == "1\n"
    finally:
        assert run_cli("down").returncode == 0


def test_up_detached_fails_with_the_reason(cli_env: None, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("x")
    up = run_cli("up", "--detach", "--data-dir", str(tmp_path / "mine"))
    assert (up.returncode, up.stdout) == (1, "")
    assert "letter" in up.stderr
    assert len(up.stderr.splitlines()) == 1
    bad = tmp_path / "bad.toml"
    bad.write_text("[broker]\nwriters = -1\n")
    up = run_cli("up", "--detach", "--config", str(bad))
    assert up.returncode == 1
    assert f"{bad}:2" in up.stderr


def test_a_second_up_is_refused_with_the_pid(broker: dict[str, object]) -> None:
    second = run_cli("up")
    assert second.returncode == 1
    assert str(broker["broker_pid"]) in second.stderr
    assert len(second.stderr.splitlines()) == 1


def test_down_without_a_broker_says_where_it_looked(cli_env: None) -> None:
    done = run_cli("down")
    assert done.returncode == 3
    assert os.environ["XDG_RUNTIME_DIR"] in done.stderr


@pytest.mark.root
def test_a_too_small_dev_shm_is_named_with_what_is_needed(cli_env: None) -> None:
    """In a mount namespace of its own."""
    command = (
        "mount -t tmpfs -o size=512k tmpfs /dev/shm && "
        f"exec {sys.executable} -m shmbroker.cli.main up --detach"
    )
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "/dev/shm is too small" in done.stderr
    assert "524288 are free" in done.stderr
    assert "remount,size" in done.stderr
