"""The cache of what peers need: kept while the same is asked for, whole or not there at all."""

from __future__ import annotations

import subprocess
import threading
import time
import xml.etree.ElementTree as ET
from array import array
from pathlib import Path
from typing import Any

import pytest
from fake_peer_client import FileClient

from shmbroker.perf.peers import fetching
from shmbroker.perf.peers.fetching import Cache, FetchFailed, Unpacked, pip_version
from shmbroker.perf.peers.latency import percentiles
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.timed import Timed
from shmbroker.perf.values import ValueSpec


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have been run; each "succeeds"."""
    found: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        found.append(command)
        said = "Inst redis-server (1)\nInst libjemalloc2 (2)\n" if "--simulate" in command else ""
        return subprocess.CompletedProcess(command, 0, said, "")

    monkeypatch.setattr(fetching.subprocess, "run", run)
    monkeypatch.setattr(fetching, "require", lambda tool, _packages: tool)
    return found


def test_what_is_there_is_not_fetched_again(tmp_path: Path, ran: list[list[str]]) -> None:
    cache = Cache(tmp_path)
    first = cache.pip("nats", "nats-py==2.9")
    assert cache.pip("nats", "nats-py==2.9") == first
    assert len(ran) == 1
    (first / "old").touch()
    cache.pip("nats", "nats-py==2.10")  # asked for something else: made anew
    assert len(ran) == 2
    assert not (first / "old").exists()


def test_of_two_runs_that_want_the_same_one_fetches_and_the_other_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    begun, go_on = threading.Event(), threading.Event()

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        begun.set()
        assert go_on.wait(40)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetching.subprocess, "run", run)
    got: list[Path] = []
    fetch = [
        threading.Thread(target=lambda: got.append(Cache(tmp_path).pip("nats", "nats-py==2.9")))
        for _ in range(2)
    ]
    fetch[0].start()
    assert begun.wait(40)
    fetch[1].start()
    fetch[1].join(0.2)
    assert fetch[1].is_alive()
    go_on.set()
    for each in fetch:
        each.join(40)
    assert (len(ran), got) == (1, [tmp_path / "pip" / "nats"] * 2)


def test_a_fetch_that_fails_leaves_nothing_and_says_what_the_tool_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "no such version")

    monkeypatch.setattr(fetching.subprocess, "run", run)
    with pytest.raises(FetchFailed, match=r"nats-py==9 ended with 1: no such version"):
        Cache(tmp_path).pip("nats", "nats-py==9")
    assert not (tmp_path / "pip" / "nats").exists()


def test_debian_packages_come_with_what_they_need_and_are_not_installed(
    tmp_path: Path, ran: list[list[str]]
) -> None:
    Cache(tmp_path).debian("redis", "redis-server")
    update, simulate, download = ran
    assert update[-1] == "update"
    assert "--simulate" in simulate
    assert download[-3:] == ["download", "redis-server", "libjemalloc2"]
    for command in ran:  # lists and archives are ours: the system's are not touched
        assert any(f"Dir::State::lists={tmp_path}" in word for word in command)


def test_programs_of_unpacked_packages_find_their_libraries(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
    (tmp_path / "usr/bin").mkdir()
    (tmp_path / "usr/bin/redis-server").touch()
    unpacked = Unpacked(tmp_path)
    assert unpacked.program("redis-server").exists()
    env = unpacked.env()
    assert str(tmp_path / "usr/lib/x86_64-linux-gnu") in env["LD_LIBRARY_PATH"].split(":")
    assert env["PATH"].startswith(str(tmp_path))
    with pytest.raises(FetchFailed, match="rabbitmq"):
        unpacked.program("rabbitmq")


def test_jars_are_asked_for_by_a_pom_of_coordinates(tmp_path: Path, ran: list[list[str]]) -> None:
    there = Cache(tmp_path).maven("kafka", "org.a:b:1", "org.c:d<e:2")
    pom = ET.parse(there / "pom.xml").getroot()
    assert [each.text for each in pom.iter("artifactId")] == ["peers", "b", "d<e"]
    (command,) = ran
    assert f"-DoutputDirectory={there}" in command


def test_go_programs_are_built_below_the_cache_and_nothing_else_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[str, str]] = []

    def run(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        Path(env["GOPATH"]).mkdir(parents=True, exist_ok=True)
        assert all(Path(env[key]).is_relative_to(tmp_path) for key in ("GOBIN", "GOCACHE"))
        program = Path(env["GOBIN"]) / command[-1].partition("@")[0].rpartition("/")[2]
        program.touch()
        built.append((program.name, command[-1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetching.subprocess, "run", run)
    monkeypatch.setattr(fetching, "require", lambda tool, _packages: tool)
    there = Cache(tmp_path).go("x", "example.org/one@v1.0.0", "example.org/a/two@v2.0.0")
    assert built == [("one", "example.org/one@v1.0.0"), ("two", "example.org/a/two@v2.0.0")]
    assert sorted(each.name for each in there.iterdir()) == ["fetched", "one", "two"]


def test_a_package_that_is_not_there_has_no_version(tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="confluent-kafka"):
        pip_version(tmp_path, "confluent-kafka")


def test_a_record_that_is_nearly_due_is_awaited_without_a_timer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timed = Timed([], FileClient.__module__, "FileClient", (str(tmp_path), ""))
    mode = Mode("memory", "memory", "")
    timed.create("paced", mode)
    timed.prepare(ValueSpec(20, 100))
    asked: list[float] = []
    sleep = time.sleep

    def slept(seconds: float) -> None:
        asked.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", slept)
    assert timed.pace("paced", 1000, 20, mode)[1] == 20
    assert asked
    assert min(asked) > 0  # sleep(0) is late by 50 us in Python 3.11


def test_latencies_run_from_when_a_record_was_due() -> None:
    first, rate, count = 1_000_000_000, 1000.0, 1000
    arrived = array("q", (first + n * 1_000_000 + 50_000 for n in range(count)))
    for n in range(500, 600):  # a stall of 100 ms: what was due meanwhile came at its end
        arrived[n] = first + 600 * 1_000_000
    found = percentiles(arrived, first, rate, count)
    assert found["p50 us"] == pytest.approx(50, rel=0.01)
    assert found["p99 us"] == pytest.approx(92_000, rel=0.02)
    assert found["max us"] == pytest.approx(100_000, rel=0.01)
    assert "p99.9 us" not in found  # of 800 that count, one is no percentile


def test_a_record_that_never_arrived_has_no_percentile() -> None:
    arrived = array("q", [1_000_000] * 10)
    arrived[7] = 0
    with pytest.raises(AssertionError, match="value 7 of 10"):
        percentiles(arrived, 0, 1000.0, 10)
