"""How a worker process begins and is bound to its acceptor.

Invariants: a worker never outlives its acceptor (`PR_SET_PDEATHSIG`, and a look at `getppid` for
the moment before); it ignores SIGINT, which the terminal sends to the whole group, since the
acceptor decides when to stop; it writes to standard error only through `logs`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import resource
import signal
import sys
from typing import Final, Protocol

from shmbroker.workers import logs

_PR_SET_PDEATHSIG: Final = 1


class Spec(Protocol):
    """What every kind of worker is told about itself."""

    @property
    def title(self) -> str: ...
    @property
    def parent_pid(self) -> int: ...
    @property
    def cpus(self) -> tuple[int, ...] | None: ...


def run_worker(module: str, spec: Spec) -> None:
    """The target of a spawned process: binds it to its parent, then runs `module.main(spec)`."""
    adopt_parent(spec)
    importlib.import_module(module).main(spec)


def adopt_parent(spec: Spec) -> None:
    """Makes this process a worker of `spec.parent_pid`; to be called first in a worker's main.

    Ends the process when the parent is gone already. Calling it twice does no harm.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The supervisor blocked it around the start, so that an early Ctrl+C finds SIG_IGN.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != spec.parent_pid:
        os._exit(1)  # it died before the line above; nobody is left to tell
    set_title(spec.title)
    if spec.cpus:
        with contextlib.suppress(OSError):  # taken away meanwhile: run where we may
            os.sched_setaffinity(0, spec.cpus)
    raise_file_limit()
    if "structlog" in sys.modules:  # the worker uses it directly: otherwise `logs` does it later
        logs.configure()


def set_title(title: str) -> None:
    """What `ps` and `top` show of this process."""
    import setproctitle

    setproctitle.setproctitle(title)


def raise_file_limit() -> None:
    """As many open files as the system lets us have: a segment, a client, a ring are one each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


__all__ = [
    "Spec",
    "adopt_parent",
    "raise_file_limit",
    "run_worker",
    "set_title",
]
