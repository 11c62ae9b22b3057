"""The power fails: what was acknowledged as durable is there, what was never sent is not.

A station (writer_rig.py) works on real files while every write and every directory operation is
recorded (powerloss.py). For many moments a disk is built that may be left then, and recovered.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from powerloss import Recorder, TracedWrite, put_down, read_trace
from writer_rig import SETTINGS, Acked, Load, Sent, Station, batches_of, directory_of, open_log

from shmbroker._core.batch import encode_batch
from shmbroker.errors import ShmbrokerError
from shmbroker.log import recovery
from shmbroker.log.segment import Segment

PARTITIONS = 2
Content = dict[int, list[tuple[int, int, tuple[bytes, ...]]]]


@dataclass
class Era:
    """What happened between two failures of the power."""

    disk: Recorder
    writes: list[TracedWrite]
    sent: list[Sent]
    acked: list[Acked]
    began: int  # when recovery was over, ns
    ended: int


@dataclass
class Truth:
    """What a disk must and may hold."""

    acked: list[Acked] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)


def work(data: Path, trace: Path, rng: random.Random, name: str, bursts: int) -> Era:
    """Opens what is in `data`, works on it, and crashes."""
    data.mkdir(exist_ok=True)
    with Recorder(data) as disk:
        with Station(data, trace, partitions=PARTITIONS) as station:
            began = time.monotonic_ns()
            for served in station.served.values():
                assert served.part is not None, served.reason
                assert served.part.state == "online", served.reason
            station.start()
            load = Load(station, rng, name)
            for n in range(bursts):
                load.some()
                if rng.random() < 0.1:
                    station.served[n % PARTITIONS].checkpoint()
            load.settle()
            ended = time.monotonic_ns()
        disk.traced(read_trace(trace), directory_of)
        return Era(disk, read_trace(trace), load.sent, load.acked, began, ended)


def moments(era: Era, rng: random.Random, count: int) -> list[int]:
    """Where to cut: at acknowledgements, around the beginnings and ends of operations, anywhere."""
    marks = [m for m in era.disk.moments if m <= era.ended]
    acked = [a.at for a in era.acked]
    chosen = []
    for _ in range(count):
        kind = rng.randrange(3)
        if kind == 0 and acked:
            chosen.append(rng.choice(acked))
        elif kind == 1:
            n = rng.randrange(len(marks) - 1)
            chosen.append(rng.randint(marks[n], marks[n + 1]))
        else:
            chosen.append(rng.randint(marks[0], era.ended))
    return chosen


def known_at(era: Era, cut: int, before: Truth | None = None) -> Truth:
    """What had been acknowledged at a moment of an era, and what had been sent in it at all."""
    truth = Truth() if before is None else Truth(list(before.acked), list(before.sent))
    truth.acked += [a for a in era.acked if a.at <= cut]
    truth.sent += era.sent
    return truth


def recovered(root: Path) -> Content:
    """Every batch of every partition after a recovery, which must leave all of them online."""
    found: Content = {}
    for slot in range(PARTITIONS):
        log = open_log(root, slot)
        assert log.recovery.state == "online", log.recovery.reason
        end = log.log_end_offset
        log.close()
        found[slot] = batches_of(root / directory_of(slot))
        last = found[slot][-1] if found[slot] else (0, 0, ())
        assert last[0] + len(last[2]) == end, "the log ends where its last batch does"
    return found


def faults(content: Content, truth: Truth) -> list[str]:
    """Everything that is wrong with a recovered log."""
    wrong = []
    by_values = {s.values: s for s in truth.sent}
    for slot, batches in content.items():
        at, epoch, seen = 0, 0, set[tuple[bytes, ...]]()
        last: dict[tuple[int, bytes], int] = {}
        for base, leader_epoch, values in batches:
            if base != at:
                wrong.append(f"{slot}: offset {base} follows {at}")
            if leader_epoch < epoch:
                wrong.append(f"{slot}: epoch {leader_epoch} follows {epoch} at offset {base}")
            sent = by_values.get(values)
            if sent is None or sent.slot != slot:
                wrong.append(f"{slot}: offset {base} was never sent")
            elif values in seen:
                wrong.append(f"{slot}: offset {base} is there twice")
            else:
                whose = (sent.client, values[0].split(b":")[0])
                if last.get(whose, -1) >= sent.seq:
                    wrong.append(f"{slot}: offset {base} is out of order")
                last[whose] = sent.seq
            seen.add(values)
            at, epoch = base + len(values), leader_epoch
        there = {base: values for base, _, values in batches}
        for acked in truth.acked:
            if acked.slot == slot and there.get(acked.offset) != acked.values:
                wrong.append(f"{slot}: acknowledged offset {acked.offset} is lost")
    return wrong


def check_cuts(era: Era, tmp_path: Path, rng: random.Random, count: int, seed: int) -> list[str]:
    """All faults at `count` moments."""
    found = []
    for n, cut in enumerate(moments(era, rng, count)):
        root = tmp_path / f"disk{n}"
        put_down(era.disk.image(cut, rng), root)
        try:
            wrong = faults(recovered(root), known_at(era, cut))
        except (AssertionError, ShmbrokerError) as error:
            wrong = [f"{type(error).__name__}: {error}"]
        found += [f"seed {seed}, cut {n} at {cut}: {fault}" for fault in wrong]
        if not wrong:
            shutil.rmtree(root)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_what_was_acknowledged_survives_the_power(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    era = work(tmp_path / "data", tmp_path / "trace", rng, "a", 80)
    assert len(era.acked) == len(era.sent)
    assert len({write.segment for write in era.writes}) > 2, "it rolled"
    assert any(len(write.data) > 16384 for write in era.writes), "writes of several batches"
    assert check_cuts(era, tmp_path, rng, 40, seed) == []


@pytest.mark.crash_long
@pytest.mark.parametrize("seed", range(100, 130))
def test_what_was_acknowledged_survives_the_power_at_length(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    era = work(tmp_path / "data", tmp_path / "trace", rng, "a", 200)
    assert check_cuts(era, tmp_path, rng, 150, seed) == []


def twice(tmp_path: Path, rng: random.Random, seed: int, rounds: int) -> None:
    """A second failure while the first one is being recovered from, or in what follows."""
    first = work(tmp_path / "data", tmp_path / "trace", rng, "a", 60)
    for n, cut in enumerate(moments(first, rng, rounds)):
        before = known_at(first, cut)
        root = tmp_path / f"first{n}"
        put_down(first.disk.image(cut, rng), root)
        second = work(root, tmp_path / f"trace{n}", rng, f"b{n}", 12)
        known = faults(batches(root), known_at(second, second.ended, before))
        assert known == [], f"seed {seed}, cut {n} at {cut}"
        held = {slot: [b for b in found if not b[2][0].startswith(b"b")]
                for slot, found in batches(root).items()}  # fmt: skip
        for m, again in enumerate(moments(second, rng, 6)):
            image = tmp_path / f"second{n}-{m}"
            put_down(second.disk.image(again, rng), image)
            content = recovered(image)
            what = f"seed {seed}, cut {n} at {cut}, then at {again}"
            assert faults(content, known_at(second, again, before)) == [], what
            if again >= second.began:  # what the recovery gave up stays away, what it kept stays
                old = {slot: [b for b in found if not b[2][0].startswith(b"b")]
                       for slot, found in content.items()}  # fmt: skip
                assert old == held, what
            shutil.rmtree(image)


def batches(root: Path) -> Content:
    """Every batch, without a recovery."""
    return {slot: batches_of(root / directory_of(slot)) for slot in range(PARTITIONS)}


@pytest.mark.parametrize("seed", range(2))
def test_a_second_failure_in_recovery_or_after_it_brings_nothing_back(
    tmp_path: Path, seed: int
) -> None:
    print(f"seed {seed}")
    twice(tmp_path, random.Random(1000 + seed), seed, 5)


@pytest.mark.crash_long
@pytest.mark.parametrize("seed", range(200, 220))
def test_a_second_failure_in_recovery_or_after_it_at_length(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    twice(tmp_path, random.Random(seed), seed, 20)


def test_without_rwf_dsync_acknowledged_records_are_lost(tmp_path: Path) -> None:
    """The check notices: the same writes, as if they did not bear the flag."""
    rng = random.Random(7)
    era = work(tmp_path / "data", tmp_path / "trace", rng, "a", 60)
    assert all(write.flags & 2 for write in era.writes)
    plain = [dataclasses.replace(write, flags=0) for write in era.writes]
    era.disk.traced(plain, directory_of)
    found = check_cuts(era, tmp_path, rng, 15, 7)
    assert any("is lost" in fault for fault in found), found


# --- the epoch rule ---


def exactly(size: int, letter: bytes) -> list[bytes]:
    """One value whose batch has so many bytes."""
    value = letter * (size - 100)
    while len(encode_batch([(1000, None, value, ())])) < size:
        value += letter
    assert len(encode_batch([(1000, None, value, ())])) == size
    return [value]


BLOCK = 8192


def ghost_after(tmp_path: Path, name: str, *, whole: bool = False) -> list[bytes]:
    """Tear the first batch of a write of several, recover, append one of its length, crash,
    recover. Returns the first bytes of the values that are there then."""
    data, trace = make(tmp_path / name), tmp_path / f"{name}.trace"
    with Recorder(data) as disk, Station(data, trace, inline=False) as station:
        load = Load(station, random.Random(1), "x")
        station.start(flushers=0)
        values = [exactly(BLOCK, letter) for letter in (b"A", b"B", b"C")]
        load.publish(load.clients[0], [(0, v) for v in values], acks=1)
        station.until(lambda: load.clients[0].receipts() == 3)
        assert station.rig.view.slot(0)["durable_offset"] == 0
        station.add_flusher()
        load.settle()
    (write,) = [w for w in read_trace(trace) if len(w.data) >= 3 * BLOCK]
    assert write.position == 0
    disk.traced(read_trace(trace), directory_of)
    before = disk.image(write.began - 1, random.Random(1))
    name_of = f"{directory_of(0)}/{0:020}.log"
    content = bytearray(before[name_of])
    if len(content) < len(write.data):
        content.extend(bytes(len(write.data) - len(content)))
    content[: len(write.data)] = write.data
    if not whole:
        content[512:1024] = bytes(512)  # this sector of the first batch never got there
    torn = tmp_path / f"{name}-torn"
    put_down({**before, name_of: bytes(content)}, torn)
    with Station(torn, tmp_path / f"{name}.trace2", inline=False) as station:
        assert station.part().state == "online", station.served[0].reason
        station.start(1)
        load = Load(station, random.Random(2), "y")
        load.publish(load.clients[0], [(0, exactly(BLOCK, b"D"))])
        load.settle()
    log = open_log(torn)
    assert log.recovery.state == "online", log.recovery.reason
    assert log.active is not None
    end = (log.active.base_offset, log.active.length)
    log.close()
    return [values[0][:1] for _, _, values in batches_of(torn / directory_of(0), limit=end)]


def make(path: Path) -> Path:
    path.mkdir()
    return path


def without_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a recovery should cut off stays in the file."""
    monkeypatch.setattr(Segment, "cut", lambda self, _length: os.fdatasync(self.fd))


