"""A broker of the bench's own: started, asked, stopped or killed by its pids.

Runs `shmbroker up` as a user does, with data, sockets and configuration below the bench's
directory (`private_places` sets the XDG variables that its clients inherit). Nothing of it is left
after `close`: processes, files, shared memory. If the bench is killed, the broker goes down.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil

import shmbroker
from shmbroker.perf.devices.needs import require
from shmbroker.places import Places, shm_prefix

_READY_S: Final = 120.0
_DOWN_S: Final = 60.0
_numbers = itertools.count(1)


def dying_with_us(signal_name: str) -> list[str]:
    """What stands before a command, so that the kernel sends it that signal when the thread that
    started it dies, killed or not: the main thread, then. Its pid is the command's own."""
    return [require("setpriv", "util-linux"), "--pdeathsig", signal_name]


@contextlib.contextmanager
def private_places(home: Path) -> Iterator[None]:
    """XDG directories below `home`, for this process and those it starts."""
    wanted = {f"XDG_{kind}": str(home / kind.lower()) for kind in
              ("DATA_HOME", "RUNTIME_DIR", "CONFIG_HOME")}  # fmt: skip
    gone = [name for name in os.environ if name.startswith("SHMBROKER_")]
    # Without bytecode caches every start would compile everything anew, which no user's does.
    gone += [name for name in ("PYTHONDONTWRITEBYTECODE",) if name in os.environ]
    before = {name: os.environ.get(name) for name in [*wanted, *gone]}
    for path in wanted.values():
        Path(path).mkdir(mode=0o700)
    for name in gone:
        del os.environ[name]
    os.environ |= wanted
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class Broker:
    """One instance with one data directory; `up` and `down` as often as wanted."""

    def __init__(self, home: Path, config: str = "") -> None:
        self.instance = f"bench-{os.getpid()}-{next(_numbers)}"
        self.data_dir = home / self.instance
        self._config = home / f"{self.instance}.toml" if config else None
        if self._config is not None:
            self._config.write_text(config, encoding="utf-8")
        self._process: subprocess.Popen[str] | None = None
        self._said: list[str] = []
        self._reader: threading.Thread | None = None

    def up(self) -> float:
        """Starts it; returns the seconds from the command to its word that it is up."""
        assert self._process is None
        command = dying_with_us("TERM")
        command += [sys.executable, "-m", "shmbroker.cli.main", "up"]
        command += ["--instance", self.instance, "--data-dir", str(self.data_dir)]
        if self._config is not None:
            command += ["--config", str(self._config)]
        began = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl+C is for the bench, which then stops the broker
        )
        self._said.clear()
        told: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._reader = threading.Thread(
            target=self._listen, args=(self._process, told), daemon=True
        )
        self._reader.start()
        with contextlib.suppress(queue.Empty):
            if (ready := told.get(timeout=_READY_S)) is not None:
                return ready - began
        self.kill()
        raise RuntimeError("the broker did not come up:\n" + "\n".join(self._said[-20:]))

    def _listen(
        self, process: subprocess.Popen[str], told: queue.SimpleQueue[float | None]
    ) -> None:
        """Tells when it is ready, then None when it says no more."""
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self._said.append(line.rstrip())
                if f"broker {self.instance!r} is up" in line:
                    told.put(time.perf_counter())
        told.put(None)

    def connect(self, timeout: float = 60.0) -> shmbroker.Client:
        """A client in this process."""
        return shmbroker.connect(self.instance, data_dir=self.data_dir, timeout=timeout)

    @property
    def address(self) -> tuple[str, str]:
        """What a client in another process needs: instance and data directory."""
        return self.instance, str(self.data_dir)

    @property
    def listening(self) -> tuple[str, str]:
        """The same for a client that is to come over the network, of a broker that listens."""
        return str(self.status()["listen"]["control"][0]), ""

    def status(self) -> dict[str, Any]:
        """What `status --json` prints."""
        with self.connect() as client:
            return client.status()

    def processes(self) -> list[psutil.Process]:
        """Everything that `up` started, itself first."""
        assert self._process is not None
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def segments(self, topic: str) -> list[Path]:
        """The segment files of a topic, oldest first within each partition."""
        return sorted(self.data_dir.glob(f"{topic}-*/*.log"))

    def down(self) -> float:
        """An orderly end, with the clean marker; returns its seconds."""
        process = self._process
        assert process is not None
        began = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(_DOWN_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the broker is not down after {_DOWN_S:g} s") from None
        took = time.perf_counter() - began
        self._forget()
        if code != 0:
            raise RuntimeError(f"the broker ended with {code}:\n" + "\n".join(self._said[-20:]))
        return took

    def signal_kill(self) -> list[psutil.Process]:
        """SIGKILL to every process of it, which are returned; waits for nothing. Any thread's."""
        found: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess, AssertionError):
            found = self.processes()
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return found

    def kill(self) -> None:
        """The same, and returns when all are gone. Twice is fine."""
        process = self._process
        if process is None:
            return
        found = self.signal_kill()
        process.wait()
        psutil.wait_procs(found, timeout=10)
        self._forget()

    def _forget(self) -> None:
        if self._reader is not None:
            self._reader.join(5)
        self._process = self._reader = None

    def drop_shared_memory(self) -> None:
        """Removes the rings, as the host's death does: the next `up` recovers from the disk."""
        for path in self._shared():
            path.unlink(missing_ok=True)

    def shared_bytes(self) -> int:
        """Of its shared memory that is really there, clients' rings with it."""
        total = 0
        for path in self._shared():
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_blocks * 512
        return total

    def _shared(self) -> list[Path]:
        identity = self.data_dir / "datadir.json"
        if not identity.exists():
            return []
        prefix = shm_prefix(json.loads(identity.read_text())["data_dir_id"]).lstrip("/")
        return list(Path("/dev/shm").glob(f"{prefix}-*"))

    def close(self) -> None:
        """Ends it and removes everything that was its."""
        self.kill()
        self.drop_shared_memory()
        shutil.rmtree(self.data_dir, ignore_errors=True)
        Places.find(self.instance, data_dir=self.data_dir).remove_runtime_dir()
        if self._config is not None:
            self._config.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


__all__ = ["Broker", "dying_with_us", "private_places"]
