"""Starts the workers, notices their end through a pidfd, and starts them again.

Invariants: a worker is replaced only after its pidfd says that all of it is gone, threads in a
write included (invariant 11 of the design); starts happen in the main thread, since
PR_SET_PDEATHSIG is bound to the thread that started the child; at most one process a worker.

Restarts: at once for a worker that was ready and was killed from outside; otherwise with
`supervision.restart_backoff_ms`, doubled from the second time on up to `restart_backoff_max_ms`,
and forgotten after `stable_after_ms` of life.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

from shmbroker.config import SupervisionSection
from shmbroker.workers.lifecycle import Spec, run_worker
from shmbroker.workers.logs import get_logger
from shmbroker.workers.loop import Loop, Timer

_log = get_logger("shmbroker.supervisor")


class Worker:
    """One place in the broker that a process fills; the processes come and go."""

    def __init__(self, name: str, role: str, module: str, make_spec: Callable[[], Spec]) -> None:
        self.name, self.role, self.module, self.make_spec = name, role, module, make_spec
        self.process: BaseProcess | None = None
        self.pidfd = -1
        self.cpus: tuple[int, ...] | None = None
        self.ready = False  # said by whoever talks with it
        self.started_s = 0.0  # time.monotonic()
        self.failures = 0  # in a row
        self.restarts = 0
        self.timer: Timer | None = None
        self.retired = False
        self.exit_code: int | None = None

    @property
    def pid(self) -> int | None:
        """Of the present process."""
        return self.process.pid if self.process is not None else None


class Supervisor:
    """All workers. `on_gone(worker)` is called once for each process, after its end."""

    def __init__(
        self, loop: Loop, settings: SupervisionSection, on_gone: Callable[[Worker], None]
    ) -> None:
        self._loop, self._settings, self._on_gone = loop, settings, on_gone
        self._context = multiprocessing.get_context("spawn")
        self._restarting = True
        self.workers: list[Worker] = []

    def add(self, name: str, role: str, module: str, make_spec: Callable[[], Spec]) -> Worker:
        """Starts a worker; `make_spec` is asked again at every start."""
        worker = Worker(name, role, module, make_spec)
        self.workers.append(worker)
        self._start(worker)
        return worker

    def alive(self) -> list[Worker]:
        """Workers whose process is there, or waits to be started again."""
        return [w for w in self.workers if w.process is not None or w.timer is not None]

    def stop_restarting(self) -> None:
        """From now on an end is an end."""
        self._restarting = False
        for worker in self.workers:
            if worker.timer is not None:
                worker.timer.cancel()
                worker.timer = None

    def retire(self, worker: Worker) -> None:
        """This one is not started again."""
        worker.retired = True
        if worker.timer is not None:
            worker.timer.cancel()
            worker.timer = None

    def kill(self, worker: Worker) -> None:
        """SIGKILL to the present process; the pidfd tells when it is gone."""
        if worker.pidfd >= 0:
            signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)

    def kill_all(self) -> None:
        """SIGKILL to all of them, for good; returns when they are gone."""
        self.stop_restarting()
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                self.kill(worker)
        for worker in self.workers:
            if worker.process is not None:
                worker.process.join()

    def processes(self) -> list[dict[str, Any]]:
        """Every process of the broker, as `status` shows it."""
        found: list[dict[str, Any]] = [_process("acceptor", "acceptor", os.getpid())]
        for worker in self.workers:
            state = "ready" if worker.ready else "starting" if worker.pid else "restarting"
            found.append(_process(worker.role, worker.name, worker.pid))
            found[-1] |= {"state": state, "restarts": worker.restarts, "pinned": bool(worker.cpus)}
        tracker = getattr(resource_tracker._resource_tracker, "_pid", None)
        if tracker:  # multiprocessing's own; it ends with the last of the others
            found.append(_process("resource-tracker", "resource-tracker", tracker))
        return found

    def _start(self, worker: Worker) -> None:
        worker.timer, worker.ready = None, False
        spec = worker.make_spec()
        process = self._context.Process(
            target=run_worker, args=(worker.module, spec), name=worker.name
        )
        with _sigint_blocked(), _without_main():
            process.start()
        assert process.pid is not None
        worker.process, worker.pidfd = process, os.pidfd_open(process.pid)
        worker.cpus, worker.started_s = spec.cpus, time.monotonic()
        self._loop.watch(worker.pidfd, lambda: self._gone(worker))

    def _gone(self, worker: Worker) -> None:
        assert worker.process is not None
        self._loop.unwatch(worker.pidfd)
        os.close(worker.pidfd)
        worker.process.join()  # does not wait: the pidfd said it is gone
        code = worker.exit_code = worker.process.exitcode
        lived_s, was_ready = time.monotonic() - worker.started_s, worker.ready
        pid = worker.pid
        worker.process.close()
        worker.process, worker.pidfd, worker.ready = None, -1, False
        if self._restarting and not worker.retired:
            outside = code in (-signal.SIGKILL, -signal.SIGTERM) and was_ready
            delay_s = self._delay_s(worker, lived_s, outside)
            _log.warning(
                "worker died", worker=worker.name, pid=pid, cause=_cause(code), restart_in_s=delay_s
            )
            worker.restarts += 1
            worker.timer = self._loop.after(delay_s, lambda: self._start(worker))
        self._on_gone(worker)

    def _delay_s(self, worker: Worker, lived_s: float, outside: bool) -> float:
        if outside or lived_s * 1000 >= self._settings.stable_after_ms:
            worker.failures = 0
            return 0.0
        worker.failures += 1
        if worker.failures == 1:
            return 0.0
        exponent = min(worker.failures - 2, 30)
        delay_ms = self._settings.restart_backoff_ms << exponent
        return min(delay_ms, self._settings.restart_backoff_max_ms) / 1000


def end_resource_tracker() -> None:
    """Ends multiprocessing's helper process, after all workers; returns when it is gone."""
    stop = getattr(resource_tracker._resource_tracker, "_stop", None)
    if stop is not None:
        stop()


def _process(role: str, name: str, pid: int | None) -> dict[str, Any]:
    cpus: list[int] = []
    if pid is not None:
        try:
            cpus = sorted(os.sched_getaffinity(pid))
        except ProcessLookupError:
            pid = None
    return {"role": role, "name": name, "pid": pid, "cpus": cpus}


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """A child inherits the mask: Ctrl+C during its start waits until it ignores the signal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_main() -> Iterator[None]:
    """Keeps spawn from importing our __main__ (the whole command line) in the child once more."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = bare = ModuleType("__main__")
    bare.__spec__ = None
    try:
        yield
    finally:
        sys.modules["__main__"] = main


__all__ = ["Supervisor", "Worker", "end_resource_tracker"]
