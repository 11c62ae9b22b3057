"""`shmbroker perf --peers` at its smallest size: a fake system, the broker itself, runs that stop.

No speed is asserted; a latency is, where the fake system stalls on purpose.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from fake_peer import FilePeer, sleeper
from processes import living
from rich.console import Console
from typer.testing import CliRunner
from waiting import eventually

from shmbroker.cli.main import app
from shmbroker.perf import page
from shmbroker.perf.broker import private_places
from shmbroker.perf.case import SMOKE, Bench, Case
from shmbroker.perf.devices import effort as devices_effort
from shmbroker.perf.devices import run
from shmbroker.perf.devices.needs import MissingTool
from shmbroker.perf.devices.results import FILE, Unusable, load
from shmbroker.perf.guard import DiskGuard
from shmbroker.perf.peers import effort, stage, timed, workloads
from shmbroker.perf.peers.daemon import NotUp
from shmbroker.perf.peers.fetching import Cache, FetchFailed
from shmbroker.perf.peers.peer import Peer
from shmbroker.perf.peers.shmbroker import Shmbroker
from shmbroker.perf.report import Row

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quiet() -> Iterator[Console]:
    with open(os.devnull, "w") as nowhere:
        yield Console(file=nowhere, width=200)


def measured(peer: Peer, mode_name: str, home: Path) -> dict[str, Row]:
    mode = next(mode for mode in peer.modes if mode.name == mode_name)
    home.mkdir(exist_ok=True)
    with DiskGuard(home, 0) as guard:
        bench = Bench(home, SMOKE, lambda _text: None, guard)
        rows = workloads.measure(bench, effort.SMOKE, peer, mode)
    assert list(home.iterdir()) == []  # one system's data at a time
    return {row.case: row for row in rows}


class Lossy(FilePeer):
    fault: ClassVar[str] = "loses"


class Hanging(FilePeer):
    fault: ClassVar[str] = "hangs"


class Stalling(FilePeer):
    fault: ClassVar[str] = "stalls"


class Unfetchable(FilePeer):
    name: ClassVar[str] = "unfetchable"

    def fetch(self) -> None:
        raise FetchFailed("no such package: files-1.2")


@pytest.mark.parametrize("mode", FilePeer.modes, ids=lambda mode: mode.name)
def test_every_workload_of_a_mode_has_its_row(tmp_path: Path, mode: effort.Mode) -> None:
    peer = FilePeer(Cache(tmp_path / "cache"))
    rows = measured(peer, mode.name, tmp_path / "home")
    wanted = workloads.names(effort.SMOKE, FilePeer, mode)
    if mode.acks == "memory":
        wanted.remove("fastest-100-memory-cached")  # the driver says that there is none
    assert list(rows) == wanted
    assert all(row.values for row in rows.values()), [row.note for row in rows.values()]
    assert ("values-100" in rows) == (mode.acks == "memory")
    how = "received by another process" if mode.acks == "none" else "acknowledged; read back"
    assert how in rows[f"many-100-{mode.case}"].note


def test_a_topic_that_nothing_reads_any_more_is_forgotten(tmp_path: Path) -> None:
    """What is kept for catch-up reads is all that a system in memory must hold to the end."""
    (_, cached, _) = FilePeer.modes
    with DiskGuard(tmp_path, 0) as guard:
        bench = Bench(tmp_path, SMOKE, lambda _text: None, guard)
        peer = FilePeer(Cache(tmp_path / "cache"))
        with stage.staged(bench, effort.SMOKE, peer, cached) as staged:
            for _, work in workloads.plan(effort.SMOKE, FilePeer, cached):
                work(staged)
            kept, count = staged.full(100)
            data = tmp_path / "files-cached"
            left = {path.name for path in data.iterdir()} - {"log"}
            assert left == {kept}
            assert (data / kept).stat().st_size == 100 * count


class Passing(FilePeer):
    """Keeps nothing: what it takes it hands on."""

    name: ClassVar[str] = "passing"
    stores: ClassVar[bool] = False
    fastest_title: ClassVar[str] = ""
    modes: ClassVar[tuple[effort.Mode, ...]] = (FilePeer.modes[2],)


def test_a_system_that_keeps_nothing_has_rounds_until_all_is_received(tmp_path: Path) -> None:
    rows = measured(Passing(Cache(tmp_path)), "none", tmp_path / "home")
    assert list(rows) == ["memory-none", "many-100-none", "each-100-none", "latency-200-none"]
    assert all(row.values for row in rows.values()), [row.note for row in rows.values()]
    assert effort.SMOKE.disk_bytes(Passing) == Passing.fixed_bytes


def test_a_system_that_loses_a_value_has_no_rate(tmp_path: Path) -> None:
    rows = measured(Lossy(Cache(tmp_path)), "durable", tmp_path / "home")
    lossy = rows["many-100-durable"]
    assert lossy.values == ()
    assert "values only" in lossy.note
    assert rows["each-100-durable"].values
    assert rows["fastest-100-durable"].values == ()  # there is no round to be as long as


def test_after_a_client_that_hangs_nothing_more_is_asked_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_LIMIT_S", 2.0)
    rows = measured(Hanging(Cache(tmp_path)), "cached", tmp_path / "home")
    assert rows["many-100-memory-cached"].values
    assert "no answer" in rows["each-100-memory-cached"].note
    assert "each-100-memory-cached hung" in rows["latency-200-memory-cached"].note


def test_a_record_that_waits_behind_a_stall_is_charged_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 ms at 200 a second: some 20 of 40 records are late, though 39 were sent quickly."""
    rows = measured(Stalling(Cache(tmp_path)), "cached", tmp_path / "home")
    late = rows["latency-200-memory-cached"]
    assert late.values, late.note
    assert late.more["max us"] >= 100_000
    assert late.values[0] > 5_000


