"""A broker of the test's own: real processes, own instance, own directories, gone afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from slow_disk import SlowDisk

from shmbroker.client.client import Client, connect
from shmbroker.places import Places

_READY_S = 40.0
_STOP_S = 40.0
_LISTEN = {"SHMBROKER_LISTEN_ADDRESS": "tcp://127.0.0.1:0", "SHMBROKER_LISTEN_UNIX": "true"}


class Broker:
    """`shmbroker up` in a session of its own, which `stop` and `kill9` end whole."""

    def __init__(self, env: dict[str, str], root: Path, config: str, reach: str = "local") -> None:
        self.reach = reach  # how `client` gets there
        self.instance = f"test-{uuid.uuid4().hex[:8]}"
        self.env = env | {"SHMBROKER_INSTANCE": self.instance}
        self.places = Places.find(self.instance, env=self.env)
        self.config = root / "broker.toml"
        self.config.write_text(config)
        self.output = ""  # of all its lives
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """Of the acceptor."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the acceptor runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when it says that it is up."""
        command = [sys.executable, "-m", "shmbroker.cli.main", "up", "--config", str(self.config)]
        self._process = subprocess.Popen(
            command,
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(self._process, ready), daemon=True)
        self._reader.start()
        if not ready.wait(_READY_S) or not self.running:
            self.kill9()
            pytest.fail(f"the broker did not come up:\n{self.output}", pytrace=False)

    def _read(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.output += line
            if " is up" in line:
                ready.set()
        ready.set()  # it ended
        process.stderr.close()

    def processes(self) -> list[psutil.Process]:
        """Everything of its session that still lives."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.pid and process.status() != "zombie":
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    def workers(self, role: str = "writer") -> list[psutil.Process]:
        """Its processes whose title names that role."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):  # it ends while we look
                if re.search(rf"\b{role}\b", " ".join(process.cmdline())):
                    found.append(process)
        return found

    def kill9(self, everything: bool = False) -> None:
        """kill -9 of the acceptor (or of all at once); returns when the last process is gone."""
        assert self._process is not None
        left = self.processes()
        for process in left if everything else [psutil.Process(self.pid)] if self.running else []:
            with contextlib.suppress(psutil.NoSuchProcess):  # it went with the acceptor
                process.send_signal(signal.SIGKILL)
        self._wait(left)

    def stop(self) -> None:
        """SIGTERM; returns when the last process is gone, and fails unless it ended well."""
        assert self._process is not None
        left = self.processes()
        self._process.send_signal(signal.SIGTERM)
        self._wait(left)
        assert self._process.returncode == 0, self.output

    def restart(self) -> None:
        """`up` again, after stop() or kill9()."""
        if self.running:
            self.stop()
        self.start()

    @property
    def address(self) -> str:
        """Where it listens for those whose `reach` is "tcp" or "ipc"."""
        told = json.loads((self.places.runtime_dir / "broker.json").read_text())
        ends: list[str] = told["listen"]["control"]
        return next(end for end in ends if end.startswith(self.reach))

    def client(self, **options: Any) -> Client:
        """A client of it in this process, by `reach`."""
        if self.reach != "local":
            return connect(self.address, local=False, **options)
        return connect(self.instance, **({"timeout": 20.0} | options))

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command line against it."""
        command = [sys.executable, "-m", "shmbroker.cli.main", *words]
        options = {"capture_output": True, "text": True, "timeout": 60, "check": False} | options
        done: subprocess.CompletedProcess[str] = subprocess.run(command, env=self.env, **options)
        return done

    def finish(self) -> None:
        """Stops it, also after a kill, and looks that nothing is left."""
        if self._process is None:
            return
        if not self.running:
            self.start()  # what a dead broker leaves is the next one's to adopt, and to clear away
        self.stop()
        left = [p.name() for p in self.processes()]
        if self.places.runtime_dir.exists():
            left += [str(p) for p in self.places.runtime_dir.rglob("*") if p.suffix != ".log"]
        assert not left, f"left behind: {left}\n{self.output}"

    def _wait(self, left: list[psutil.Process]) -> None:
        assert self._process is not None
        assert self._reader is not None
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            for process in left:
                process.kill()
            self._process.wait()
            pytest.fail(f"the broker did not stop:\n{self.output}", pytrace=False)
        psutil.wait_procs([p for p in left if p.pid != self.pid], _STOP_S)
        self._reader.join()


@pytest.fixture
def broker_config() -> str:
    """The TOML that `broker` runs with; override it in a module or class."""
    return ""


@pytest.fixture
def reach() -> str:
    """How `broker.client()` gets there: "local"; "ipc" or "tcp" for a remote connection."""
    return "local"


@pytest.fixture
def broker_of() -> type[Broker]:
    """For a test that starts it itself: `finish` ends it."""
    return Broker


@pytest.fixture
def broker(
    isolated_env: dict[str, str], tmp_path: Path, broker_config: str, reach: str
) -> Iterator[Broker]:
    """A running broker; `SHMBROKER_INSTANCE` is not set in this process, so name its instance."""
    listens = {} if reach == "local" else _LISTEN
    made = Broker(isolated_env | listens, tmp_path, broker_config, reach)
    made.start()
    try:
        yield made
    finally:
        made.finish()


@pytest.fixture
def disk(tmp_path: Path) -> SlowDisk:
    """The disk of `slow_broker`."""
    return SlowDisk(tmp_path)


@pytest.fixture
def slow_broker(
    disk: SlowDisk, isolated_env: dict[str, str], tmp_path: Path, broker_config: str
) -> Iterator[Broker]:
    """As `broker`, on a disk that the test can make slow."""
    made = Broker(isolated_env | disk.env, tmp_path, broker_config)
    made.start()
    try:
        yield made
    finally:
        disk.fast()
        made.finish()
