"""What one check of `shmbroker doctor` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["good", "better", "stops"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `gain` and `how` are empty where all is good."""

    name: str
    state: State
    found: str
    gain: str = ""  # what would be gained, or what is in the way
    how: str = ""


__all__ = ["Finding", "State"]
