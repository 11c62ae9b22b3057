"""A broker in the background: started until it is ready, stopped until its last process is gone.

For `up --detach`, `down`, `demo` and embedded brokers. Nothing here polls: readiness comes through
a pipe, whose end without a word is the broker's death; ends of processes come through pidfds.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shmbroker import errors
from shmbroker._core import shm
from shmbroker.config import LoadedConfig, Places
from shmbroker.workers import logfile
from shmbroker.workers.program import Owner, command

if TYPE_CHECKING:
    from shmbroker.client import Client

READY_LIMIT_S: Final = 60.0
LOG_FILE: Final = "broker.log"
_GONE_MARGIN_S: Final = 15.0
_SHOW_EVERY_S: Final = 1.0


def log_path(places: Places, loaded: LoadedConfig) -> Path:
    """Where a detached broker logs: `logging.file`, or `broker.log` beside the sockets."""
    said = loaded.config.logging.file
    return Path(said).expanduser() if said else places.runtime_dir / LOG_FILE


def start(
    places: Places,
    loaded: LoadedConfig,
    *,
    limit_s: float = READY_LIMIT_S,
    writer_module: str | None = None,
    front_module: str | None = None,
    flags: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    owner: Owner | None = None,
) -> int:
    """Starts a broker in a session of its own; returns its pid once it is ready.

    `flags`: {"broker.drain_s": value} over file and environment; `env`: instead of ours; `owner`:
    the broker ends with it. Raises the reason why it could not start, or TimedOut; a broker that is
    merely slow goes on.
    """
    places.make_runtime_dir()
    log = log_path(places, loaded)
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        out = logfile.begin(log, loaded.config.logging.keep)
        try:
            process = subprocess.Popen(
                command(places, write, writer_module, flags, owner, str(log), front_module),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=[write, *([owner.pidfd, owner.lock_fd] if owner else [])],
                start_new_session=True,
                cwd="/",
                env=env,
            )
        finally:
            os.close(out)
            os.close(write)
        return _wait_ready(read, process, limit_s, log)
    finally:
        os.close(read)


def _wait_ready(read: int, process: subprocess.Popen[bytes], limit_s: float, log: Path) -> int:
    ready, _, _ = select.select([read], [], [], limit_s)
    if not ready:
        process.returncode = 0  # it is on its own: no warning about a child that still runs
        raise errors.TimedOut(
            f"the broker (pid {process.pid}) is not ready after {limit_s:g} s and goes on; "
            f"see {log} and: shmbroker status"
        )
    said = b"".join(iter(lambda: os.read(read, 65536), b""))
    if not said:
        process.wait()
        raise errors.ShmbrokerError(f"the broker ended before it was ready{_tail(log)}")
    message: dict[str, Any] = json.loads(said)
    if "error" in message:
        process.wait()
        raise errors.from_wire(message["error"])
    process.returncode = 0  # as above
    return process.pid


def stop(
    client: Client,
    drain_s: float | None = None,
    show: Callable[[list[str]], None] | None = None,
) -> bool:
    """Stops the broker that `client` is attached to; returns when its last process is gone.

    False: a writer did not drain, and its rings wait in shared memory for the next `up`. `show` is
    told about once a second which processes are left. Closes the client. Raises TimedOut.
    """
    found = client.status()
    limit_s = (30.0 if drain_s is None else drain_s) + _GONE_MARGIN_S
    processes = {p["pid"]: p["name"] for p in found["processes"] if p["pid"]}
    with contextlib.ExitStack() as opened:
        pidfds: dict[int, str] = {}
        for pid, name in processes.items():
            with contextlib.suppress(ProcessLookupError):
                pidfds[os.pidfd_open(pid)] = f"{name} (pid {pid})"
        for pidfd in pidfds:
            opened.callback(os.close, pidfd)
        try:
            client.connection.request("shutdown", drain_s=drain_s)
        except errors.TimedOut:  # it is stuck: a signal is the last thing it may still hear
            os.kill(found["broker_pid"], signal.SIGTERM)
        client.close()
        _wait_gone(pidfds, limit_s, show or (lambda _names: None))
    return not shm.list_prefix(found["prefix"])


def _wait_gone(pidfds: dict[int, str], limit_s: float, show: Callable[[list[str]], None]) -> None:
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    left = dict(pidfds)
    deadline = time.monotonic() + limit_s
    next_show = time.monotonic() + _SHOW_EVERY_S
    while left:
        now = time.monotonic()
        if now >= deadline:
            raise errors.TimedOut(
                f"still there after {limit_s:g} s: {', '.join(left.values())}; "
                "see: shmbroker status"
            )
        if now >= next_show:
            show(list(left.values()))
            next_show = now + _SHOW_EVERY_S
        wait_s = min(deadline, next_show) - now
        for pidfd, _ in poll.poll(max(1, int(wait_s * 1000))):
            poll.unregister(pidfd)
            del left[pidfd]
            with contextlib.suppress(ChildProcessError):  # ours only if we started it
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)


def _tail(log: Path, lines: int = 5) -> str:
    with contextlib.suppress(OSError):
        last: Iterable[str] = log.read_text(errors="replace").strip().splitlines()[-lines:]
        text = "\n  ".join(last)
        if text:
            return f"; the end of {log}:\n  {text}"
    return f"; see {log}"


__all__ = ["LOG_FILE", "READY_LIMIT_S", "log_path", "start", "stop"]