def test_a_sender_that_cannot_hold_the_rate_says_so() -> None:
    class Slow:
        def sender(self, _topic: str, _mode: object) -> object:
            return lambda _value: signal.sigtimedwait([], 0.2)

    object_ = timed.Timed.__new__(timed.Timed)
    object_.client = Slow()  # type: ignore[assignment]
    object_._values = [b"x"] * 100
    _, sent = object_.pace("t", 1000.0, 100, FilePeer.modes[0])
    assert 1 <= sent < 20


def test_a_daemon_ends_with_all_that_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('up', flush=True); time.sleep(600)"
    )
    with sleeper(tmp_path / "log", code) as daemon:
        eventually(lambda: len(daemon.processes()) == 2, daemon.processes)
        found = daemon.processes()
        assert os.getsid(found[0].pid) != os.getsid(0)  # Ctrl+C is for the measurement
    assert not living(found)
    daemon.stop()


def test_a_daemon_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    with pytest.raises(NotUp, match="no disk today"):
        sleeper(tmp_path / "log", "raise SystemExit('no disk today')").start()


def test_a_daemon_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shmbroker.perf.peers.daemon._STOP_S", 0.2)
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up', flush=True); time.sleep(600)"
    )
    with sleeper(tmp_path / "log", code) as daemon:
        (process,) = daemon.processes()
    assert not living([process])


@pytest.mark.leaves_processes
def test_a_daemon_of_a_killed_measurement_dies_with_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/support')\n"
        "from fake_peer import sleeper; from pathlib import Path\n"
        f"daemon = sleeper(Path({str(tmp_path / 'log')!r})); daemon.start()\n"
        "print(daemon.pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    eventually(lambda: not living([pid]), lambda: f"{pid} lives")


@pytest.fixture
def options(tmp_path: Path) -> run.Options:
    return run.Options(
        (run.Device("X", tmp_path / "d"),), devices_effort.SMOKE, tmp_path / "out",
        cases=(Case("own", "own", lambda _: [Row("own", "own", "us", (1.0,))], lambda _: 0),),
        peers=(FilePeer,), cache=tmp_path / "cache", devices_too=False,
    )  # fmt: skip


