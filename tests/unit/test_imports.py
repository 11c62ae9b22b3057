"""Imports point one way (DESIGN.md, Layout), and `import shmbroker` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "shmbroker"

# Lowest first. What is not listed belongs to the rank of the name it is a helper of.
RANKS = ("errors", "config", "_core", "log", "wire", "control", "client", "workers", "cli")
HELPERS = {
    "units": "config",
    "addresses": "config",
    "rule": "config",
    "toml_lines": "config",
    "topic_settings": "config",
    "places": "config",
    "aio": "client",
    "embedded": "cli",
    "pytest_plugin": "cli",
    "perf": "cli",
}
# The sans-IO parts: no sockets, no shared memory, no clock.
SANS_IO = ("wire", "control/groups/", "control/messages.py")
NOT_SANS_IO = {"socket", "zmq", "posix_ipc", "mmap", "multiprocessing", "select", "asyncio", "time"}
CLOCKS = {"now", "utcnow", "today"}  # of datetime
HEAVY = (
    "typer",
    "click",
    "rich",
    "structlog",
    "matplotlib",
    "numpy",
    "pandas",
    "pyarrow",
    "uvloop",
    "pytest",
)


def rank(name: str) -> int | None:
    """The rank of the first part below `shmbroker`; None for the package itself."""
    top = HELPERS.get(name, name)
    return RANKS.index(top) if top in RANKS else None


def modules() -> list[Path]:
    # pathlib does not follow the links of workers and perf by itself.
    found = [*PACKAGE.rglob("*.py")]
    for linked in ("workers", "perf"):
        found += [
            PACKAGE / linked / p.relative_to(ROOT / linked) for p in (ROOT / linked).rglob("*.py")
        ]
    return sorted(set(found))


def imported(path: Path) -> list[tuple[int, str]]:
    """Every module that a file imports, wherever in it, as (line, absolute dotted name)."""
    package = ("shmbroker", *path.relative_to(PACKAGE).parent.parts)
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *filter(None, [node.module])))
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def own_rank(path: Path) -> int | None:
    return rank(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))


def test_every_module_has_a_rank() -> None:
    unranked = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()}
    assert {name for name in unranked if rank(name) is None} == {"__init__"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    mine = own_rank(path)
    if mine is None:  # shmbroker/__init__.py hands names of errors and of the client on
        assert {
            name.split(".")[1] for _, name in imported(path) if name.startswith("shmbroker.")
        } <= {
            "errors",
            "client",
            "aio",
            "embedded",
        }
        return
    upwards = []
    for line, name in imported(path):
        parts = name.split(".")
        theirs = rank(parts[1]) if parts[0] == "shmbroker" and len(parts) > 1 else None
        if theirs is not None and theirs > mine:
            upwards.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not upwards


@pytest.mark.parametrize("place", SANS_IO)
def test_sans_io_modules_know_no_sockets_memory_or_clock(place: str) -> None:
    for path in modules():
        if not str(path.relative_to(PACKAGE)).startswith(place):
            continue
        for line, name in imported(path):
            assert name.split(".")[0] not in NOT_SANS_IO, f"{path}:{line} imports {name}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert node.attr not in CLOCKS, f"{path}:{node.lineno} reads the clock"


def loaded_by(program: str) -> set[str]:
    """The modules that a new interpreter has after `program`."""
    program = f"import sys, shmbroker; {program}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_shmbroker_is_light() -> None:
    loaded = loaded_by("pass")
    assert {name for name in loaded if name.startswith("shmbroker")} == {
        "shmbroker",
        "shmbroker.errors",
    }
    assert not loaded & {*HEAVY, "asyncio", "logging", "orjson", "socket", "threading", "zmq"}


def test_a_program_loads_only_what_it_uses() -> None:
    sync = loaded_by("shmbroker.connect; shmbroker.Consumer")
    assert not sync & {*HEAVY, "asyncio", "multiprocessing", "pyarrow", "sqlite3", "zmq"}
    assert "shmbroker.aio" not in sync
    loop = loaded_by("shmbroker.aio.connect; shmbroker.aio.Consumer")
    assert not loop & {*HEAVY, "multiprocessing", "pyarrow", "sqlite3", "zmq"}


def test_the_library_logs_under_its_name_alone_and_sets_no_handler() -> None:
    program = """
import logging, shmbroker
shmbroker.connect, shmbroker.aio.connect, shmbroker.Producer
mine = [n for n in logging.root.manager.loggerDict if n.startswith("shmbroker")]
assert mine == ["shmbroker"], mine
log = logging.getLogger("shmbroker")
assert not log.handlers and not logging.root.handlers
assert log.level == logging.NOTSET and log.propagate and not log.disabled
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    for path in modules():
        if own_rank(path) != RANKS.index("client"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "getLogger":
                assert 'logging.getLogger("shmbroker")' in path.read_text(encoding="utf-8")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in ("addHandler", "basicConfig", "dictConfig")


@pytest.mark.parametrize("name", ["workers", "perf"])
def test_the_bare_names_refuse_to_be_imported(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"import shmbroker.{name} instead" in done.stderr


def test_a_module_that_is_not_built_names_the_command(tmp_path: Path) -> None:
    core = tmp_path / "shmbroker" / "_core"
    core.mkdir(parents=True)
    (tmp_path / "shmbroker" / "__init__.py").touch()
    (core / "__init__.py").write_text((PACKAGE / "_core" / "__init__.py").read_text())
    (core / "engine.pyx").touch()
    done = subprocess.run(
        [sys.executable, "-c", "from shmbroker._core import engine"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "ImportError" in done.stderr
    assert "setup.py build_ext --inplace" in done.stderr
