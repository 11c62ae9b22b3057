"""Runs an acceptor as this process: `up` in the foreground, or the detached one's program.

`python -m shmbroker.workers.acceptor_main '{"instance": …, "ready_fd": 3, …}'` is what
`up --detach` starts; the reason why it could not start goes through `ready_fd`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmbroker import errors
from shmbroker.config import Places, load
from shmbroker.control import scratch
from shmbroker.workers.acceptor import WRITER_MODULE, Acceptor, UpOptions
from shmbroker.workers.lifecycle import raise_file_limit, set_title
from shmbroker.workers.logs import set_level
from shmbroker.workers.program import Owner
from shmbroker.workers.supervisor import end_resource_tracker


def run(options: UpOptions, on_ready: Callable[[Acceptor], None] | None = None) -> int:
    """Runs the broker to its end; returns the exit code. ShmbrokerError if it can't start."""
    logging = options.loaded.config.logging
    asked = options.loaded.sources["logging.format"].kind != "default"
    set_level(logging.level, logging.format if asked else None)
    raise_file_limit()
    set_title(f"shmbroker {options.places.instance}: acceptor")
    if options.owner is None:
        scratch.sweep()  # what embedded brokers left that were killed with their programs
    acceptor = Acceptor(options)
    if on_ready is not None:
        acceptor.on_ready.append(lambda: on_ready(acceptor))
    if options.ready_fd is not None:
        fd = options.ready_fd
        acceptor.on_ready.append(lambda: _tell(fd, {"pid": os.getpid()}))
    try:
        return acceptor.run()
    finally:
        end_resource_tracker()


def main(argv: list[str]) -> int:
    """The detached broker's program."""
    given: dict[str, Any] = json.loads(argv[1])
    fd: int = given["ready_fd"]
    owner = Owner(*given["owner"]) if given.get("owner") else None
    for inherited in (fd, *((owner.pidfd, owner.lock_fd) if owner else ())):
        os.set_inheritable(inherited, False)
    try:
        places = Places.find(
            given["instance"], data_dir=given["data_dir"], config=given.get("config")
        )
        loaded = load(places.config_file, flags=given.get("flags"))
        module = given.get("writer_module") or WRITER_MODULE
        options = UpOptions(
            places, loaded, fd, module, owner, given.get("log_file"), given.get("front_module")
        )
        return run(options)
    except errors.ShmbrokerError as error:
        _tell(fd, {"error": error.to_wire()})
        print(error, file=sys.stderr)
        return 1
    finally:
        if owner is not None:
            scratch.remove(Path(owner.home))


def _tell(fd: int, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # who waited is gone: that is its own business
        os.write(fd, json.dumps(message).encode())
        os.close(fd)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
