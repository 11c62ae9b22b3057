"""Programs of the system that only the measurements need, and what to install for them."""

from __future__ import annotations

import shutil


class MissingTool(RuntimeError):
    """A program (or headers) that this machine lacks, with the Debian packages that have it."""

    def __init__(self, tool: str, packages: str) -> None:
        super().__init__(f"{tool} is missing; on Debian: apt-get install {packages}")


def require(tool: str, packages: str) -> str:
    """The path of a program; raises MissingTool."""
    found = shutil.which(tool)
    if found is None:
        raise MissingTool(tool, packages)
    return found


__all__ = ["MissingTool", "require"]
