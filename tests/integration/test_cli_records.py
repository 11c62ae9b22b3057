"""`produce` and `consume` against a broker: what goes in, what comes out, what is said of it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

Run = subprocess.CompletedProcess[bytes]


def _run(broker: Any, *words: str, given: bytes = b"") -> Run:
    done: Run = broker.run(*words, input=given, text=False)
    return done


def _all(broker: Any, topic: str, *words: str) -> bytes:
    done = _run(broker, "consume", topic, "--from", "earliest", "--exit-at-end", *words)
    assert done.returncode == 0, done.stderr
    out: bytes = done.stdout
    return out


def test_lines_come_back_byte_for_byte(broker: Any, tmp_path: Path) -> None:
    broker.run("topic", "create", "t")
    lines = tmp_path / "lines"
    data = b"".join(b"%d %s\n" % (n, os.urandom(40).replace(b"\n", b"")) for n in range(50_000))
    data += b"\n\r\nlong " + b"x" * 900_000 + b"\nno end"
    lines.write_bytes(data)
    done = _run(broker, "produce", "t", str(lines))
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert b"50,004 records sent to t" in done.stderr
    assert _all(broker, "t") == data + b"\n"
    assert _all(broker, "t", "--max", "3") == b"\n".join(data.split(b"\n", 3)[:3]) + b"\n"
    last = _run(broker, "consume", "t", "--from", "-2", "-e")
    assert last.stdout.endswith(b"x\nno end\n")
    assert _run(broker, "consume", "t", "--from", "1", "--to", "3").stdout.count(b"\n") == 2
    other = _run(broker, "produce", "t", "-D", r"\0", given=b"two\nlines\0last")
    assert b"2 records" in other.stderr
    again = _run(broker, "consume", "t", "--from", "-2", "-e", "-D", r"\0")
    assert again.stdout == b"two\nlines\0last\0"


def test_json_round_trips(broker: Any) -> None:
    broker.run("topic", "create", "from", "-p", "3")
    broker.run("topic", "create", "to", "-p", "3")
    with broker.client() as client, client.producer() as producer:
        for n in range(20):
            producer.send("from", b"\xff%d" % n if n % 3 else b'"text"\n',
                          None if n % 4 == 0 else b"\xfe" if n % 5 == 0 else "kéy".encode(),
                          [("h", b"1"), ("h", None), ("b", b"\xfd")] if n % 2 else None,
                          timestamp=1_700_000_000_000 + n)  # fmt: skip
        producer.send("from", None, b"tombstone")
    lines = _all(broker, "from", "--format", "json")
    assert b"value_base64" in lines
    done = _run(broker, "produce", "to", "--format", "json", given=lines)
    assert done.returncode == 0, done.stderr
    back = _all(broker, "to", "--format", "json")
    assert sorted(back.replace(b'"to"', b'"from"').splitlines()) == sorted(lines.splitlines())


def test_failed_lines_are_named_by_number_and_the_others_are_sent(broker: Any) -> None:
    broker.run("topic", "create", "t", "-c", "max.message.bytes=1000")
    given = b"one\n" + b"x" * 2000 + b"\nthree\n"
    done = _run(broker, "produce", "t", given=given)
    assert done.returncode == 1
    assert b"line 2: " in done.stderr
    assert b"max.message.bytes" in done.stderr
    assert b"2 records sent to t, 1 failed" in done.stderr
    assert _all(broker, "t") == b"one\nthree\n"
    bad = [b"{", b"[1]", b'{"key":"k"}', b'{"value":1}', b'{"value_base64":"?"}',
           b'{"value":"v","partition":9}', b'{"value":"v","timestamp":"now"}',
           b'{"value":"v","headers":[1]}']  # fmt: skip
    done = _run(broker, "produce", "t", "-f", "json", given=b'{"value":"good"}\n' + b"\n".join(bad))
    assert done.returncode == 1
    named = re.findall(rb"line (\d+): ", done.stderr)
    assert named == [b"%d" % n for n in range(2, len(bad) + 2)]
    assert _all(broker, "t").endswith(b"good\n")
    for missing in (("nope",), ("t", "--partition", "7")):
        done = _run(broker, "produce", *missing, given=b"x\n")
        assert done.returncode == 1
        assert b"line" not in done.stderr


def test_keys_headers_partition_acks_and_compression(broker: Any) -> None:
    broker.run("topic", "create", "t", "-p", "4")
    _run(broker, "produce", "t", "-K", "::", "-z", "zstd", "--acks", "none",
         given=b"a::1\na::2\nnone\n::empty\n")  # fmt: skip
    done = _run(broker, "produce", "t", "-p", "3", "-H", "one=1", "-H", "two=a=b", "-K", ":",
                "--acks", "memory", given=b"k:v\nw\n")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in _all(broker, "t", "-f", "json").splitlines()]
    pairs = {(r["key"], r["value"]) for r in found}
    assert pairs == {("a", "1"), ("a", "2"), (None, "none"), ("", "empty"), ("k", "v"), (None, "w")}
    with_headers = [r for r in found if "headers" in r]
    assert [r["partition"] for r in with_headers] == [3, 3]
    assert with_headers[0]["headers"] == [
        {"name": "one", "value": "1"}, {"name": "two", "value": "a=b"},
    ]  # fmt: skip
    only = _run(broker, "consume", "t", "--from", "0", "-p", "3", "-e")
    assert only.stdout.endswith(b"v\nw\n")
    refused = _run(broker, "consume", "t", "--from", "5")
    assert refused.returncode == 2
    assert b"--partition" in refused.stderr


def test_times_templates_and_the_other_ends(broker: Any) -> None:
    broker.run("topic", "create", "t")
    base = 1_700_000_000_000
    given = b"\n".join(b'{"value":"v%d","key":"k","timestamp":%d}' % (n, base + n * 1000)
                       for n in range(10))  # fmt: skip
    _run(broker, "produce", "t", "-f", "json", given=given)
    at = [datetime.fromtimestamp((base + n * 1000) / 1000, UTC).isoformat() for n in range(10)]
    done = _run(broker, "consume", "t", "--from", at[3], "--to", at[6])
    assert done.stdout == b"v3\nv4\nv5\n"
    done = _run(broker, "consume", "t", "--from", at[8], "--to", "2024-01-01T00:00Z")
    assert done.stdout == b"v8\nv9\n"  # a time that is over, and that no record reached
    done = _run(broker, "consume", "t", "--from", "9", "--format",
                r"{topic}[{partition}]\t{offset:>3} {key}={value:.1}|{headers}", "-e")  # fmt: skip
    assert done.stdout == b"t[0]\t  9 k=v|\n"
    begun = time.monotonic()
    done = _run(broker, "consume", "t", "--timeout", "2")  # to attach, too
    assert (done.returncode, done.stdout) == (4, b"")
    assert time.monotonic() - begun < 40  # and not until a record comes
    with broker.client() as client, client.producer() as producer:
        soon = int(time.time() * 1000) + 60_000
        producer.send("t", b"before", timestamp=soon - 1)
        producer.send("t", b"after", timestamp=soon)
    done = _run(broker, "consume", "t", "--from", "10", "--to",
                datetime.fromtimestamp(soon / 1000, UTC).isoformat())  # fmt: skip
    assert done.stdout == b"before\n"


def test_a_consumer_whose_reader_has_gone_ends_while_no_record_comes(broker: Any) -> None:
    broker.run("topic", "create", "t")
    _run(broker, "produce", "t", given=b"1\n")
    command = [sys.executable, "-m", "shmbroker.cli.main", "consume", "t", "--from", "earliest"]
    process = subprocess.Popen(
        command, env=broker.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"1\n"
        process.stdout.close()
        assert process.wait(40) == 0
        assert process.stderr.read() == b""


def test_ctrl_c_ends_a_wait_for_records_and_a_wait_for_lines_with_130(broker: Any) -> None:
    broker.run("topic", "create", "t")
    command = [sys.executable, "-m", "shmbroker.cli.main"]
    pipes: dict[str, Any] = {
        "env": broker.env, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE, "text": True,
    }  # fmt: skip
    consume = subprocess.Popen([*command, "consume", "t", "--from", "earliest"], **pipes)
    produce = subprocess.Popen([*command, "produce", "t"], **pipes)
    with consume, produce:
        assert produce.stdin is not None
        assert consume.stdout is not None
        produce.stdin.write("one\n")
        produce.stdin.flush()
        assert consume.stdout.readline() == "one\n"  # typed lines go at once
        for process in (produce, consume):
            process.send_signal(signal.SIGINT)
            assert process.wait(40) == 130
        assert produce.stderr is not None
        assert produce.stderr.read().startswith("1 record sent to t")
        assert consume.stderr is not None
        assert consume.stderr.read() == ""


@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_gets_a_progress_bar_and_wrapped_errors(
    broker: Any, tmp_path: Path, columns: int
) -> None:
    broker.run("topic", "create", "t")
    lines = tmp_path / "lines"
    lines.write_bytes(b"0123456789" * 9 + b"\n" + b"x\n" * 2_500_000)
    code, said = _on_terminal(broker, columns, "produce", "t", str(lines))
    assert code == 0
    assert "100%" in said or "lines" in said
    assert "2,500,001 records sent to t" in said
    code, said = _on_terminal(broker, columns, "produce", "nope", str(lines))
    assert code == 1
    words = re.sub(r"\s+", " ", said)
    assert "create it with: shmbroker topic create nope" in words
    assert max(map(len, said.splitlines())) <= columns


def _on_terminal(broker: Any, columns: int, *words: str) -> tuple[int, str]:
    """A command whose standard error is a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = [sys.executable, "-m", "shmbroker.cli.main", *words]
    env = {k: v for k, v in broker.env.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        command, env=env | {"TERM": "xterm"}, stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    said = b""
    with process, contextlib.suppress(OSError):  # EIO is the terminal's end of file
        while data := os.read(ours, 1 << 16):
            said += data
    os.close(ours)
    return process.returncode, said.decode()


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{value.real}", "no field"), ("{headers[0]}", "no field"), ("{0}", "no field"),
        ("{value:{offset}}", "no format"), ("{value:>99999}", "no format"),
        ("{value:d}", "no format"), ("{offset!a}", "no conversion"), ("{value", "'}'"),
        ("xml", "json"),
    ],
)  # fmt: skip
def test_a_wrong_template_is_named_before_a_broker_is_sought(
    isolated_env: dict[str, str], template: str, named: str
) -> None:
    from typer.testing import CliRunner

    from shmbroker.cli.main import app

    result = CliRunner().invoke(app, ["consume", "t", "--format", template])
    assert result.exit_code == 2
    assert named in result.stderr
