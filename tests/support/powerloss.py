"""A disk that can lose its power: what was done to it is recorded, and then what it may hold is
built.

`Recorder` notes every file operation of `shmbroker.log` below one directory, with the moments at
which it began and ended, and takes in the appender's trace (`shmb_trace` in appender.h).
`Recorder.image` builds what a disk may hold when the power fails at a moment:

  data    a write that bears RWF_DSYNC and has returned is there. Any other is there if an fsync of
          its file began after it and has returned; otherwise any subset of its 512-byte sectors.
  sizes   truncations and allocations are there once the file was synced (by either of the two);
          of the later ones a random first part is, in their order (a journal).
  names   creations, renames and unlinks are there once their directory was synced; of the later
          ones a random first part is.

Times are CLOCK_MONOTONIC, as the appender's. One process, one recorder at a time; files are told
apart by their birth, not by their inode number, which the kernel uses again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from shmbroker._core import scan

SECTOR = 512
RWF_DSYNC = 2
TRACE = struct.Struct("<QIIqQQqIIq")  # shmb_trace
TRACE_MAGIC = 0x4543415254424D48

assert TRACE.size == 64


@dataclass(frozen=True)
class TracedWrite:
    """One write of the appender. `ended` is None while it is in flight."""

    slot: int
    segment: int
    position: int
    data: bytes
    flags: int
    began: int
    ended: int | None
    result: int


def read_trace(path: str | os.PathLike[str]) -> list[TracedWrite]:
    """The writes of a trace, in the order of their beginning."""
    raw = Path(path).read_bytes()
    at, open_writes, found = 0, {}, []
    while at + TRACE.size <= len(raw):
        magic, slot, phase, segment, position, nbytes, result, flags, _, when = TRACE.unpack_from(
            raw, at
        )
        assert magic == TRACE_MAGIC, f"no trace record at byte {at}"
        at += TRACE.size
        if phase == 0:
            open_writes[slot] = (segment, position, raw[at : at + nbytes], flags, when)
            at += nbytes
            continue
        begun = open_writes.pop(slot)  # at most one write of a partition is in flight
        assert begun[:2] == (segment, position), "a write ended that was not begun"
        found.append(TracedWrite(slot, *begun[:4], begun[4], when, result))
    found += [TracedWrite(slot, *begun, None, 0) for slot, begun in open_writes.items()]
    return sorted(found, key=lambda write: write.began)


@dataclass
class Op:
    """One thing done to a file or a name. `ended`: None while it is under way."""

    kind: str  # write, size, sync; create, rename, unlink, dirsync
    began: int
    ended: int | None
    file: int = -1
    name: str = ""
    target: str = ""  # a rename's
    position: int = 0
    data: bytes = b""
    dsync: bool = False
    segment_name: str = ""  # of the appender's writes: the file is found by its name at that moment

    def done(self, cut: int) -> bool:
        """Whether it had returned when the power failed."""
        return self.ended is not None and self.ended <= cut


@dataclass
class File:
    """A file from its birth on, under whatever names."""

    initial: bytes = b""
    ops: list[Op] = field(default_factory=list)


class Recorder:
    """See the module. `with Recorder(root) as disk: …`; `disk.traced(…)`; `disk.image(…)`."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.abspath(root)
        self._ids = itertools.count()
        self._files: dict[int, File] = {}
        self._at_start: dict[str, int] = {}
        self._live: dict[str, int] = {}
        self._fds: dict[int, int] = {}
        self._directories: dict[int, str] = {}
        self._ops: list[Op] = []
        for path in sorted(Path(self.root).rglob("*")):
            if path.is_file():
                self._live[self._name(path)] = self._born(path.read_bytes())
        self._at_start = dict(self._live)
        self._patches = contextlib.ExitStack()

    # --- recording ---

    def __enter__(self) -> Recorder:
        for name in (
            "open", "close", "rename", "unlink", "truncate", "ftruncate", "write", "pwrite",
            "pwritev", "fsync", "fdatasync",
        ):  # fmt: skip
            handler = getattr(self, f"_{name}")
            self._patch(os, name, handler)
        self._patch(scan, "fallocate", self._fallocate)
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def _patch(self, where: Any, name: str, handler: Callable[..., Any]) -> None:
        real = getattr(where, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            return handler(real, *args, **kwargs)

        self._patches.enter_context(mock.patch.object(where, name, called))

    def _name(self, path: str | os.PathLike[str]) -> str:
        return os.path.relpath(os.path.abspath(os.fspath(path)), self.root)

    def _inside(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.path.abspath(os.fspath(path)).startswith(
            self.root + os.sep
        )

    def _born(self, content: bytes = b"") -> int:
        number = next(self._ids)
        self._files[number] = File(content)
        return number

    @contextlib.contextmanager
    def _noted(self, kind: str, **what: Any) -> Iterator[Op]:
        op = Op(kind, time.monotonic_ns(), None, **what)
        self._ops.append(op)
        yield op
        op.ended = time.monotonic_ns()

    def _open(self, real: Any, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if not self._inside(path):
            fd: int = real(path, flags, *args, **kwargs)
            return fd
        name = self._name(path)
        fresh = flags & os.O_CREAT and name not in self._live
        if fresh:
            number = self._born()
            with self._noted("create", file=number, name=name):
                fd = real(path, flags, *args, **kwargs)
            self._live[name] = number
        else:
            fd = real(path, flags, *args, **kwargs)
            if flags & os.O_TRUNC and name in self._live:
                with self._noted("size", file=self._live[name], position=0):
                    pass
        if name in self._live:
            self._fds[fd] = self._live[name]
        elif os.path.isdir(path):
            self._directories[fd] = name
        return fd

    def _close(self, real: Any, fd: int) -> None:
        self._fds.pop(fd, None)
        self._directories.pop(fd, None)
        real(fd)

    def _rename(self, real: Any, src: Any, dst: Any, **kwargs: Any) -> None:
        if not self._inside(src):
            real(src, dst, **kwargs)
            return
        name, target = self._name(src), self._name(dst)
        assert os.path.dirname(name) == os.path.dirname(target)
        with self._noted("rename", name=name, target=target):
            real(src, dst, **kwargs)
        self._live[target] = self._live.pop(name)

    def _unlink(self, real: Any, path: Any, **kwargs: Any) -> None:
        if not self._inside(path) or self._name(path) not in self._live:
            real(path, **kwargs)
            return
        with self._noted("unlink", name=self._name(path)):
            real(path, **kwargs)
        del self._live[self._name(path)]

    def _truncate(self, real: Any, path: Any, length: int) -> None:
        number = self._fds.get(path) if isinstance(path, int) else None
        if number is None and self._inside(path):
            number = self._live.get(self._name(path))
        if number is None:
            real(path, length)
            return
        with self._noted("size", file=number, position=length):
            real(path, length)

    _ftruncate = _truncate

    def _fallocate(self, real: Any, fd: int, offset: int, size_bytes: int) -> None:
        if fd not in self._fds:
            real(fd, offset, size_bytes)
            return
        with self._noted("size", file=self._fds[fd]) as op:
            real(fd, offset, size_bytes)
            op.position = os.fstat(fd).st_size

    def _write(self, real: Any, fd: int, data: Any) -> int:
        if fd not in self._fds:
            written: int = real(fd, data)
            return written
        at = os.fstat(fd).st_size  # shmbroker.log writes so only to its indexes, with O_APPEND
        with self._noted("write", file=self._fds[fd], position=at, data=bytes(data)):
            written = real(fd, data)
        return written

    def _pwrite(self, real: Any, fd: int, data: Any, position: int) -> int:
        if fd not in self._fds:
            written: int = real(fd, data, position)
            return written
        with self._noted("write", file=self._fds[fd], position=position, data=bytes(data)):
            written = real(fd, data, position)
        return written

    def _pwritev(self, real: Any, fd: int, parts: Any, position: int, *flags: int) -> int:
        if fd not in self._fds:
            written: int = real(fd, parts, position, *flags)
            return written
        data = b"".join(bytes(part) for part in parts)
        with self._noted("write", file=self._fds[fd], position=position, data=data):
            written = real(fd, parts, position, *flags)
        return written

    def _fsync(self, real: Any, fd: int) -> None:
        if fd in self._directories:
            with self._noted("dirsync", name=self._directories[fd]):
                real(fd)
        elif fd in self._fds:
            with self._noted("sync", file=self._fds[fd]):
                real(fd)
        else:
            real(fd)

    _fdatasync = _fsync

    # --- what the appender wrote ---

    def traced(self, writes: list[TracedWrite], directory_of: Callable[[int], str]) -> None:
        """Takes in the appender's writes; `directory_of(slot)` is relative to the root."""
        self._ops = [op for op in self._ops if not op.segment_name]
        for write in writes:
            assert write.result == len(write.data) or write.ended is None, "a write failed"
            place = os.path.join(directory_of(write.slot), f"{write.segment:020}.log")
            name = os.path.normpath(place)
            self._ops.append(
                Op(
                    "write",
                    write.began,
                    write.ended,
                    position=write.position,
                    data=write.data,
                    dsync=bool(write.flags & RWF_DSYNC),
                    segment_name=name,
                )
            )
        self._sort()

    def _sort(self) -> None:
        """Gives each file its operations, in order; finds the appender's files by their names."""
        for file in self._files.values():
            file.ops.clear()
        live = dict(self._at_start)
        self._ops.sort(key=lambda op: op.began)
        for op in self._ops:
            if op.kind == "create":
                live[op.name] = op.file
            elif op.kind == "rename":
                live[op.target] = live.pop(op.name)
            elif op.kind == "unlink":
                del live[op.name]
            elif op.kind != "dirsync":
                if op.segment_name:
                    op.file = live[op.segment_name]
                self._files[op.file].ops.append(op)

    @property
    def moments(self) -> list[int]:
        """When operations began and ended: around these the image changes."""
        return sorted(m for op in self._ops for m in (op.began, op.ended) if m is not None)

    # --- the image ---

    def image(self, cut: int, rng: random.Random) -> dict[str, bytes]:
        """name -> content of a disk that lost its power at `cut`; one of the possible ones."""
        return {
            name: self._content(self._files[number], cut, rng)
            for name, number in self._names(cut, rng).items()
        }

    def _names(self, cut: int, rng: random.Random) -> dict[str, int]:
        begun = [o for o in self._ops if o.began <= cut]
        synced: dict[str, int] = {}
        for op in begun:
            if op.kind == "dirsync" and op.done(cut):
                synced[op.name] = max(synced.get(op.name, 0), op.began)
        pending: dict[str, int] = {}  # directory -> how many of the unsynced ones are there
        counts: dict[str, int] = {}
        changes = [o for o in begun if o.kind in ("create", "rename", "unlink")]
        for op in changes:
            where = os.path.dirname(op.name) or "."
            if op.ended is None or op.ended > synced.get(where, 0):
                counts[where] = counts.get(where, 0) + 1
        for where, count in counts.items():
            pending[where] = rng.choice((0, count, rng.randint(0, count)))
        names = dict(self._at_start)
        for op in changes:
            where = os.path.dirname(op.name) or "."
            if op.ended is None or op.ended > synced.get(where, 0):
                if pending[where] == 0:
                    continue
                pending[where] -= 1
            if op.kind == "create":
                names[op.name] = op.file
            elif op.kind == "rename":
                names[op.target] = names.pop(op.name)
            else:
                del names[op.name]
        return names

    @staticmethod
    def _content(file: File, cut: int, rng: random.Random) -> bytes:
        content = bytearray(file.initial)
        begun = [op for op in file.ops if op.began <= cut]
        synced = max((o.began for o in begun if o.kind == "sync" and o.done(cut)), default=0)
        sized = max((o.began for o in begun if o.dsync and o.done(cut)), default=synced)
        sized = max(sized, synced)
        journal = rng.choice((0, 1 << 30, rng.randint(0, 3)))  # unsynced sizes that are there
        for op in begun:
            if op.kind == "size":
                if op.ended is None or op.ended > sized:
                    if journal == 0:
                        continue
                    journal -= 1
                _resize(content, op.position)
            elif op.kind == "write":
                whole = op.done(cut) and (op.dsync or (op.ended or 0) <= synced)
                _apply(content, op, None if whole else rng)
        return bytes(content)


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def _apply(content: bytearray, op: Op, rng: random.Random | None) -> None:
    """Writes all sectors, or with `rng` some of them."""
    end = op.position + len(op.data)
    if rng is None:
        if len(content) < end:
            _resize(content, end)
        content[op.position : end] = op.data
        return
    first, last = op.position // SECTOR, (end - 1) // SECTOR
    count = last - first + 1
    kind = rng.randrange(6)
    some, share = rng.randint(0, count), rng.choice((0.1, 0.5, 0.9))
    for n in range(count):
        if (
            kind == 0
            or (kind == 1 and n >= some)
            or (kind == 2 and n < some)
            or (kind >= 4 and rng.random() > share)
        ):
            continue  # kind 3: all of them, and nobody was told
        low, high = max(op.position, (first + n) * SECTOR), min(end, (first + n + 1) * SECTOR)
        if len(content) < high:
            _resize(content, high)
        content[low:high] = op.data[low - op.position : high - op.position]


def put_down(image: dict[str, bytes], root: Path) -> None:
    """Makes the files of an image below `root`, which must not exist yet."""
    root.mkdir()
    for name, content in image.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
