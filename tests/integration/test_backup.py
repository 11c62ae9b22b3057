"""`backup` and `restore`: whole and consistent beside a busy broker, resumable, verified."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shmbroker.errors import DamagedLog, OffsetOutOfRange
from shmbroker.log import manifest
from shmbroker.workers import backup as work

SEGMENT = 1 << 16
KILLED_AT_THE_FOURTH = """
import os, signal, sys
from pathlib import Path
import shmbroker
from shmbroker.workers import backup as work

copied = 0

def progress(name, count):
    global copied
    copied += 1
    if copied == 4:
        os.kill(os.getpid(), signal.SIGKILL)

client = shmbroker.connect()
work.backup(client, Path(sys.argv[1]), work.sources_of(client), progress)
"""


@pytest.fixture
def second(broker: Any, tmp_path: Path) -> Iterator[Any]:
    """Another instance, not up yet, without a data directory."""
    root = tmp_path / "second"
    root.mkdir()
    made = type(broker)(broker.env, root, "")
    try:
        yield made
    finally:
        made.finish()


def _fill(broker: Any, topic: str, records: int, **options: Any) -> None:
    with broker.client() as client:
        client.create_topic(topic, config={"segment.bytes": SEGMENT}, **options)
        with client.producer() as producer:
            for first in range(0, records, 500):
                values = [b"%0200d" % n for n in range(first, first + 500)]
                producer.send_many(topic, values).result()


def _values(broker: Any, topic: str) -> list[tuple[int, bytes]]:
    """All records; from the start again when retention takes what comes next."""
    while True:
        with suppress(OffsetOutOfRange):
            return _values_once(broker, topic)


def _values_once(broker: Any, topic: str) -> list[tuple[int, bytes]]:
    with broker.client() as client, client.consumer(topic, start="earliest") as consumer:
        end = sum(consumer.end_offsets().values())
        found: list[tuple[int, bytes]] = []
        if sum(consumer.lag().values()) == 0:
            return found
        for batch in consumer.batches(timeout=40):
            found += zip(batch.offsets(), batch.values(), strict=True)
            if found[-1][0] == end - 1:
                break
        return found


def _nothing(_name: str, _count: int) -> None: ...


def test_a_backup_under_load_with_retention_is_whole_and_serves_the_same_offsets(
    broker: Any, second: Any, tmp_path: Path
) -> None:
    ended = threading.Event()
    # Kept is what a second brings: retention goes on all the time, and leaves a backup something.
    config = {"segment.bytes": SEGMENT, "retention.bytes": 32 * SEGMENT}
    with broker.client() as client:
        client.create_topic("busy", config=config)
        client.create_topic("empty", partitions=2)
    _fill(broker, "still", 2000)

    def load() -> None:
        with broker.client() as client, client.producer() as producer:
            n = 0
            while not ended.wait(0.05):
                values = [b"%0200d" % i for i in range(n, n + 500)]
                producer.send_many("busy", values).result()
                n += 500

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for attempt in range(3):
            done = broker.run("backup", str(tmp_path / f"backup{attempt}"), "--json")
            assert done.returncode == 0, done.stderr
    finally:
        ended.set()
        thread.join()
    parts = {f"{p['topic']}-{p['partition']}": p for p in map(json.loads, done.stdout.splitlines())}
    assert set(parts) == {"busy-0", "empty-0", "empty-1", "still-0"}
    busy = parts["busy-0"]
    assert 0 <= busy["log_start_offset"] < busy["end_offset"]
    directory = str(tmp_path / "backup2")
    assert broker.run("backup", directory, "--verify").returncode == 0
    restored = second.run("restore", directory, "--instance", second.instance)
    assert restored.returncode == 0, restored.stderr
    assert f"shmbroker up --instance {second.instance}" in restored.stdout
    verified = second.run("log", "verify", "busy-0", "--json")
    assert verified.returncode == 0, verified.stdout
    whole = json.loads(verified.stdout)
    assert whole["start_offset"] <= busy["log_start_offset"]
    assert whole["end_offset"] == busy["end_offset"]
    assert whole["records"] == whole["end_offset"] - whole["start_offset"]
    second.start()
    for topic, part in (("busy", busy), ("still", parts["still-0"])):
        found = _values(second, topic)
        offsets = [offset for offset, _ in found]
        assert offsets[0] >= part["log_start_offset"]  # its own retention goes on at once
        assert offsets == list(range(offsets[0], part["end_offset"]))
        assert all(int(value) == offset for offset, value in found)
    assert _values(second, "empty") == []
    with broker.client() as old, second.client() as new:
        was, now = old.status(), new.status()
        assert was["data_dir_id"] != now["data_dir_id"]
        epochs = [
            {f"{p['topic']}-{p['partition']}": p["leader_epoch"] for p in s["partitions"]}
            for s in (was, now)
        ]
        assert all(epochs[1][name] > epochs[0][name] for name in epochs[0])
        assert {p["state"] for p in now["partitions"]} == {"online"}
        with new.producer() as producer:
            receipt = producer.send("busy", b"on", partition=0)
            assert receipt.result(40).offset == busy["end_offset"]
    second.restart()
    assert _values(second, "busy")[-1] == (busy["end_offset"], b"on")


def test_a_killed_backup_goes_on_with_what_it_has(broker: Any, second: Any, tmp_path: Path) -> None:
    _fill(broker, "a", 2000)
    _fill(broker, "b", 2000)
    directory = tmp_path / "backup"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT_THE_FOURTH, str(directory)], env=broker.env, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    with broker.client() as client:
        with pytest.raises(DamagedLog, match="go on with: shmbroker backup"):
            manifest.load(str(directory))
        with (directory / manifest.JOURNAL).open("a") as journal:
            journal.write('{"path": "a-0/torn')
        before = {p.name: p.stat().st_mtime_ns for p in (directory / "a-0").glob("*.log")}
        refused = broker.run("restore", str(directory), "--instance", second.instance)
        assert refused.returncode == 5
        _fill(broker, "c", 500)
        client.delete_topic("b")
        made = work.backup(client, directory, work.sources_of(client), _nothing)
    after = {p.name: p.stat().st_mtime_ns for p in (directory / "a-0").glob("*.log")}
    kept = [name for name in before if after[name] == before[name]]
    assert len(kept) >= 3
    assert {p.topic for p in made.partitions} == {"a", "c"}
    assert not (directory / "b-0").exists()
    assert not (directory / manifest.JOURNAL).exists()
    again = broker.run("backup", str(directory))
    assert again.returncode == 1
    assert "--verify" in again.stderr
    assert second.run("restore", str(directory), "--instance", second.instance).returncode == 0
    second.start()
    assert [offset for offset, _ in _values(second, "a")] == list(range(2000))


def test_damage_in_a_backup_is_named_and_never_restored(
    broker: Any, second: Any, tmp_path: Path
) -> None:
    _fill(broker, "t", 2000)
    directory = tmp_path / "backup"
    assert broker.run("backup", str(directory)).returncode == 0
    victim = sorted((directory / "t-0").glob("*.log"))[2]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    done = broker.run("backup", str(directory), "--verify")
    assert done.returncode == 5
    assert str(victim) in done.stdout
    lines = broker.run("backup", str(directory), "--verify", "--json").stdout.splitlines()
    wrong = [found["file"] for found in map(json.loads, lines) if found["problem"]]
    assert wrong == [f"t-0/{victim.name}"]
    done = second.run("restore", str(directory), "--instance", second.instance)
    assert done.returncode == 5
    assert victim.name in done.stderr
    refused = second.run("up", "--instance", second.instance, "--detach")
    assert refused.returncode == 1, "half a restore is no data directory"
    victim.write_bytes(whole)
    assert second.run("restore", str(directory), "--instance", second.instance).returncode == 0
    again = second.run("restore", str(directory), "--instance", second.instance)
    assert again.returncode == 1
    assert "not empty" in again.stderr
    running = second.run("restore", str(directory), "--instance", broker.instance)
    assert running.returncode == 1
    assert str(broker.pid) in running.stderr
    text = (directory / manifest.MANIFEST).read_text()
    (directory / manifest.MANIFEST).write_text(text.replace('"partition": 0', '"partition": 1'))
    assert broker.run("backup", str(directory), "--verify").returncode == 5
    second.start()
    assert len(_values(second, "t")) == 2000
    shutil.rmtree(directory)


def test_a_foreign_directory_and_a_missing_broker_are_refused(
    broker: Any, tmp_path: Path, isolated_env: dict[str, str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("x")
    done = broker.run("backup", str(tmp_path / "mine"))
    assert done.returncode == 1
    assert "letter" in done.stderr
    assert broker.run("backup", str(tmp_path / "b"), "--instance", "nobody").returncode == 3
    assert broker.run("backup", str(tmp_path / "mine"), "--verify").returncode == 5
