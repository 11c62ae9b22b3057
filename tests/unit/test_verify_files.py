"""`log verify`: what is whole is said to be, and each kind of damage is found and named."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from log_rig import MakeRig, Rig, make_fixture  # noqa: F401

from shmbroker.log.verify import verify


def _closed(make: MakeRig) -> Rig:
    rig = make()
    for _ in range(3):
        for _ in range(4):
            rig.append(30, 30, size=200)
        rig.roll()
    rig.append(3, 3)
    rig.close()
    return rig


def test_a_whole_partition_has_no_problem_and_its_counts_are_right(make: MakeRig) -> None:
    rig = _closed(make)
    found = verify(str(rig.path))
    assert found.problems == []
    assert (found.start_offset, found.end_offset) == (0, rig.offset)
    assert found.batches == len(rig.batches)
    assert found.bytes == len(rig.written())
    assert found.index_entries > 6


def test_beside_a_writer_everything_ends_at_the_durable_end(make: MakeRig) -> None:
    rig = make()
    rig.append(3, 3)
    limit, end = (rig.active.base_offset, rig.position), rig.offset
    rig.append(3)
    rig.write(b"half a batch")
    found = verify(str(rig.path), limit)
    assert (found.problems, found.end_offset) == ([], end)
    assert verify(str(rig.path)).problems


def _flip(rig: Rig, base: int, suffix: str, at: int) -> None:
    path = rig.file(base, suffix)
    data = bytearray(path.read_bytes())
    data[at] ^= 0x41
    path.write_bytes(data)


def _bases(rig: Rig) -> list[int]:
    return [s.base_offset for s in rig.log.segments]


DAMAGE: dict[str, tuple[Callable[[Rig], object], str]] = {
    "a batch": (lambda r: _flip(r, _bases(r)[1], ".log", 90), ".log"),
    "an offset entry": (lambda r: _flip(r, 0, ".index", 7), ".index"),
    "a time entry": (lambda r: _flip(r, 0, ".timeindex", 5), ".timeindex"),
    "a cut index": (lambda r: r.file(0, ".index").write_bytes(b"abc"), ".index"),
    "a missing segment": (lambda r: r.file(_bases(r)[1]).unlink(), ".log"),
    "a missing end": (lambda r: r.file(_bases(r)[-1]).unlink(), "checkpoint"),
    "a short end": (lambda r: r.file(_bases(r)[-1]).write_bytes(b""), "checkpoint"),
    "the checkpoint": (lambda r: (r.path / "checkpoint").write_bytes(b"x" * 50), "checkpoint"),
    "no checkpoint": (lambda r: (r.path / "checkpoint").unlink(), "checkpoint"),
    "a snapshot": (lambda r: next(iter(r.path.glob("*.snapshot"))).write_bytes(b"12"), ".snapshot"),
    "another offset": (
        lambda r: r.file(0, ".index").write_bytes(struct.pack(">II", 5, 0)),
        ".index",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_its_file_named(make: MakeRig, kind: str) -> None:
    rig = _closed(make)
    damage, where = DAMAGE[kind]
    damage(rig)
    found = verify(str(rig.path))
    assert found.problems
    assert any(where in problem["file"] for problem in found.problems), found.problems
