"""What a service manager sees of a broker: readiness, its end, and a log that stays bounded."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from waiting import LIMIT_S, eventually

import shmbroker
from shmbroker.config import load
from shmbroker.places import Places
from shmbroker.workers import detached, logfile


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The socket of a service manager, and its name as NOTIFY_SOCKET has it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@shmb-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0"))
        sock.settimeout(LIMIT_S)
        yield sock, name


def heard(sock: socket.socket, word: str) -> dict[str, str]:
    """The first message with that word in it."""
    while True:
        lines = sock.recv(4096).decode().splitlines()
        found = dict(line.split("=", 1) for line in lines)
        if word in found:
            return found


def test_systemd_is_told_when_it_is_ready_and_when_it_stops(
    isolated_env: dict[str, str], manager: tuple[socket.socket, str]
) -> None:
    sock, name = manager
    process = subprocess.Popen(
        [sys.executable, "-m", "shmbroker.cli.main", "up"],
        env=isolated_env | {"NOTIFY_SOCKET": name},
        stderr=subprocess.DEVNULL,
    )
    ready = heard(sock, "READY")
    assert ready["READY"] == "1"
    assert int(ready["MAINPID"]) == process.pid
    assert isolated_env["XDG_DATA_HOME"] in ready["STATUS"]
    for child in psutil.Process(process.pid).children(recursive=True):
        assert "NOTIFY_SOCKET" not in child.environ(), "a worker speaks for nobody"
    shmbroker.connect().close()  # it is ready indeed
    process.send_signal(signal.SIGTERM)
    stopping = heard(sock, "STOPPING")
    assert stopping["STOPPING"] == "1"
    assert "SIGTERM" in stopping["STATUS"]
    assert process.wait(LIMIT_S) == 0


def test_a_manager_that_is_gone_harms_nobody(isolated_env: dict[str, str], tmp_path: Path) -> None:
    os.environ["NOTIFY_SOCKET"] = str(tmp_path / "nobody")
    try:
        where = Places.find("t")
        detached.start(where, load(None))
    finally:
        del os.environ["NOTIFY_SOCKET"]
    detached.stop(shmbroker.connect("t"))


def test_the_log_of_a_detached_broker_is_bounded_and_loses_no_line(
    isolated_env: dict[str, str],
) -> None:
    where = Places.find("t")
    loaded = load(None, {}, {"logging.max_bytes": "4KiB", "logging.keep": 2})
    flags = {"logging.max_bytes": "4KiB", "logging.keep": 2}
    detached.start(where, loaded, flags=flags)
    with shmbroker.connect("t") as client:
        client.create_topic("t")
        log = detached.log_path(where, loaded)
        for n in range(4):
            with open(log, "a") as file:  # as if a process of the broker wrote it
                file.write(f"line {n} {'x' * 5000}\n")
            eventually(lambda: not log.exists() or log.stat().st_size < 4096)
        pieces = sorted(path.name for path in log.parent.glob("broker.log*"))
        assert pieces == ["broker.log", "broker.log.1", "broker.log.2"]
        for n in (1, 2):
            assert f"line {4 - n} " in (log.parent / f"broker.log.{n}").read_text()
        pids = {p["name"]: p["pid"] for p in client.status()["processes"]}

        def leads_there(pid: int) -> bool:
            return all(os.readlink(f"/proc/{pid}/fd/{fd}") == str(log) for fd in (1, 2))

        eventually(lambda: leads_there(pids["acceptor"]) and leads_there(pids["writer-0"]))
        os.kill(pids["writer-0"], signal.SIGKILL)
        eventually(lambda: "worker died" in log.read_text())
        detached.stop(client)
    assert "line" not in log.read_text()
    os.close(logfile.begin(log, 2))
    assert log.read_text() == ""
    assert "worker died" in (log.parent / "broker.log.1").read_text(), "another up begins anew"


def test_pieces_beyond_those_to_keep_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "broker.log"
    for n in range(5):
        os.close(logfile.begin(path, 3))
        path.write_text(str(n))
    assert sorted(p.read_text() for p in tmp_path.iterdir()) == ["1", "2", "3", "4"]
    os.close(logfile.begin(path, 1))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "broker.log": "",
        "broker.log.1": "4",
    }
    os.close(logfile.begin(path, 0))
    assert [p.name for p in tmp_path.iterdir()] == ["broker.log"]
