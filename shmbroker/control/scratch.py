"""The temporary home of an embedded broker: made, told apart from those in use, removed.

    <tmp>/shmbroker-embedded-XXXXXXXX/     0700
        lock        flock'ed by the program, and through it by its acceptor, as long as one lives
        run/        the runtime directory: the broker's address
        data/       the data directory, unless it lies elsewhere and is kept

Who removes it: the program that made it at the end of its `with`; the acceptor when that program
has died; and if both were killed at once, whoever starts the next broker of this user and finds the
lock free (`sweep`). What stays elsewhere, shared memory of a home's own data directory, goes with
it; that of a data directory which is kept waits for the next `up` on it, as always.

Invariants: a home whose lock somebody holds is never touched; one without a lock is being made,
or is rubbish once it is a minute old.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Final

from shmbroker._core import shm
from shmbroker.places import Places, shm_prefix

_PREFIX: Final = "shmbroker-embedded-"
_LOCK: Final = "lock"
_BEING_MADE_S: Final = 60.0
_DYING_S: Final = 2.0  # for workers of a killed broker


def make(directory: str | os.PathLike[str] | None = None) -> tuple[Path, int]:
    """A new home in `directory` (else the temporary one), and the descriptor with its lock."""
    home = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=directory)).absolute()
    fd = os.open(home / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return home, fd


def places(home: Path, data_dir: str | os.PathLike[str] | None = None) -> Places:
    """The places of the broker in `home`."""
    return Places.find(str(home / "run"), data_dir=data_dir or home / "data")


def remove(home: Path) -> None:
    """Removes a home whose broker is gone, with its shared memory; twice is fine."""
    prefix = None
    with contextlib.suppress(OSError, ValueError, KeyError):
        identity = json.loads((home / "data" / "datadir.json").read_text(encoding="utf-8"))
        prefix = shm_prefix(identity["data_dir_id"])
    with contextlib.suppress(OSError):
        places(home).remove_runtime_dir()
    deadline = time.monotonic() + _DYING_S
    while home.exists() and time.monotonic() < deadline:
        shutil.rmtree(home, ignore_errors=True)  # a killed worker may just have made a file
    for name in shm.list_prefix(prefix) if prefix is not None else ():
        shm.unlink(name)


def sweep(directory: str | os.PathLike[str] | None = None) -> list[Path]:
    """Removes the homes in `directory` (else the temporary one) whose program and broker are dead.

    Returns them. Those of other users are left alone.
    """
    found = Path(directory or tempfile.gettempdir()).glob(f"{_PREFIX}*")
    return [home.absolute() for home in found if _sweep(home.absolute())]


def _sweep(home: Path) -> bool:
    try:
        said = home.lstat()
        if not stat.S_ISDIR(said.st_mode) or said.st_uid != os.getuid():
            return False
        fd = os.open(home / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        if time.time() - said.st_mtime < _BEING_MADE_S:
            return False
        remove(home)
        return True
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        remove(home)
        return True
    finally:
        os.close(fd)


__all__ = ["make", "places", "remove", "sweep"]
