"""A port for who listens, goes, and listens there again."""

from __future__ import annotations

import contextlib
import random
import socket


def free_port() -> int:
    """Below those that the kernel gives out: one of these a client's own attempts to connect again
    could take while nobody listens, and then it would talk with itself."""
    for port in random.sample(range(20_000, 30_000), 50):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


__all__ = ["free_port"]
