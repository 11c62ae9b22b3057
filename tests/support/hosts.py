"""Two hosts on one machine: this one, and a network namespace at the other end of a veth pair.

Needs root and iproute2. The other host shares file system and processes with this one, so a program
there must be told not to take the local path (`local=False`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def _ip(*args: str) -> None:
    done = subprocess.run(["ip", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(args)}: {done.stderr.strip()}")


class OtherHost:
    """A host that reaches this one as `here`, by a cable that can be cut."""

    def __init__(self) -> None:
        self.name = f"shmb{os.getpid()}"
        self._cable = f"shmb{os.getpid() % 100_000}"
        net = f"10.213.{os.getpid() % 254}"  # tests may run side by side
        self.here, self.there = f"{net}.1", f"{net}.2"

    def run(
        self, code: str, *args: str, env: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """A Python program there."""
        command: Sequence[str] = (
            "ip",
            "netns",
            "exec",
            self.name,
            sys.executable,
            "-c",
            code,
            *args,
        )
        return subprocess.Popen(
            command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def cut(self) -> None:
        """Nothing gets through, and nobody is told."""
        # Down at the far end only: this end would tell its own sockets' users at once.
        _ip("-n", self.name, "link", "set", f"{self._cable}b", "down")

    def mend(self) -> None:
        """As before."""
        _ip("-n", self.name, "link", "set", f"{self._cable}b", "up")

    def _make(self) -> None:
        near, far = f"{self._cable}a", f"{self._cable}b"
        _ip("netns", "add", self.name)
        _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", self.name)
        _ip("addr", "add", f"{self.here}/24", "dev", near)
        _ip("link", "set", near, "up")
        _ip("-n", self.name, "addr", "add", f"{self.there}/24", "dev", far)
        _ip("-n", self.name, "link", "set", far, "up")
        _ip("-n", self.name, "link", "set", "lo", "up")

    def _remove(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=False)  # its cable goes with it


@contextmanager
def other_host() -> Iterator[OtherHost]:
    """Made, and gone at the end."""
    host = OtherHost()
    try:
        host._make()
        yield host
    finally:
        host._remove()


__all__ = ["OtherHost", "other_host"]
