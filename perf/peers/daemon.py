"""A server process of a peer: its output in a file, ready when it says so, ended by pid.

`Daemon` belongs to the process that made it. It leads a session of its own, so Ctrl+C is for the
measurement alone, which then stops it; the kernel kills it when the thread that started it dies, so
it is the main thread. What it started itself is ended with it.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from shmbroker.perf.broker import dying_with_us

_READY_S: Final = 90.0
_STOP_S: Final = 20.0
_LOOK_S: Final = 0.05


class NotUp(RuntimeError):
    """A server ended or was not ready in time; the text has the end of what it said."""


class Daemon:
    """`command`, up on entry when `ready` is true, gone on exit with all that it started."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        ready: Callable[[], bool],
        env: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        self._command = [str(word) for word in command]
        self._log, self._ready, self._env, self._directory = log, ready, env, directory
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[int, psutil.Process] = {}

    def start(self) -> None:
        """Starts it and waits until it is ready; raises NotUp, then nothing of it is left."""
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [*dying_with_us("KILL"), *self._command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=self._env, cwd=self._directory, start_new_session=True,
            )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        assert self._process is not None
        until = time.monotonic() + _READY_S
        while not self._ready():
            if self._process.poll() is not None:
                raise NotUp(self._text(f"ended with {self._process.returncode}"))
            if time.monotonic() > until:
                raise NotUp(self._text(f"was not ready after {_READY_S:.0f} s"))
            time.sleep(_LOOK_S)
        self.processes()

    def _text(self, what: str) -> str:
        return f"{Path(self._command[0]).name} {what}: {self.said()[-1500:]}"

    def said(self) -> str:
        """Its output so far."""
        try:
            return self._log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    def processes(self) -> list[psutil.Process]:
        """Itself first, then all that it has started and that still lives."""
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.pid)
            for each in (root, *root.children(recursive=True)):
                self._known[each.pid] = each
        return [each for each in self._known.values() if each.is_running()]

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to what is left; returns when all are gone. Twice is fine."""
        if self._process is None:
            return
        self.processes()  # those that it started since
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except BaseException as error:  # a second Ctrl+C: no patience, but nothing left either
            self._process.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        finally:
            self._end_the_rest()

    def _end_the_rest(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        process.wait()
        rest = [each for each in self._known.values() if each.pid != process.pid]
        for each in rest:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(rest, timeout=10)
        self._known.clear()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def free_port() -> int:
    """A TCP port of the loopback that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


__all__ = ["Daemon", "NotUp", "answers", "free_port"]
