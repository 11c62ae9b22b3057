"""The native core. A module of it that was never built says how to build it when it is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).parent


class _NotBuilt(MetaPathFinder):
    """Asked last, so only for what no other finder has: a `.pyx` without its built module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package == __name__ and (_HERE / f"{name}.pyx").exists():
            raise ImportError(
                f"{fullname} is not built for this Python; build it with: "
                "python setup.py build_ext --inplace (or: just build)",
                name=fullname,
            )
        return None


sys.meta_path.append(_NotBuilt())

__all__: list[str] = []
