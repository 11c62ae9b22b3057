"""The driver of iceoryx2 with the real thing: fetched, measured at the smallest size.

Only in `just test-peers`: it needs PyPI.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from driven import every_workload_has_a_figure

from shmbroker.perf.case import SMOKE, Bench
from shmbroker.perf.guard import DiskGuard
from shmbroker.perf.peers import effort
from shmbroker.perf.peers.fetching import Cache
from shmbroker.perf.peers.iceoryx2 import Iceoryx2
from shmbroker.perf.peers.run import CACHE
from shmbroker.perf.peers.stage import staged
from shmbroker.perf.values import ValueSpec

ROOT = Path(__file__).parents[3]
pytestmark = [pytest.mark.peers, pytest.mark.leaves_processes]


@pytest.fixture(scope="module")
def peer() -> Iceoryx2:
    found = Iceoryx2(Cache(ROOT / CACHE))
    found.fetch()
    return found


def segments() -> list[Path]:
    """Shared memory that a driver of this process made."""
    return list(Path("/dev/shm").glob("shmb_iox2_*"))


def test_versions_are_named(peer: Iceoryx2) -> None:
    (found,) = peer.versions().values()
    assert found[0].isdigit()


def test_every_workload_has_a_figure_and_nothing_is_left(peer: Iceoryx2, tmp_path: Path) -> None:
    (mode,) = peer.modes
    there_is_no_server = "memory-none"
    every_workload_has_a_figure(peer, mode, tmp_path, without=(there_is_no_server,))
    assert segments() == []


@pytest.mark.parametrize(("how", "size"), [("many", 100), ("many", 16_384), ("each", 100)])
def test_a_sender_that_is_far_ahead_loses_nothing(
    peer: Iceoryx2, tmp_path: Path, how: str, size: int
) -> None:
    (mode,) = peer.modes
    with DiskGuard(tmp_path, 0) as guard:
        bench = Bench(tmp_path, SMOKE, lambda _text: None, guard)
        with staged(bench, effort.SMOKE, peer, mode) as stage:
            stage.sender.call("prepare", ValueSpec(20_000, size))
            topic = stage._opened("flooded")
            assert stage._round(how, topic, 20_000) > 0  # compares checksums


def test_shared_memory_of_a_killed_client_goes_with_the_driver(
    peer: Iceoryx2, tmp_path: Path
) -> None:
    (mode,) = peer.modes
    with DiskGuard(tmp_path, 0) as guard:
        bench = Bench(tmp_path, SMOKE, lambda _text: None, guard)
        with (
            pytest.raises((OSError, RuntimeError)),
            staged(bench, effort.SMOKE, peer, mode) as stage,
        ):
            stage.sender.call("prepare", ValueSpec(10, 100))
            topic = stage._opened("killed")
            stage._round("each", topic, 10)
            assert segments()
            for child in psutil.Process().children():
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()
            stage._round("each", topic, 10)
    assert segments() == []


def test_a_forgotten_topic_gives_its_shared_memory_back(peer: Iceoryx2, tmp_path: Path) -> None:
    (mode,) = peer.modes
    code = (
        f"import sys; sys.path[:0] = {[str(each) for each in peer.path]!r}\n"
        "from pathlib import Path\n"
        "from shmbroker.perf.peers.iceoryx2 import Iceoryx2\n"
        "from shmbroker.perf.peers.iceoryx2_client import Iceoryx2Client\n"
        "client, mode = Iceoryx2Client(tuple(sys.argv[1:])), Iceoryx2.modes[0]\n"
        "def held(): return len(list(Path('/dev/shm').glob(f'{sys.argv[2]}*')))\n"
        "before = held()\n"
        "client.create('old', mode); client.send_each('old', [b'1'], mode); during = held()\n"
        "client.forget('old'); print(before, during, held()); client.close()"
    )
    with peer.start(tmp_path, mode) as server:
        command = [sys.executable, "-c", code, *server.address]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, during, after = map(int, said.split())
    assert before == after < during
    assert segments() == []


def test_shared_memory_of_a_killed_measurement_goes_with_the_next(
    peer: Iceoryx2, tmp_path: Path
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, mine = (Path(f"/dev/shm/shmb_iox2_{pid}_x") for pid in (dead.pid, os.getppid()))
    left.touch()
    mine.touch()
    try:
        with peer.start(tmp_path, peer.modes[0]):
            assert not left.exists()
            assert mine.exists()  # of one that lives
    finally:
        mine.unlink()
        left.unlink(missing_ok=True)
