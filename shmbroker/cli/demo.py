"""`demo`: the main job in one command."""

from __future__ import annotations


def demo() -> None:
    """Placeholder."""
