"""Members of a group, the acceptor and writers are killed at random under a counting pipeline.

Local and remote members share one group. In the end every record of every partition was handed out
at least once; and none was handed out after a member had been told that the group's offset stands
behind it: what is repeated is no more than what was not committed.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from group_member import committed, topic_id

from shmbroker import errors

PARTITIONS = 4
PROGRAM = Path(__file__).parent.parent / "support" / "group_worker.py"
LIMIT_S = 60.0


@pytest.fixture
def broker_config() -> str:
    return (
        "[broker]\nwriters = 2\ncheckpoint_interval_ms = 300\n"
        '[listen]\nunix = true\n[supervision]\nrestart_backoff_ms = "50ms"\n'
    )


class Worker:
    """A member's process."""

    def __init__(self, broker: Any, diary: Path, remote: bool) -> None:
        broker.reach = "ipc" if remote else "local"
        where = broker.address if remote else broker.instance
        self.remote = remote
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), where, "t", str(diary)],
            env=broker.env,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def kill(self) -> None:
        """At once."""
        self.process.kill()
        self.process.communicate()

    def end(self) -> str:
        """In order; what it said on its way, if it did not end well."""
        _, said = self.process.communicate(timeout=LIMIT_S)
        return said.decode() if self.process.returncode else ""


class Pipeline(threading.Thread):
    """Sends numbered records without a pause until it is told to stop."""

    def __init__(self, client: Any) -> None:
        super().__init__(daemon=True)
        self.client, self.sent = client, 0
        self.stopping = threading.Event()
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            with self.client.producer() as producer:
                while not self.stopping.wait(0.001):
                    value = str(self.sent).encode()
                    producer.send("t", value, partition=self.sent % PARTITIONS)
                    self.sent += 1
                producer.flush()
        except BaseException as error:
            self.failed = error


def judge(diary: Path, sent: int) -> int:
    """Raises for what was skipped or wrongly repeated; returns how many were repeated."""
    handed: dict[int, dict[int, int]] = defaultdict(dict)
    stands: dict[int, int] = defaultdict(int)
    repeated = 0
    for line in diary.read_text().splitlines():
        what, *numbers = line.split()
        partition, offset, *value = map(int, numbers)
        if what == "C":
            stands[partition] = max(stands[partition], offset)
            continue
        assert offset >= stands[partition], (
            f"{partition}@{offset} was handed out, committed up to {stands[partition]}"
        )
        repeated += offset in handed[partition]
        assert handed[partition].setdefault(offset, value[0]) == value[0]
    for partition in range(PARTITIONS):
        values = [handed[partition][offset] for offset in sorted(handed[partition])]
        assert values == list(range(partition, sent, PARTITIONS)), f"partition {partition}"
    return repeated


def rounds(broker: Any, tmp_path: Path, seed: int, count: int, pause_s: float) -> None:
    """`count` deaths, and then the end."""
    dice = random.Random(seed)
    diary = tmp_path / "diary"
    diary.touch()
    broker.reach = "local"
    with broker.client(timeout=60) as client:
        client.create_topic("t", partitions=PARTITIONS)
        pipeline = Pipeline(client)
        pipeline.start()
        workers = [Worker(broker, diary, remote=bool(n % 2)) for n in range(3)]
        try:
            _wait_for(lambda: diary.stat().st_size > 2_000, workers, "the first records")
            victims = ["member", "acceptor", "writer"]
            for n in range(count):
                time.sleep(dice.uniform(0.0, pause_s))
                victim = victims[n] if n < len(victims) else dice.choice(victims)
                if victim == "member":
                    at = dice.randrange(len(workers))
                    workers[at].kill()
                    workers[at] = Worker(broker, diary, workers[at].remote)
                elif victim == "acceptor":
                    broker.kill9()
                    broker.start()
                elif writers := broker.workers():
                    dice.choice(writers).send_signal(signal.SIGKILL)
                size = diary.stat().st_size
                _wait_for(
                    lambda size=size: diary.stat().st_size > size + 500, workers, f"after {victim}"
                )
            pipeline.stopping.set()
            pipeline.join(LIMIT_S)
            assert pipeline.failed is None, pipeline.failed
            topic = topic_id(client)
            ends = {(topic, p): len(range(p, pipeline.sent, PARTITIONS)) for p in range(PARTITIONS)}
            _wait_for(lambda: _committed(client) == ends, workers, "all that was sent")
            said = [worker.end() for worker in workers]
            assert said == [""] * len(workers), said
        finally:
            pipeline.stopping.set()
            for worker in workers:
                if worker.process.returncode is None:
                    worker.kill()
            pipeline.join(LIMIT_S)
    judge(diary, pipeline.sent)


def _committed(client: Any) -> dict[tuple[str, int], int]:
    try:
        return committed(client)
    except (errors.GroupNotFound, errors.BrokerGone, errors.TimedOut):
        return {}


def _wait_for(done: Any, workers: list[Worker], what: str) -> None:
    until = time.monotonic() + LIMIT_S
    while not done():
        for worker in workers:
            if worker.process.poll() is not None:
                _, said = worker.process.communicate()
                pytest.fail(f"a member ended while waiting for {what}: {said.decode()}")
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.02)  # a file grows: there is no event to await


def test_nothing_is_skipped_and_no_committed_record_repeated_whoever_dies(
    broker: Any, tmp_path: Path
) -> None:
    rounds(broker, tmp_path, seed=1, count=3, pause_s=0.5)


@pytest.mark.crash_long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_skipped_through_many_deaths(broker: Any, tmp_path: Path, seed: int) -> None:
    rounds(broker, tmp_path, seed, count=25, pause_s=1.5)


def test_the_judge_sees_what_is_skipped_and_what_is_wrongly_repeated(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    whole = [f"H {n % PARTITIONS} {n // PARTITIONS} {n}" for n in range(40)]
    diary.write_text("\n".join([*whole, "H 0 9 36", "C 0 10"]))
    assert judge(diary, 40) == 1
    diary.write_text("\n".join(whole[:20] + whole[21:]))
    with pytest.raises(AssertionError, match="partition 0"):
        judge(diary, 40)
    diary.write_text("\n".join([*whole, "C 0 10", "H 0 9 36"]))
    with pytest.raises(AssertionError, match="committed up to 10"):
        judge(diary, 40)
