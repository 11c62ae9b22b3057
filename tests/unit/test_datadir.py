"""The data directory: identity, versions, and a lock that two brokers never share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shmbroker.control import datadir
from shmbroker.control.datadir import lock_exclusive, lock_shared, open_data_dir
from shmbroker.errors import DataDirLocked, DataDirVersion

HOLD = """
import sys
from pathlib import Path
from shmbroker.control.datadir import lock_exclusive, lock_shared
lock = {"exclusive": lock_exclusive, "shared": lock_shared}[sys.argv[2]](Path(sys.argv[1]))
if sys.argv[3:] == ["share"]:
    lock.share()
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(path: Path, *how: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_data_directory_keeps_its_identity(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with lock_exclusive(path):
        made = open_data_dir(path)
    assert len(made.data_dir_id) == 32
    assert open_data_dir(path) == made
    assert open_data_dir(path, create=False) == made
    assert made.shm_prefix.startswith(f"/shmb-{os.getuid()}-")
    assert sorted(p.name for p in path.iterdir()) == ["datadir.json", "lock"]


def test_a_creation_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    (tmp_path / "datadir.json.new").write_text('{"format_v')
    assert open_data_dir(tmp_path) == open_data_dir(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '"x"',
        "null",
        '{"format_version": 1, "data_dir_id": 5}',
        '{"format_version": 1}',
    ]
    + ['{"format_version": 1, "data_dir_id": "x"}', '{"format_version": 0, "data_dir_id": "%s"}']
    + ['{"format_version": "1", "data_dir_id": "%s"}'],
)
def test_a_damaged_identity_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    identity = tmp_path / "datadir.json"
    identity.write_text(text.replace("%s", "0" * 32))
    with pytest.raises(DataDirVersion):
        open_data_dir(tmp_path)
    assert identity.read_text() == text.replace("%s", "0" * 32)


def test_a_newer_version_is_refused_by_number(tmp_path: Path) -> None:
    newer = {"format_version": datadir.FORMAT_VERSION + 1, "data_dir_id": "0" * 32}
    (tmp_path / "datadir.json").write_text(json.dumps(newer))
    with pytest.raises(DataDirVersion, match=f"version {datadir.FORMAT_VERSION + 1}") as caught:
        open_data_dir(tmp_path)
    assert caught.value.path == str(tmp_path)


def test_other_peoples_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DataDirVersion, match=r"thesis\.tex"):
        open_data_dir(tmp_path)
    with pytest.raises(DataDirVersion, match=r"has no datadir\.json"):
        open_data_dir(tmp_path / "absent", create=False)


@pytest.mark.parametrize("how", [["exclusive"], ["exclusive", "share"]])
def test_a_second_broker_is_refused_at_once_with_the_firsts_pid(
    tmp_path: Path, how: list[str]
) -> None:
    with holder(tmp_path, *how) as other:
        started = time.monotonic()
        with pytest.raises(DataDirLocked, match=f"pid {other.pid}") as caught:
            lock_exclusive(tmp_path, timeout_s=60)
        assert time.monotonic() - started < 30
        assert caught.value.pid == other.pid
    lock_exclusive(tmp_path).release()


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    with holder(tmp_path, "exclusive") as other:
        other.kill()
        other.wait()
        lock_exclusive(tmp_path, timeout_s=10).release()


def test_up_waits_for_the_workers_of_a_dead_broker(tmp_path: Path) -> None:
    with holder(tmp_path, "exclusive", "share") as acceptor, holder(tmp_path, "shared") as worker:
        acceptor.kill()
        acceptor.wait()
        with pytest.raises(DataDirLocked, match=r"what is left of a broker that died") as caught:
            lock_exclusive(tmp_path, timeout_s=0.05)
        assert caught.value.pid == acceptor.pid
        ender = threading.Timer(0.1, worker.kill)
        ender.start()
        lock_exclusive(tmp_path, timeout_s=30).release()
        ender.join()


def test_workers_share_the_lock_once_up_has_shared_it(tmp_path: Path) -> None:
    with lock_exclusive(tmp_path) as lock:
        with pytest.raises(DataDirLocked):
            lock_shared(tmp_path)
        lock.share()
        with lock_shared(tmp_path), lock_shared(tmp_path):
            assert not lock.exclusive
    lock.release()


@pytest.mark.parametrize("text", ["", "x", "[]", '{"pid": "x"}', '{"pid": 1, "started": -1}'])
def test_a_lock_file_of_rubbish_is_no_obstacle(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock").write_text(text)
    lock_exclusive(tmp_path).release()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
