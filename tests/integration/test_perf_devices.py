"""`shmbroker perf` at its smallest size: the modelled disk, runs that stop and go on, the report.

No speed is asserted, but of the model: it never answers before what it charges.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner
from waiting import eventually

from shmbroker.cli.main import app
from shmbroker.perf import page
from shmbroker.perf.broker import Broker, private_places
from shmbroker.perf.case import Bench, Case
from shmbroker.perf.devices import effort, figures, model, run, workloads
from shmbroker.perf.devices.fio import Fio
from shmbroker.perf.devices.model import BadModel, Hdd, ModelHdd, judge
from shmbroker.perf.devices.results import FILE, Unusable, load
from shmbroker.perf.report import Row

ROOT = Path(__file__).parents[2]
SLOW = Hdd(bytes_per_s=20e6, seek_ms=20, rotation_ms=30)
needs_fuse = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse is not there, or not for us"
)


@pytest.fixture(autouse=True)
def compiled_once(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.getbasetemp() / "hddfs-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture
def quiet() -> Iterator[Console]:
    with open(os.devnull, "w") as nowhere:
        yield Console(file=nowhere, width=200)


def took_ms(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def mounted_below(directory: Path) -> bool:
    return str(directory) in Path("/proc/self/mounts").read_text()


@needs_fuse
@pytest.mark.parametrize("flag", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_the_model_charges_bytes_seeks_and_rotations(tmp_path: Path, flag: int) -> None:
    with ModelHdd(tmp_path, SLOW) as disk, mmap.mmap(-1, 4 << 20) as block:
        path = disk.directory / "f"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | flag)

        def put(at: int, size: int = 4096, how: int = 0) -> float:
            with memoryview(block)[:size] as bytes_:
                return took_ms(lambda: os.pwritev(fd, [bytes_], at, how))

        try:
            os.posix_fallocate(fd, 0, 16 << 20)
            assert put(0) >= 20  # a new place
            assert min(put(4096 * n) for n in range(1, 20)) < 20  # goes on
            assert put(8 << 20) >= 20
            assert put((8 << 20) + 4096, 2 << 20) >= 100  # two pieces of 1 MiB: no seek between
            assert put(4096 * 40, how=os.RWF_DSYNC) >= 50
            assert put(4096 * 41, 4 << 20, os.RWF_DSYNC) >= 30 + 200
            assert min(took_ms(lambda: os.fsync(fd)) for _ in range(5)) < 30  # nothing to do
            put(0)
            assert took_ms(lambda: os.fsync(fd)) >= 30
            folder = os.open(disk.directory, os.O_RDONLY)
            os.rename(path, disk.directory / "g")
            assert took_ms(lambda: os.fsync(folder)) >= 50
            os.close(folder)
        finally:
            os.close(fd)
    assert not mounted_below(tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_fuse
def test_one_durable_write_pays_one_rotation_however_large(tmp_path: Path) -> None:
    hdd = Hdd(bytes_per_s=1e12, seek_ms=0, rotation_ms=200)
    with ModelHdd(tmp_path, hdd) as disk, mmap.mmap(-1, 8 << 20) as block:
        fd = os.open(disk.directory / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        os.posix_fallocate(fd, 0, 8 << 20)
        took = [took_ms(lambda: os.pwritev(fd, [block], 0, os.RWF_DSYNC)) for _ in range(3)]
        os.close(fd)
    assert 200 <= min(took) < 8 * 200  # it came in eight pieces


@needs_fuse
def test_the_model_is_a_file_system_that_a_broker_can_use(tmp_path: Path) -> None:
    with ModelHdd(tmp_path, Hdd(1e12, 0, 0)) as disk:
        one, two = disk.directory / "one", disk.directory / "two"
        one.write_bytes(b"x" * 5000)
        fd = os.open(one, os.O_RDWR)
        inode = os.fstat(fd).st_ino
        os.rename(one, two)
        assert os.stat(two).st_ino == os.fstat(fd).st_ino == inode
        fcntl.flock(fd, fcntl.LOCK_EX)
        with open(two, "rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with mmap.mmap(fd, 5000) as view:  # as SQLite maps its index
            view[0:1] = b"y"
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert os.sendfile(ours.fileno(), fd, 0, 5000) == 5000
            assert theirs.recv(5000, socket.MSG_WAITALL) == b"y" + b"x" * 4999
        os.link(two, one)
        assert os.fstat(fd).st_nlink == 2
        one.unlink()
        two.unlink()
        assert list(disk.directory.iterdir()) == []
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 2, 0) == b"yx"
        os.close(fd)
        (disk.directory / "a").mkdir()
        many = {f"{n:04}" for n in range(1000)}
        for name in many:
            (disk.directory / "a" / name).touch()
        assert set(os.listdir(disk.directory / "a")) == many


def test_a_model_in_which_sequential_is_not_50_times_random_is_refused() -> None:
    judge(50.0, 1.0)
    for sequential, random in ((49.9, 1.0), (0.0, 1.0), (1.0, 0.0)):
        with pytest.raises(BadModel, match="modelled HDD is refused"):
            judge(sequential, random)


@needs_fuse
def test_a_run_on_a_model_without_seeks_ends_after_its_fio_rows(
    tmp_path: Path, quiet: Console, isolated_env: dict[str, str]
) -> None:
    disk = run.Device("HDD", tmp_path / "d", Hdd(seek_ms=0.0))
    with pytest.raises(BadModel, match="must be 50"):
        run.run(run.Options((disk,), effort.SMOKE, tmp_path / "out"), quiet)
    assert list((tmp_path / "d").iterdir()) == []
    assert not (tmp_path / "out" / FILE).exists()  # the raw limits are measured anew next time


@needs_fuse
@pytest.mark.leaves_processes
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_run_that_is_ended_unmounts_its_model(
    tmp_path: Path, isolated_env: dict[str, str], number: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-m", "shmbroker.cli.main", "perf", "--quick", "--model-hdd"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "ssd")],
        cwd=ROOT,
        env=isolated_env,
        stderr=subprocess.PIPE,
        text=True,
    )
    place = run.Device("SSD", tmp_path / "ssd")
    assert process.stderr is not None
    with process.stderr:
        try:
            assert any("sequential read" in line for line in process.stderr)
        finally:
            process.send_signal(number)
        process.stderr.read()
    assert process.wait(40) == code
    eventually(lambda: not mounted_below(tmp_path), lambda: "still mounted")
    with run.home_on(place) as home:
        left = {path.name for path in (tmp_path / "ssd").iterdir()}
        assert left <= {home.name, FILE}


@needs_fuse
@pytest.mark.leaves_processes
def test_a_model_goes_with_its_user_and_with_its_own_process(tmp_path: Path) -> None:
    """Killed: the user, and the program behind the mount."""
    program = (
        "import sys, pathlib; from shmbroker.perf.devices.model import ModelHdd\n"
        "model = ModelHdd(pathlib.Path(sys.argv[1])); model.open()\n"
        "print(model._process.pid, flush=True); sys.stdin.read()"
    )
    for who in ("user", "program"):
        place = tmp_path / who
        place.mkdir()
        user = subprocess.Popen(
            [sys.executable, "-c", program, str(place)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert user.stdin is not None
        assert user.stdout is not None
        with user.stdin, user.stdout:
            pid = int(user.stdout.readline())
            assert mounted_below(place)
            os.kill(user.pid if who == "user" else pid, signal.SIGKILL)
            eventually(lambda place=place: not mounted_below(place), lambda: "still mounted")
        user.wait(40)


@needs_fuse
def test_a_run_ends_with_rows_results_pictures_and_a_page(
    tmp_path: Path, isolated_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effort, "QUICK", effort.SMOKE)
    of_broker = {case.name: case for case in workloads.cases(effort.SMOKE)}
    raw = run.all_cases(effort.SMOKE)[0]
    chosen = (raw, of_broker["produce-100"])
    monkeypatch.setattr(workloads, "ACKS", ("memory", "durable"))
    monkeypatch.setattr(workloads, "PARTITIONS", (4,))
    # Slow enough that the model keeps its ratio while other tests have the cores.
    monkeypatch.setattr(model, "Hdd", functools.partial(Hdd, seek_ms=16.0))
    monkeypatch.setattr(run, "all_cases", lambda _effort: chosen)
    command = ["perf", "--ssd", str(tmp_path / "ssd"), "--model-hdd", "--quick"]
    out = tmp_path / "out"
    done = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert done.exit_code == 0, done.output
    results = load(out / FILE)
    assert results.finished_s
    ssd, hdd = results.devices
    assert (ssd.title, hdd.title) == ("SSD", "HDD (modelled)")
    for device in results.devices:
        assert {row.case for row in device.rows()} >= {
            "fio-random-write-4k-sync", "produce-100-memory-4", "produce-100-durable-4",
        }  # fmt: skip
        assert all(row.values and min(row.values) > 0 for row in device.rows())
        durable = device.row("produce-100-durable-4")
        assert durable is not None
        assert durable.ratio
    assert hdd.about["file_system"] == "fuse.hddfs"
    text = (out / page.PAGE).read_text()
    assert "HDD (modelled)" in text
    assert text.count("data:image/png;base64,") == len(list(out.glob("*.png"))) >= 3
    assert list((tmp_path / "ssd").iterdir()) == []
    again = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert again.exit_code == 1
    assert "--anew" in again.output


def test_extents_settings_and_catch_up_are_measured_at_the_smallest_size(
    tmp_path: Path, quiet: Console, isolated_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "_SETTINGS", ())
    names = ("extents", "settings", "catch-up")
    cases = tuple(c for c in workloads.cases(effort.SMOKE) if c.name in names)
    disk = run.Device("SSD", tmp_path / "d")
    options = run.Options((disk,), effort.SMOKE, tmp_path / "out", cases=cases)
    (found,) = run.run(options, quiet).devices
    assert [row.case for row in found.rows()] == [
        "extents-direct-recycled", "extents-direct-fresh", "extents-buffered-fresh",
        "settings-hdd", "settings-ssd", "hot-1024", "hot-records-1024", "cold-1024",
        "cold-records-1024",
    ]  # fmt: skip
    assert all(row.values for row in found.rows()), [row.note for row in found.rows()]


def test_more_producers_consumers_codecs_partitions_and_data_have_their_rows(
    tmp_path: Path, quiet: Console, isolated_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "CODECS", ("none", "zstd"))
    names = ("producers", "latency", "fan-out", "mixed", "compression", "growth-partitions",
             "growth-data")  # fmt: skip
    cases = tuple(c for c in workloads.cases(effort.SMOKE) if c.name in names)
    assert len(cases) == len(names)
    disk = run.Device("SSD", tmp_path / "d")
    options = run.Options((disk,), effort.SMOKE, tmp_path / "out", cases=cases)
    results = run.run(options, quiet)
    (found,) = results.devices
    rows = {row.case: row for row in found.rows()}
    assert list(rows) == [
        "producers-2-memory", "producers-2-durable", "latency-500-durable", "latency-500-memory",
        "fan-out-2", "mixed-tail-alone", "mixed-tail", "mixed-catch-up", "compression-none",
        "compression-zstd", "growth-partitions-2", "growth-latency-partitions-2",
        "growth-data-0.008", "growth-read-0.008", "growth-latency-data-0.008",
    ]  # fmt: skip
    assert all(row.values for row in rows.values()), [row.note for row in rows.values()]
    size = "bytes of log a byte of values"
    assert rows["compression-zstd"].more[size] < 0.8 * rows["compression-none"].more[size]
    assert rows["fan-out-2"].more[figures.BUSY] == 4
    assert "4 busy on" in page.write(results, tmp_path / "out").read_text()


def test_direct_io_false_goes_through_the_page_cache(
    tmp_path: Path, isolated_env: dict[str, str]
) -> None:
    home = tmp_path / "home-of-it"
    home.mkdir()
    config = "[broker]\ndirect_io = false\n"
    with (
        private_places(home),
        Broker(home, config) as broker,
        broker.connect() as client,
        client.producer() as producer,
    ):
        client.create_topic("t")
        producer.send("t", b"x").result(40)
        assert {each["io_mode"] for each in client.status()["partitions"]} == {"buffered"}


def _row(case: str) -> Row:
    return Row(case, case, "bytes/s", (1.0,))


def test_an_interrupted_run_goes_on_where_it_ended(
    tmp_path: Path, quiet: Console, isolated_env: dict[str, str]
) -> None:
    ran: list[str] = []
    patience = {"second": 1}

    def case(name: str) -> Case:
        def work(_bench: Bench) -> list[Row]:
            ran.append(name)
            if patience.pop(name, 0):
                raise KeyboardInterrupt
            return [_row(name)]

        return Case(name, name, work, lambda _sizes: 0)

    cases = tuple(case(name) for name in ("first", "second", "third"))
    options = run.Options((run.Device("X", tmp_path / "d"),), effort.SMOKE, tmp_path / "out",
                          cases=cases)  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        run.run(options, quiet)
    assert list((tmp_path / "d").iterdir()) == []
    assert load(tmp_path / "out" / FILE).finished_s is None
    with pytest.raises(Unusable, match="unfinished run of other devices"):
        run.run(dataclasses.replace(options, effort=effort.QUICK), quiet)
    results = run.run(options, quiet)
    assert ran == ["first", "second", "second", "third"]
    assert results.sessions == 2
    assert [row.case for row in results.devices[0].rows()] == ["first", "second", "third"]
    with pytest.raises(Unusable, match="--anew"):
        run.run(options, quiet)
    assert run.run(dataclasses.replace(options, anew=True), quiet).sessions == 1


def test_a_case_without_a_result_is_tried_again_by_a_run_that_goes_on(
    tmp_path: Path, quiet: Console, isolated_env: dict[str, str]
) -> None:
    faults = [KeyboardInterrupt(), RuntimeError("no luck")]

    def unlucky(_bench: Bench) -> list[Row]:
        if faults:
            raise faults.pop()
        return [_row("a")]

    def then(_bench: Bench) -> list[Row]:
        if faults:
            raise faults.pop()
        return [_row("b")]

    cases = tuple(Case(n, n, f, lambda _sizes: 0) for n, f in (("a", unlucky), ("b", then)))
    options = run.Options((run.Device("X", tmp_path / "d"),), effort.SMOKE, tmp_path / "out",
                          cases=cases)  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        run.run(options, quiet)
    assert "no luck" in load(tmp_path / "out" / FILE).devices[0].rows()[0].note
    found = run.run(options, quiet).devices[0]
    assert all(row.values for row in found.rows())


def test_a_run_that_is_short_of_space_is_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = dataclasses.replace(effort.QUICK, fio=Fio(0.1, 1, 1 << 60))
    monkeypatch.setattr(effort, "QUICK", huge)
    done = CliRunner().invoke(
        app, ["perf", "--ssd", str(tmp_path / "d"), "--quick", "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 1
    assert "are free" in done.output
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a device"),
        (["--device", "nvme"], "NAME=DIR"),
        (["--device", "SSD=/a", "--ssd", "/b"], "same name"),
        (["--ssd", "/a", "--quick", "--full"], "not both"),
    ],
)
def test_wrong_options_are_named(words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["perf", *words])
    assert done.exit_code == 2
    assert said in done.output


def test_full_says_the_time_and_the_space_that_it_needs() -> None:
    options = run.Options((run.Device("a", Path("/a")), run.Device("b", Path("/b"))), effort.FULL,
                          Path("/out"))  # fmt: skip
    seconds, space = run.needs(options)
    assert seconds > 600
    assert set(space) == {Path("/a"), Path("/b")}
    assert min(space.values()) > effort.FULL.margin_bytes
    quick, _ = run.needs(dataclasses.replace(options, effort=effort.QUICK))
    assert quick < 2 * 180 * 1.2
