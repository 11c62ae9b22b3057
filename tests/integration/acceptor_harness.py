"""Brokers with the fake writer, and a bare peer that speaks the attach and control protocols."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import zmq
from waiting import LIMIT_S, eventually

from shmbroker.config import Places, load
from shmbroker.workers import detached

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent


class Peer:
    """An attached client without a ring."""

    def __init__(self, places: Places, **claim: Any) -> None:
        self.places = places
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect(places.socket_path("attach"))
        self.socket.send(orjson.dumps({"v": 1, "op": "attach", "pid": 1, "name": "peer", **claim}))
        answer = orjson.loads(self.socket.recv(1 << 16))
        self.ok: dict[str, Any] = answer.get("ok", {})
        self.error: dict[str, Any] = answer.get("error", {})
        self._context = zmq.Context()
        self._control = self._context.socket(zmq.DEALER)
        self._control.linger = 0
        self._control.connect(places.zmq_address("control"))
        self._ids = itertools.count(1)

    def send(self, op: str, **args: Any) -> int:
        """Asks and does not wait."""
        number = next(self._ids)
        who = {"client": self.ok["client"], "token": self.ok["token"]}
        self._control.send(orjson.dumps({"v": 1, "id": number, "op": op, **who, **args}))
        return number

    def receive(self, number: int) -> dict[str, Any]:
        """The answer to that request."""
        while self._control.poll(LIMIT_S * 1000):
            answer: dict[str, Any] = orjson.loads(self._control.recv())
            if answer.get("id") == number:
                return answer
        raise TimeoutError(f"no answer to request {number}")

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        """The good answer; AssertionError for an error."""
        answer = self.receive(self.send(op, **args))
        assert "ok" in answer, answer
        ok: dict[str, Any] = answer["ok"]
        return ok

    def refused(self, op: str, **args: Any) -> dict[str, Any]:
        """The error."""
        error: dict[str, Any] = self.receive(self.send(op, **args))["error"]
        return error

    def raw(self, message: bytes) -> dict[str, Any]:
        """The answer to these very bytes."""
        self._control.send(message)
        assert self._control.poll(LIMIT_S * 1000)
        answer: dict[str, Any] = orjson.loads(self._control.recv())
        return answer

    def pid_of(self, name: str) -> int:
        """Of a process of the broker."""
        pids = {p["name"]: p["pid"] for p in self.ask("status")["processes"]}
        pid: int = pids[name]
        return pid

    def close(self) -> None:
        """Hangs up."""
        self.socket.close()
        self._control.close(linger=0)
        self._context.term()


class Broker:
    """One broker in the background, with what the fake writers noted."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.pid = 0

    def up(self, **flags: Any) -> None:
        """Starts it; raises why not. `flags` are keys of `[listen]`."""
        given = {f"listen.{key}": value for key, value in flags.items()}
        self.pid = detached.start(
            self.places,
            load(self.places.config_file, flags=given),
            writer_module="fake_writer",
            front_module="fake_front",
            flags=given,
        )

    def peer(self, **claim: Any) -> Peer:
        """An attached client."""
        return Peer(self.places, **claim)

    def kill(self) -> None:
        """SIGKILL to the acceptor; returns when all of it and of its children is gone."""
        peer = self.peer()
        pids = [p["pid"] for p in peer.ask("status")["processes"]]
        peer.close()
        eventually(lambda: peer.ok["client"] not in self.clients(), "the hang-up is not heard")
        pidfds = [os.pidfd_open(pid) for pid in pids if pid]
        os.kill(self.pid, signal.SIGKILL)
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], LIMIT_S)[0], "a child outlived the acceptor"
            os.close(pidfd)
        os.waitpid(self.pid, 0)
        self.pid = 0

    def down(self, signum: int = signal.SIGTERM) -> int:
        """Stops it by a signal; returns the exit code."""
        os.kill(self.pid, signum)
        return self.wait()

    def wait(self) -> int:
        """The exit code, once it is gone."""
        pidfd = os.pidfd_open(self.pid)
        gone = select.select([pidfd], [], [], LIMIT_S)[0]
        os.close(pidfd)
        assert gone, "the broker did not end"
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def noted(self) -> list[dict[str, Any]]:
        """Every request that a fake writer got."""
        path = self.places.data_dir / "fake.log"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def clients(self) -> list[int]:
        """Whom it would know again after a kill."""
        content = json.loads((self.places.runtime_dir / "clients.json").read_text())
        return [entry["client"] for entry in content["clients"]]

    def objects(self) -> set[str]:
        """What is in shared memory of this data directory, by suffix."""
        identity = json.loads((self.places.data_dir / "datadir.json").read_text())
        from shmbroker.config import shm_prefix

        prefix = shm_prefix(identity["data_dir_id"]).removeprefix("/") + "-"
        found = Path("/dev/shm").glob(prefix + "*")
        return {path.name.removeprefix(prefix) for path in found}

    def log(self) -> str:
        """What the broker logged."""
        return (self.places.runtime_dir / detached.LOG_FILE).read_text()


@contextlib.contextmanager
def broker_at(places: Places) -> Iterator[Broker]:
    """A broker to be started, and gone afterwards with all it left."""
    broker = Broker(places)
    try:
        yield broker
    finally:
        if broker.pid:
            with contextlib.suppress(ProcessLookupError):
                broker.kill() if not _stop(broker) else None
        from shmbroker._core import shm

        for suffix in broker.objects() if (places.data_dir / "datadir.json").exists() else ():
            identity = json.loads((places.data_dir / "datadir.json").read_text())
            from shmbroker.config import shm_prefix

            shm.unlink(f"{shm_prefix(identity['data_dir_id'])}-{suffix}")


def _stop(broker: Broker) -> bool:
    try:
        broker.down()
    except AssertionError:
        return False
    return True


def run_cli(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line, as a person would call it."""
    return subprocess.run(
        [sys.executable, "-m", "shmbroker.cli.main", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )
