"""Programs and packages that only the measurements need, and what to install for them."""

from __future__ import annotations

import importlib.util
import shutil


class MissingTool(RuntimeError):
    """A program, headers or a Python package that this machine lacks; says what to install."""

    def __init__(self, tool: str, remedy: str) -> None:
        super().__init__(f"{tool} is missing; {remedy}")


def require(tool: str, packages: str) -> str:
    """The path of a program; raises MissingTool."""
    found = shutil.which(tool)
    if found is None:
        raise MissingTool(tool, f"on Debian: apt-get install {packages}")
    return found


def require_package(module: str, name: str) -> None:
    """Raises MissingTool unless the Python package can be imported."""
    if importlib.util.find_spec(module) is None:
        raise MissingTool(name, "pip install 'shmbroker[perf]'")


__all__ = ["MissingTool", "require", "require_package"]
