"""Programs on another host, a network namespace: keys, TLS, and a cable that is cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import OtherHost, other_host
from waiting import LIMIT_S, eventually

import shmbroker
from shmbroker.client.client import Client

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

COUNT = 20_000
DEAD_MS = 1_500

# A program there: sends numbered records until it is told to stop, then says how many; its consumer
# says what it saw. `connect` takes what the test passes.
PRODUCE = """
import sys, json, time, shmbroker
options = json.loads(sys.argv[1])
seconds = float(sys.argv[2])
with shmbroker.connect(local=False, timeout=40, reconnect_s=60, **options) as client:
    with client.producer(linger_ms=2) as producer:
        print("connected", flush=True)
        n, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            producer.send_many("far", [b"%010d" % k for k in range(n, n + 500)], partition=0)
            n += 500
            time.sleep(0.01)
    print(n)
"""
CONSUME = """
import sys, json, shmbroker
options = json.loads(sys.argv[1])
count = int(sys.argv[2])
with shmbroker.connect(local=False, timeout=40, reconnect_s=60, **options) as client:
    with client.consumer("far", start="earliest") as consumer:
        print("connected", flush=True)
        n = 0
        for batch in consumer.batches(timeout=60):
            for value in batch.values():
                assert int(value) == n, (int(value), n)
                n += 1
            if n >= count:
                break
print(n)
"""


@pytest.fixture(scope="module")
def far() -> Iterator[OtherHost]:
    with other_host() as host:
        yield host


@pytest.fixture
def command(isolated_env: dict[str, str]) -> Iterator[Any]:
    """The command line on this host; the broker is down at the end."""

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "shmbroker.cli.main", *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    yield run
    run("down")


def listening(command: Any, *options: str) -> dict[str, Any]:
    done = command("up", "--detach", *options)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(command("status", "--json").stdout)["listen"]
    return found


@pytest.fixture
def guarded(command: Any, far: OtherHost, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A broker with keys; how the other host's programs connect."""
    monkeypatch.setenv("SHMBROKER_LISTEN_HEARTBEAT_MS", "300")
    monkeypatch.setenv("SHMBROKER_LISTEN_DEAD_MS", str(DEAD_MS))
    assert command("keys", "generate", "--client", "far").returncode == 0
    listen = listening(command, "--listen", f"tcp://{far.here}:0")
    assert listen["curve"]
    assert listen["tls"]
    keys = Path(listen["keys"]) / "clients" / "far"
    return {"instance": listen["control"][0], "keys": str(keys)}


@pytest.fixture
def topic(guarded: dict[str, Any]) -> Iterator[Client]:
    with shmbroker.connect() as client:
        client.create_topic("far")
        yield client


def ended(program: subprocess.Popen[str], limit_s: float = 90) -> str:
    out, err = program.communicate(timeout=limit_s)
    assert program.returncode == 0, err
    return out.strip().splitlines()[-1]


def started(program: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert program.stdout is not None
    line = program.stdout.readline()
    if line != "connected\n":
        _, err = program.communicate()
        raise AssertionError(err)
    return program


def count_here(client: Client) -> int:
    """How many records there are, each the number of its offset."""
    values: list[int] = []
    with client.consumer("far", start="earliest") as consumer:
        end = sum(consumer.end_offsets().values())
        while len(values) < end:
            batch = consumer.poll_batch(LIMIT_S)
            assert batch is not None, f"{len(values)} of {end}"
            values += map(int, batch.values())
    assert values == list(range(len(values)))
    return len(values)


def test_records_go_there_and_back_behind_keys(
    far: OtherHost, guarded: dict[str, Any], topic: Client
) -> None:
    sent = int(ended(far.run(PRODUCE, json.dumps(guarded), "1")))
    assert count_here(topic) == sent > 0
    assert int(ended(far.run(CONSUME, json.dumps(guarded), str(sent)))) == sent


def test_a_cut_cable_is_a_pause_and_loses_doubles_and_reorders_nothing(
    far: OtherHost, guarded: dict[str, Any], topic: Client
) -> None:
    producer = started(far.run(PRODUCE, json.dumps(guarded), "8"))
    consumer = started(far.run(CONSUME, json.dumps(guarded), str(COUNT)))
    try:
        for down_s in (0.5, 2 * DEAD_MS / 1000):  # within what heartbeats forgive, and past it
            time.sleep(1.0)
            far.cut()
            time.sleep(down_s)
            far.mend()
        sent = int(ended(producer))
        assert sent > COUNT
        assert count_here(topic) == sent
        assert int(ended(consumer)) >= COUNT
    finally:
        far.mend()
        for program in (producer, consumer):
            program.kill()
            program.communicate()


def test_a_host_that_vanished_is_forgotten_by_the_broker(
    far: OtherHost, guarded: dict[str, Any], topic: Client
) -> None:
    program = started(far.run(PRODUCE, json.dumps(guarded), "60"))
    try:
        assert topic.status()["listen"]["clients"]
        far.cut()
        eventually(lambda: topic.status()["listen"]["clients"] == [], topic.status)
    finally:
        far.mend()
        program.kill()
        program.communicate()


def test_nobody_comes_in_from_there_without_the_right_key(
    far: OtherHost, guarded: dict[str, Any], topic: Client, tmp_path: Path, command: Any
) -> None:
    code = """
import sys, json, shmbroker
try:
    shmbroker.connect(local=False, timeout=1.5, **json.loads(sys.argv[1])).close()
except shmbroker.errors.ShmbrokerError as error:
    print(type(error).__name__)
else:
    print("came in")
"""
    address = {"instance": guarded["instance"]}
    other = tmp_path / "others"
    assert command("keys", "generate", "--dir", str(other), "--client", "far").returncode == 0
    stolen = tmp_path / "mixed"  # the right server's key, and a client's that it doesn't know
    stolen.mkdir(mode=0o700)
    for name, source in (
        ("server.key", Path(guarded["keys"])),
        ("client.key_secret", other / "clients" / "far"),
    ):
        (stolen / name).write_bytes((source / name).read_bytes())
        os.chmod(stolen / name, 0o600)
    for shown in (
        {},
        {"token": "guessed"},
        {"keys": str(other / "clients" / "far")},
        {"keys": str(stolen)},
    ):
        said = ended(far.run(code, json.dumps(address | shown)))
        assert said in ("NoBroker", "AuthenticationFailed"), (shown, said)
    assert ended(far.run(code, json.dumps(guarded))) == "came in"


def test_without_keys_it_takes_insecure_and_the_token(far: OtherHost, command: Any) -> None:
    address = f"tcp://{far.here}:0"
    refused = command("up", "--detach", "--listen", address)
    assert refused.returncode == 1
    assert "keys generate" in refused.stderr
    assert "--insecure" in refused.stderr
    listen = listening(command, "--listen", address, "--insecure")
    token = Path(listen["token_file"]).read_text().strip()
    with shmbroker.connect() as client:
        client.create_topic("far")
        shown = {"instance": listen["control"][0], "token": token}
        sent = int(ended(far.run(PRODUCE, json.dumps(shown), "0.5")))
        assert count_here(client) == sent > 0
