"""Embedded brokers: private, reached by other processes, and gone without a trace, however."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from processes import living
from waiting import eventually

import shmbroker
from shmbroker import errors
from shmbroker.control import scratch
from shmbroker.places import Places, shm_prefix

pytest_plugins = ["pytester"]

PROGRAM = """
import json, os, sys, time
import shmbroker
with shmbroker.embedded(["t"], **json.loads(sys.argv[1])) as client:
    with client.producer() as producer:
        producer.send_and_wait("t", b"x" * 1000)
    pids = [p["pid"] for p in client.status()["processes"]]
    prefix = client.connection.attachment.prefix
    print(json.dumps({"address": client.address, "pids": pids, "prefix": prefix}), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def tmp(isolated_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory of the test's own, also for the programs it starts."""
    made = tmp_path / "tmp"
    made.mkdir()
    monkeypatch.setenv("TMPDIR", str(made))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return made


def traces(tmp: Path, prefix: str) -> list[Path]:
    """What is left of embedded brokers."""
    return [*tmp.iterdir(), *Path("/dev/shm").glob(f"{prefix.removeprefix('/')}-*")]


@contextlib.contextmanager
def program(**options: object) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, object]]]:
    """A program with a broker of its own."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(40)


def test_a_private_broker_is_there_for_a_block_and_gone_after_it(tmp: Path) -> None:
    with shmbroker.embedded({"a": 1, "b": 3}) as client:
        prefix = client.connection.attachment.prefix
        assert [len(client.describe_topic(t).partitions) for t in ("a", "b")] == [1, 3]
        with client.producer() as producer:
            assert producer.send_and_wait("b", b"value").offset == 0
        pids = [p["pid"] for p in client.status()["processes"]]
        assert not any(p["pinned"] for p in client.status()["processes"] if p["role"] == "writer")
        assert Path(client.address).is_relative_to(tmp)
    assert traces(tmp, prefix) == []
    assert not living(pids)
    with shmbroker.embedded() as other:
        assert other.topics() == [], "another broker"


def test_other_processes_reach_it_by_its_address(tmp: Path) -> None:
    with program() as (_, said), shmbroker.connect(str(said["address"])) as client:
        assert client.topics() == ["t"]
        assert client.address == said["address"]
        command = [sys.executable, "-m", "shmbroker.cli.main", "topic", "list"]
        listed = subprocess.run(
            [*command, "--instance", client.address], capture_output=True, text=True, check=True
        )
        assert listed.stdout == "t\t1 partition\n"
    with pytest.raises(errors.NoBroker, match=str(said["address"])):
        shmbroker.connect(str(said["address"]), timeout=0.2)


def test_nothing_stays_of_a_program_that_was_killed(tmp: Path) -> None:
    with program() as (process, said):
        process.kill()
    eventually(lambda: not traces(tmp, str(said["prefix"])))
    for pid in said["pids"]:  # type: ignore[attr-defined]
        eventually(lambda pid=pid: not living([pid]))


def test_what_stays_when_everything_is_killed_at_once_goes_with_the_next_broker(tmp: Path) -> None:
    with program() as (process, said):
        acceptor = said["pids"][0]  # type: ignore[index]
        os.kill(process.pid, signal.SIGSTOP)
        os.kill(acceptor, signal.SIGSTOP)  # so that neither sees the other die
        os.kill(acceptor, signal.SIGKILL)
        os.kill(process.pid, signal.SIGKILL)
    for pid in said["pids"]:  # type: ignore[attr-defined]
        eventually(lambda pid=pid: not living([pid]))
    assert len(traces(tmp, str(said["prefix"]))) > 3
    with program() as (_, second):
        assert not Path(str(said["address"])).exists()
        assert len(list(tmp.iterdir())) == 1, "the other one's is not touched"
        assert scratch.sweep() == []
    assert traces(tmp, str(said["prefix"])) == traces(tmp, str(second["prefix"])) == []


def test_an_ordinary_up_sweeps_as_well(tmp: Path) -> None:
    home, lock = scratch.make()
    assert scratch.sweep() == [], "somebody holds it"
    os.close(lock)
    command = [sys.executable, "-m", "shmbroker.cli.main"]
    subprocess.run([*command, "up", "--detach"], check=True, capture_output=True)
    assert not home.exists()
    subprocess.run([*command, "down"], check=True, capture_output=True)


def test_data_that_is_kept_outlives_the_block_and_the_killed_program(
    tmp: Path, tmp_path: Path
) -> None:
    data = tmp_path / "kept"
    with program(data_dir=str(data)) as (process, said):
        process.kill()
    eventually(lambda: not traces(tmp, str(said["prefix"])))
    with shmbroker.embedded(data_dir=data) as client:
        with client.consumer("t", start="earliest") as consumer:
            assert next(iter(consumer)).value == b"x" * 1000
        prefix = client.connection.attachment.prefix
    assert (data / "datadir.json").exists()
    assert shm_prefix(json.loads((data / "datadir.json").read_text())["data_dir_id"]) == prefix
    assert traces(tmp, prefix) == []


def test_a_killed_broker_leaves_nothing_after_the_block_either(tmp: Path) -> None:
    with shmbroker.embedded(["t"]) as client:
        attached = client.connection.attachment
        with client.producer() as producer:
            producer.send_and_wait("t", b"v")
        os.kill(attached.broker_pid, signal.SIGKILL)
    assert traces(tmp, attached.prefix) == []


def test_the_environment_s_data_directory_has_no_say_in_an_address(
    tmp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMBROKER_DATA_DIR", str(tmp_path / "elsewhere"))
    with shmbroker.embedded(data_dir=tmp_path / "kept") as client:
        shmbroker.connect(client.address).close()


def test_an_embedded_broker_is_the_same_in_every_environment(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMBROKER_LOG_SEGMENT_BYTES", "1MiB")
    monkeypatch.setenv("SHMBROKER_BROKER_EXPLODE", "1")
    monkeypatch.setenv("SHMBROKER_INSTANCE", "other")
    monkeypatch.setenv("SHMBROKER_CONFIG", "/nonexistent")
    with shmbroker.embedded(["t"], config={"log.retention.ms": "1h"}) as client:
        config = client.describe_topic("t").config
        assert (config["segment.bytes"], config["retention.ms"]) == (256 << 20, 3_600_000)
    with (
        pytest.raises(errors.ConfigError, match=r"retention\.mss"),
        shmbroker.embedded(config={"log.retention.mss": 1}),
    ):
        pytest.fail("it started")
    assert list(tmp.iterdir()) == []


def test_an_exception_in_the_block_leaves_nothing_either(tmp: Path) -> None:
    with pytest.raises(ZeroDivisionError), shmbroker.embedded() as client:
        prefix = client.connection.attachment.prefix
        raise ZeroDivisionError
    assert traces(tmp, prefix) == []


def test_its_module_may_be_imported_and_called(tmp: Path) -> None:
    script = "import shmbroker.embedded; print(callable(shmbroker.embedded))"
    script += "; from shmbroker import embedded; print(callable(embedded))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b"True\nTrue\n"


def test_an_address_is_no_place_for_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMBROKER_DATA_DIR", "/elsewhere")
    found = Places.find("/some/where/run")
    assert (found.instance, found.data_dir) == ("/some/where/run", Path("/some/where/data"))
    assert found.runtime_dir == Path("/some/where/run")


def test_a_killed_demo_leaves_no_broker(tmp: Path) -> None:
    command = [sys.executable, "-u", "-m", "shmbroker.cli.main", "demo", "--seconds", "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    pid = int(line.partition("(pid ")[2].partition(",")[0])
    assert living([pid])
    process.kill()
    process.wait()
    process.stdout.close()
    eventually(lambda: not living([pid]))
    eventually(lambda: not list(tmp.iterdir()))


# --- the pytest plugin ---


def run(pytester: pytest.Pytester, *words: str) -> pytest.RunResult:
    """pytest in a process of its own, with the plugin as the package brings it."""
    installed = [e for e in entry_points(group="pytest11") if e.name == "shmbroker"]
    loaded = () if installed else ("-p", "shmbroker.pytest_plugin")
    return pytester.runpytest_subprocess(*loaded, "-p", "no:cacheprovider", *words)


def test_the_package_brings_the_plugin() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'entry-points.pytest11]\nshmbroker = "shmbroker.pytest_plugin"' in project


def test_each_test_gets_a_client_and_a_clean_broker(pytester: pytest.Pytester, tmp: Path) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("n", range(3))
        def test_it(shmbroker_client, shmbroker_broker, n):
            assert shmbroker_client.topics() == []
            shmbroker_client.create_topic("t")
            with shmbroker_client.producer() as producer:
                assert producer.send_and_wait("t", b"v").offset == 0
            assert shmbroker_client.address == shmbroker_broker.address
        """
    )
    run(pytester, "-W", "error").assert_outcomes(passed=3)
    assert not [path for path in tmp.iterdir() if path.name.startswith("shmbroker")]


def test_who_does_not_use_the_plugin_does_not_load_the_client(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_it():
            loaded = [name for name in sys.modules if name.startswith("shmbroker.")]
            assert set(loaded) <= {"shmbroker.errors", "shmbroker.pytest_plugin"}
            assert not {"zmq", "orjson"} & set(sys.modules)
        """
    )
    run(pytester).assert_outcomes(passed=1)
