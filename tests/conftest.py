"""What every test gets: a clean house, looked over before and after.

A test that leaves shared memory, a child process, a socket or an open file behind fails, with the
name of what it left. What dies asynchronously is awaited for a moment; nothing is swept up.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest

# Sleeps end only when they are woken: a lost wake-up hangs a test instead of costing half a second.
_FOREVER = "SHMBROKER_PARK_FOREVER"
os.environ[_FOREVER] = "1"

# How long an example takes, or the making of one, says nothing on a host with other work.
hypothesis.settings.register_profile(
    "any host", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any host")

_PATIENCE_S = 10.0  # for a killed process to be reaped by whoever started it
_LONG_PATIENCE_S = 30.0


def _shared_memory() -> set[str]:
    return {str(path) for path in Path("/dev/shm").glob("shmb-*")}


def _of_strangers(tmp: str) -> set[str]:
    """Shared memory that only processes map which no test started: another broker on this host.

    Ours descend from this process or have `tmp` in their environment (a detached broker).
    """
    family = {os.getpid()} | {child.pid for child in psutil.Process().children(recursive=True)}
    ours, all_mapped = set(), set()
    for process in psutil.process_iter():
        try:
            mapped = {m.path for m in process.memory_maps() if m.path.startswith("/dev/shm/shmb-")}
            if mapped and (process.pid in family or tmp in "".join(process.environ().values())):
                ours |= mapped
        except psutil.Error:
            continue
        all_mapped |= mapped
    strange = {path.rpartition("-")[0] for path in all_mapped - ours}  # their whole broker's
    return {path for path in _shared_memory() - ours if path.rpartition("-")[0] in strange}


def _children() -> set[str]:
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())[:120]
            if "multiprocessing.resource_tracker" in command or "forkserver" in command:
                continue  # one a session, the standard library's
            # Whether it sleeps or runs changes by itself, in brokers that a module shares.
            dead = " (zombie)" if child.status() == psutil.STATUS_ZOMBIE else ""
            found.add(f"process {child.pid}{dead}: {command or child.name()}")
        except psutil.NoSuchProcess:
            continue
    return found


def _descriptors() -> set[str]:
    """Open sockets and shared memory, memfds and files of ours; not pipes of pytest's own."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the listing's own descriptor
        if target.startswith("socket:") or "shmb" in target or target.endswith((".log", ".db")):
            found.add(f"descriptor {name} -> {target}")
    return found


def _sockets_in_tmp() -> set[str]:
    root = Path(f"/tmp/shmbroker-{os.getuid()}")
    return {str(path) for path in root.rglob("*")} if root.is_dir() else set()


_LOOKS: tuple[Callable[[], set[str]], ...] = (
    _shared_memory,
    _children,
    _descriptors,
    _sockets_in_tmp,
)


@pytest.fixture(autouse=True)
def no_leaks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Fails the test that leaves something behind."""
    before = [look() for look in _LOOKS]
    yield
    patient = request.node.get_closest_marker("leaves_processes") is not None
    deadline = time.monotonic() + (_LONG_PATIENCE_S if patient else _PATIENCE_S)
    left = _left(before)
    if left:
        gc.collect()  # an object in a cycle is not yet a leak
        left = _left(before)
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = _left(before)
    if left:
        left -= _of_strangers(str(tmp_path_factory.getbasetemp()))
    if left:
        pytest.fail("left behind: " + "; ".join(sorted(left)), pytrace=False)


def _left(before: list[set[str]]) -> set[str]:
    return set().union(*(look() - was for look, was in zip(_LOOKS, before, strict=True)))


@pytest.fixture
def isolated_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Data, sockets and configuration of this test only; also set in `os.environ` for children."""
    for name in [n for n in os.environ if n.startswith("SHMBROKER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(_FOREVER, "1")
    places = {
        "XDG_DATA_HOME": tmp_path / "data",
        "XDG_RUNTIME_DIR": tmp_path / "run",
        "XDG_CONFIG_HOME": tmp_path / "config",
        "HOME": tmp_path / "home",
    }
    for name, path in places.items():
        path.mkdir()
        monkeypatch.setenv(name, str(path))
    return dict(os.environ)