def test_an_interrupted_run_goes_on_with_the_mode_that_it_was_in(
    options: run.Options, quiet: Console, isolated_env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    ran: list[str] = []

    def interrupted(_bench: Bench, _: effort.Effort, _peer: Peer, mode: effort.Mode) -> list[Row]:
        ran.append(mode.name)
        if ran.count("cached") == 1 and mode.name == "cached":
            raise KeyboardInterrupt
        return [Row(f"many-100-{mode.case}", "x", "records/s", (1.0,))]

    monkeypatch.setattr(workloads, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run(options, quiet)
    assert list((options.devices[0].directory).iterdir()) == []
    assert load(options.out / FILE).finished_s is None
    results = run.run(options, quiet)
    assert ran == ["durable", "cached", "cached", "none"]
    (found,) = results.devices[0].peers
    assert list(found.cases) == ["durable", "memory-cached", "none"]
    assert found.versions == {"files": "1.2"}
    assert load(options.out / FILE) == results
    with pytest.raises(Unusable, match="finished run"):
        run.run(options, quiet)
    page.write(results, options.out)
    assert "Files &lt;&amp;&gt;" in (options.out / page.PAGE).read_text()


def test_what_a_finished_run_was_not_asked_for_is_added_to_it(
    options: run.Options, quiet: Console, isolated_env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        workloads, "measure", lambda *_: [Row("many-100-durable", "x", "records/s", (1.0,))]
    )
    alone = dataclasses.replace(options, peers=(), devices_too=True)
    monkeypatch.setattr("shmbroker.perf.devices.fio.version", lambda: "fio-0")
    run.run(alone, quiet)
    (found,) = run.run(options, quiet).devices
    assert [row.case for row in found.rows()] == ["own"]
    assert len(found.peers[0].rows()) == 3
    more = dataclasses.replace(options, peers=(FilePeer, Unfetchable))
    results = run.run(more, quiet)
    assert results.sessions == 3
    (row, *_) = results.devices[0].peers[1].rows()
    assert "no such package: files-1.2" in row.note


def test_without_hdrhistogram_a_run_of_peers_is_refused_before_it_begins(
    options: run.Options, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingTool, match=r"hdrhistogram is missing; pip install"):
        run.run(options, quiet)
    assert not options.out.exists()


def test_peers_are_not_measured_on_a_modelled_device(options: run.Options) -> None:
    modelled = dataclasses.replace(options.devices[0], model=run.Hdd())
    assert options.peers_on(modelled) == ()
    assert options.peers_on(options.devices[0]) == (FilePeer,)


@pytest.mark.parametrize("mode", Shmbroker.modes, ids=lambda mode: mode.name)
def test_the_broker_is_measured_as_its_peers_are(
    tmp_path: Path, mode: effort.Mode, isolated_env: dict[str, str]
) -> None:
    places = tmp_path / "places"
    places.mkdir()
    with private_places(places):
        rows = measured(Shmbroker(Cache(tmp_path / "cache")), mode.name, tmp_path / "home")
    assert list(rows) == workloads.names(effort.SMOKE, Shmbroker, mode)
    assert all(row.values for row in rows.values()), [row.note for row in rows.values()]
    assert 10 << 20 < rows[f"memory-{mode.case}"].values[0] < 2 << 30


@pytest.mark.leaves_processes
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_of_peers_that_is_ended_leaves_nothing_running(
    tmp_path: Path, isolated_env: dict[str, str], number: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-m", "shmbroker.cli.main", "perf", "--no-devices", "--quick"]
    command += ["--peer", "shmbroker", "--ssd", str(tmp_path / "d"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, cwd=ROOT, env=isolated_env, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process.stderr:
        try:
            assert any("each-100-durable" in line for line in process.stderr)
            below = psutil.Process(process.pid).children(recursive=True)
            assert len(below) > 3  # the broker's and two clients
        finally:
            process.send_signal(number)
        said = process.stderr.read()
    assert process.wait(30) == code, said
    eventually(lambda: not living(below), lambda: living(below))
    run.sweep(tmp_path / "d")  # as the next run there does
    assert list((tmp_path / "d").iterdir()) == []
    if number == signal.SIGINT:
        assert "the same command goes on" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ssd", "/a", "--peer", "oracle"], "there are: shmbroker"),
        (["--ssd", "/a", "--no-devices"], "nothing to measure"),
        (["--model-hdd", "--no-devices", "--peers"], "a real device"),
    ],
)
def test_wrong_options_are_named(words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["perf", *words])
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("│", " ").split())


def test_full_says_the_time_and_the_space_of_the_peers_too() -> None:
    peers = (FilePeer, Shmbroker)
    options = run.Options((run.Device("a", Path("/a")),), devices_effort.FULL, Path("/out"),
                          peers=peers, devices_too=False, cache=Path("/c"))  # fmt: skip
    seconds, space = run.needs(options)
    assert seconds == effort.FULL.seconds(peers)
    assert space[Path("/a")] > 5 * 5 * 100_000_000
    assert space[Path("/c")] > 0
    assert effort.QUICK.seconds((Shmbroker,)) < 180
