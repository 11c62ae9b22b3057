"""Where a connection of the native protocol is, the same on both sides and in both protocols."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """GREETING -> ASKED -> OPEN -> CLOSED; CLOSED may come at any time, and nothing after it."""

    GREETING = "waiting for the client's greeting"
    ASKED = "waiting for the broker's answer to the greeting"
    OPEN = "open"
    CLOSED = "closed"

    def expect(self, wanted: State) -> None:
        """RuntimeError if what was called belongs to another state."""
        if self is not wanted:
            raise RuntimeError(f"the connection is {self.value}, not {wanted.value}")


__all__ = ["State"]
