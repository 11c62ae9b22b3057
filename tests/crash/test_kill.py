"""kill -9 of a producer, a writer, the acceptor, everything, at random moments under load.

What was acknowledged is there once, in order per producer and partition, with the offset that the
receipt said. acks="memory" is meant too: the rings outlive every process. A producer without
sequences may have duplicates only of what it was not told. A consumer that follows through all of
it is handed exactly what stands on disk in the end, each record once and in order.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from writer_rig import batches_of

from shmbroker._core import shm
from shmbroker.config import shm_prefix

Broker = Any
PARTITIONS = 3
TOPIC = "t"
PROGRAM = Path(__file__).parent.parent / "support" / "kill_producer.py"
KINDS: dict[str, dict[str, object]] = {
    "durable": {},
    "memory": {"acks": "memory"},
    "plain": {"acks": "memory", "idempotent": False},
}
VICTIMS = ("producer", "writer", "acceptor", "everything")
LIMIT_S = 60.0


@pytest.fixture
def broker_config() -> str:
    return "[broker]\nwriters = 2\ncheckpoint_interval_ms = 300\n"


@dataclass
class Diary:
    """What a producer wrote down."""

    acked: dict[tuple[int, int], int] = field(default_factory=dict)  # (partition, offset) -> n
    unknown: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)
    not_taken: dict[int, str] = field(default_factory=dict)
    ended: int | None = None


class Producer:
    """A producer's process and its log."""

    def __init__(self, broker: Broker, root: Path, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.rebooted = False  # the host has forgotten what was not durable
        self.log = root / f"{name}.acks"
        self.log.touch()
        words = [broker.instance, TOPIC, name, str(PARTITIONS), str(self.log)]
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *words, json.dumps(KINDS[kind])],
            env=broker.env,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def wait_for_more(self, lines: int = 300) -> None:
        """Until it was told of so many more records."""
        size, deadline = self.log.stat().st_size + 8 * lines, time.monotonic() + LIMIT_S
        while self.log.stat().st_size < size:
            assert self.process.poll() is None, f"{self.name} ended: {self.said()}"
            assert time.monotonic() < deadline, f"{self.name} ({self.kind}) gets no further"
            time.sleep(0.002)  # a file can't be waited for with less

    def said(self) -> str:
        """Its standard error, once it has ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def stop(self) -> None:
        """Its input closes: it settles everything and ends."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"{self.name} ({self.kind}) did not settle: {self.said()}")
        said = self.said()
        assert self.process.returncode == 0, f"{self.name} ({self.kind}): {said}"

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Its pipes, and it if it is left."""
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def diary(self) -> Diary:
        """What it wrote."""
        found = Diary()
        text = self.log.read_text()
        for line in text[: text.rfind("\n") + 1].splitlines():
            kind, *words = line.split(" ", 3)
            if kind == "A":
                partition, offset, n = map(int, words)
                assert found.acked.setdefault((partition, offset), n) == n
            elif kind == "U":
                found.unknown.add(int(words[1]))
            elif kind == "E":
                found.ended = int(words[0])
            else:
                what = found.failed if kind == "F" else found.not_taken
                what[int(words[1])] = words[2]
        return found


class Load:
    """Producers of all kinds."""

    def __init__(self, broker: Broker, root: Path) -> None:
        self.broker, self.root = broker, root
        self.all: list[Producer] = []

    def start(self, kind: str) -> None:
        """One more producer."""
        self.all.append(Producer(self.broker, self.root, f"{kind}{len(self.all)}", kind))

    @property
    def alive(self) -> list[Producer]:
        return [p for p in self.all if p.process.returncode is None]

    def flows(self) -> None:
        """Until each was told of more."""
        for producer in self.alive:
            producer.wait_for_more()


class Follower:
    """A consumer of everything, in a thread of its own, over all deaths of the broker."""

    def __init__(self, client: Any) -> None:
        self.seen: dict[int, list[bytes | None]] = {p: [] for p in range(PARTITIONS)}
        self.error: BaseException | None = None
        self._consumer = client.consumer(TOPIC, start="earliest")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for batch in self._consumer.batches():
                mine = self.seen[batch.partition]
                assert batch.base_offset == len(mine), f"{batch.base_offset} follows {len(mine)}"
                mine += batch.values()
        except BaseException as error:
            self.error = error

    def reach(self, ends: dict[int, int]) -> None:
        """Until it has seen all up to `ends`."""
        deadline = time.monotonic() + LIMIT_S
        while any(len(self.seen[p]) < end for p, end in ends.items()):
            assert self.error is None, f"the consumer ended: {self.error!r}"
            assert time.monotonic() < deadline, {p: len(seen) for p, seen in self.seen.items()}
            time.sleep(0.005)

    def close(self) -> None:
        """Ends its wait."""
        self._consumer.close()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "close() did not end the consumer's wait"


def objects(broker: Broker) -> list[str]:
    """What is in shared memory of that broker."""
    path = broker.places.data_dir / "datadir.json"
    return shm.list_prefix(shm_prefix(json.loads(path.read_text())["data_dir_id"]))


def kill(broker: Broker, load: Load, victim: str, rng: random.Random) -> None:
    """Kills it and brings it back."""
    if victim == "producer":
        rng.choice(load.alive).kill()
        load.start(rng.choice(list(KINDS)))
    elif victim == "writer":
        psutil.Process(rng.choice(broker.workers()).pid).send_signal(signal.SIGKILL)
    else:
        everything = victim in ("everything", "reboot")
        fresh: tuple[str, ...] = ()
        if victim == "reboot" or (everything and rng.random() < 0.5):  # also the producers
            for producer in load.alive:
                os.kill(producer.process.pid, signal.SIGKILL)
            broker.kill9(everything=True)
            for producer in load.alive:
                producer.process.wait()
            fresh = tuple(KINDS)
            if victim == "reboot":
                for name in objects(broker):
                    shm.unlink(name)
                for producer in load.all:
                    producer.rebooted = True
        else:
            broker.kill9(everything=everything)
        broker.start()
        for kind in fresh:
            load.start(kind)


def check(broker: Broker, load: Load, follower: Follower) -> list[str]:
    """Everything that is wrong with what is on disk, compared with the diaries."""
    wrong: list[str] = []
    there: dict[tuple[int, int], bytes] = {}
    times: Counter[bytes] = Counter()
    for partition in range(PARTITIONS):
        at, last, seen = 0, dict[bytes, int](), follower.seen[partition]
        for base, _, values in batches_of(broker.places.data_dir / f"{TOPIC}-{partition}"):
            if base != at:
                wrong.append(f"{partition}: offset {base} follows {at}")
            for n, value in enumerate(values):
                there[partition, base + n] = value
                name, number = value.split(b":")
                if times[value] == 0 and last.get(name, -1) >= int(number):
                    wrong.append(f"{partition}: {value!r} is out of order at {base + n}")
                if int(number) % PARTITIONS != partition:
                    wrong.append(f"{partition}: {value!r} does not belong here")
                last[name] = max(last.get(name, -1), int(number))
                times[value] += 1
            # It was closed when it had seen what was durable then; what a killed producer had
            # published, and what was appended only, has become durable after that.
            saw = seen[at : at + len(values)]
            if saw != list(values)[: len(saw)]:
                wrong.append(f"{partition}: the consumer saw something else from {at} on")
            at = base + len(values)
        if len(seen) > at:
            wrong.append(f"{partition}: the consumer saw {len(seen)} records of {at}")
    for producer in load.all:
        wrong += [f"{producer.name}: {w}" for w in check_one(producer, there, times)]
    return wrong


def check_one(
    producer: Producer, there: dict[tuple[int, int], bytes], times: Counter[bytes]
) -> list[str]:
    """The same for one producer."""
    diary, wrong = producer.diary(), []
    told = set(diary.acked.values())
    kept = producer.kind == "durable" or not producer.rebooted
    for (partition, offset), n in diary.acked.items() if kept else ():
        value = b"%s:%d" % (producer.name.encode(), n)
        found = there.get((partition, offset))
        if found != value:
            wrong.append(f"acknowledged {n} at {partition}/{offset}, where {found!r} stands")
        if times[value] != 1:
            wrong.append(f"acknowledged {n} is there {times[value]} times")
    mine = {v: c for v, c in times.items() if v.startswith(producer.name.encode() + b":")}
    if producer.kind != "plain":
        wrong += [f"{v!r} is there {c} times" for v, c in mine.items() if c > 1]
    else:
        again = {int(v.split(b":")[1]) for v, c in mine.items() if c > 1}
        if diary.ended is not None:
            wrong += [f"{n} is there twice, and was not unknown" for n in again - diary.unknown]
    refused = diary.failed | diary.not_taken
    wrong += [f"{n} was not sent: {why}" for n, why in refused.items()]
    if diary.ended is not None:
        if producer.kind != "plain" and diary.unknown:
            wrong.append(f"outcome unknown of {len(diary.unknown)}, first {min(diary.unknown)}")
        missing = set(range(diary.ended)) - told - diary.unknown - set(refused)
        if missing:
            wrong.append(f"never told of {len(missing)}, first {min(missing)}")
    if not told:
        wrong.append("nothing was acknowledged")
    return wrong


def round_of(broker: Broker, root: Path, victims: list[str], seed: int) -> None:
    """Load, kills, more load; then everything must be right, and nothing left."""
    rng = random.Random(seed)
    print(f"seed {seed}: {victims}")
    with broker.client() as client:
        client.create_topic(TOPIC, partitions=PARTITIONS, config={"segment.bytes": 1 << 20})
    load = Load(broker, root)
    with broker.client() as client:
        follower = Follower(client)
        try:
            for kind in KINDS:
                load.start(kind)
            load.flows()
            for victim in victims:
                left = [psutil.Process(p.process.pid) for p in load.alive]
                psutil.wait_procs(left, rng.random() / 3)
                kill(broker, load, victim, rng)
                load.flows()
            for producer in load.alive:
                producer.stop()
            with client.consumer(TOPIC) as consumer:
                follower.reach({key.partition: n for key, n in consumer.end_offsets().items()})
        finally:
            for producer in load.all:
                producer.close()
            follower.close()
    broker.stop()
    assert objects(broker) == []
    assert broker.processes() == []
    found = check(broker, load, follower)
    assert found == [], f"seed {seed} {victims}: {len(found)} faults\n" + "\n".join(found[:20])


def plan(seed: int) -> list[str]:
    """Each victim alone first, then several in a row."""
    if seed % 5 < 4:
        return [VICTIMS[seed % 5]]
    return random.Random(seed).choices(VICTIMS, k=5)


@pytest.mark.parametrize("seed", range(5))
def test_what_was_acknowledged_survives_kill_9(broker: Broker, tmp_path: Path, seed: int) -> None:
    round_of(broker, tmp_path, plan(seed), seed)


@pytest.mark.parametrize("seed", range(2))
def test_what_was_durable_survives_a_new_boot(broker: Broker, tmp_path: Path, seed: int) -> None:
    """Shared memory is gone with every process: the log is recovered from disk."""
    round_of(broker, tmp_path, ["reboot"] * (1 + seed), seed)


@pytest.mark.crash_long
@pytest.mark.parametrize("seed", range(5, 60))
def test_what_was_acknowledged_survives_kill_9_at_length(
    broker: Broker, tmp_path: Path, seed: int
) -> None:
    round_of(broker, tmp_path, plan(seed), seed)
