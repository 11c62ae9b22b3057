"""`shmbroker.embedded()`: a broker of this program's own, for tests, notebooks and small services.

Owns: its life. The broker is an ordinary one, in processes of its own; it watches this program
through a pidfd and ends with it, also after kill -9, and removes what it had. Where its things lie,
and who removes them when everything is killed at once, is `control/scratch.py`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from shmbroker.client import Client

_GONE_S: Final = 45.0  # more than broker.drain_s
_OWN_VARIABLES: Final = ("SHMBROKER_INSTANCE", "SHMBROKER_DATA_DIR", "SHMBROKER_CONFIG")


@contextlib.contextmanager
def embedded(
    topics: Iterable[str] | Mapping[str, int] = (),
    *,
    config: Mapping[str, Any] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    directory: str | os.PathLike[str] | None = None,
    timeout: float = 30.0,
) -> Iterator[Client]:
    """Starts a private broker, yields a connected client, and removes every trace at the end.

    `topics` to make: names, or {name: partitions}; those that are there already are fine. `config`:
    keys of the broker's configuration ({"log.retention.ms": "1h"}), over the defaults; nothing is
    read from files or the environment. `data_dir` is kept, and may hold what an earlier broker left
    there; without it the records go as well. `directory`: where to put the temporary home, else
    where tempfile puts things. `timeout`: seconds for the start.

    Other processes of this user reach the broker by `client.address`: connect(address). It pins
    nothing, and ends with this program, also after kill -9. Raises ConfigError, TimedOut, and
    whatever keeps a broker from starting.
    """
    from shmbroker.client.client import connect
    from shmbroker.config import load
    from shmbroker.control import scratch
    from shmbroker.workers import detached
    from shmbroker.workers.program import Owner

    flags = {"broker.pin": False} | dict(config or {})
    loaded = load(None, {}, flags)  # what is wrong is said here, not in a log
    scratch.sweep(directory)
    home, lock_fd = scratch.make(directory)
    pidfd = os.pidfd_open(os.getpid())
    me = os.getpid()
    broker_pidfd = -1
    try:
        where = scratch.places(home, data_dir)
        owner = Owner(pidfd, lock_fd, str(home), data_dir is not None)
        pid = detached.start(
            where, loaded, limit_s=timeout, flags=flags, env=_environment(), owner=owner
        )
        broker_pidfd = os.pidfd_open(pid)
        with connect(where.instance, timeout=timeout) as client:
            wanted = topics.items() if isinstance(topics, Mapping) else ((t, 1) for t in topics)
            for name, partitions in wanted:
                client.create_topic(name, partitions, if_not_exists=True)
            yield client
    finally:
        if os.getpid() == me:  # a forked child that leaves the block ends nothing
            if broker_pidfd >= 0:
                _end(broker_pidfd)
            scratch.remove(home)
        for fd in (broker_pidfd, pidfd, lock_fd):
            if fd >= 0:
                os.close(fd)


def _environment() -> dict[str, str]:
    """Ours without what configures a broker: an embedded one is the same everywhere."""
    from shmbroker.config import is_configuration

    return {
        name: value
        for name, value in os.environ.items()
        if name not in _OWN_VARIABLES and not is_configuration(name) and name != "NOTIFY_SOCKET"
    }


def _end(broker_pidfd: int) -> None:
    """Stops the broker, in order if its data is kept; returns when it and its workers are gone."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(broker_pidfd, signal.SIGTERM)
    while not select.select([broker_pidfd], [], [], _GONE_S)[0]:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(broker_pidfd, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, broker_pidfd, os.WEXITED)


class _Callable(ModuleType):
    """This module bears the function's name: once it is imported, it is what `shmbroker.embedded`
    leads to, and must do the same."""

    __call__ = staticmethod(embedded)


sys.modules[__name__].__class__ = _Callable

__all__ = ["embedded"]
