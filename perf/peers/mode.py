"""A way to run a system, with what an acknowledgement then means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Acks = Literal["none", "memory", "durable"]


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to run a system.

    `acks` is the class in which it is compared: "durable" only if a record that was acknowledged
    outlives the host's power; "memory": it outlives the client at most; "none": not acknowledged.
    `words` says what an acknowledgement means, for the tables; `name` tells modes of the same class
    apart ("everysec"). `settings` is the driver's own.
    """

    name: str
    acks: Acks
    words: str
    settings: Any = None

    @property
    def case(self) -> str:
        """For the names of rows: the class, and the mode where it has a name of its own."""
        return self.acks if self.name == self.acks else f"{self.acks}-{self.name}"


__all__ = ["Acks", "Mode"]