def without_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recovery goes on under the epoch that it found."""
    real: Callable[..., Any] = recovery._store

    def store(run: Any, topic: str, partition: int, found: recovery.Recovered, *more: Any) -> Any:
        found.leader_epoch -= 1
        found.epochs = ()
        return real(run, topic, partition, found, *more)

    monkeypatch.setattr(recovery, "_store", store)


def test_the_rest_of_a_torn_write_never_comes_back(tmp_path: Path) -> None:
    assert ghost_after(tmp_path, "a", whole=True) == [b"A", b"B", b"C", b"D"]
    assert ghost_after(tmp_path, "b") == [b"D"]


def test_the_raised_epoch_alone_keeps_it_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_the_cut(monkeypatch)
    assert ghost_after(tmp_path, "a") == [b"D"]


def test_the_physical_cut_alone_keeps_it_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_the_epoch(monkeypatch)
    assert ghost_after(tmp_path, "a") == [b"D"]


def test_without_either_the_ghost_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the tests above would notice."""
    without_the_cut(monkeypatch)
    without_the_epoch(monkeypatch)
    assert ghost_after(tmp_path, "a") == [b"D", b"B", b"C"]


assert SETTINGS.max_message_bytes > BLOCK


# --- a real broker ---


def test_strace_of_a_real_broker_shows_rwf_dsync(broker: Any, tmp_path: Path) -> None:
    with broker.client() as client:
        client.create_topic("t")
        with client.producer() as producer:
            producer.send("t", b"first").result(timeout=40)
            out = tmp_path / "strace"
            (writer,) = broker.workers()
            words = ["-f", "-e", "trace=pwritev2", "-o", str(out), "-p", str(writer.pid)]
            with subprocess.Popen(["strace", *words], stderr=subprocess.PIPE, text=True) as strace:
                assert strace.stderr is not None
                said = strace.stderr.readline()
                assert "attached" in said, said
                for n in range(20):
                    producer.send("t", b"%d" % n).result(timeout=40)
                strace.send_signal(signal.SIGINT)
                strace.communicate(timeout=40)
    written = [line for line in out.read_text().splitlines() if "pwritev2(" in line]
    assert len(written) >= 20
    without = [line for line in written if "RWF_DSYNC" not in line]
    assert without == []
    assert "RWF_DSYNC) = 4096" in out.read_text()
