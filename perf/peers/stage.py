"""A running server of one mode with its two client processes, and the rounds that are run on it.

Whatever is sent in measured rounds to a system that keeps it is read back afterwards, and its
checksum compared. A round whose values are not acknowledged (acks none, systems that keep nothing)
ends with the last value received.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from shmbroker.perf.case import Bench
from shmbroker.perf.peers.effort import Effort
from shmbroker.perf.peers.latency import latencies
from shmbroker.perf.peers.memory import Watch
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.peer import Peer, Server
from shmbroker.perf.peers.timed import Timed
from shmbroker.perf.remote import Remote
from shmbroker.perf.values import ValueSpec

_TRIALS: Final = 100  # values of the first trial; the next has ten times as many
_TRIAL_SHARE: Final = 0.2  # of a round's time, which a trial must take to be believed
_LIMIT_S: Final = 300.0  # of a client's call, beyond what rounds are made to take


@dataclass(slots=True)
class Stage:
    """What workloads work with."""

    bench: Bench
    effort: Effort
    peer: Peer
    mode: Mode
    server: Server
    sender: Remote[Timed]
    receiver: Remote[Timed]
    _topics: int = 0
    _filled: dict[int, tuple[str, int]] = field(default_factory=dict)  # size -> topic, records

    @property
    def drained(self) -> bool:
        """Whether a round ends with the last value received: nobody says when it is taken."""
        return self.mode.acks == "none" or not self.peer.stores

    @property
    def measured(self) -> str:
        """What a round's time is, in words."""
        if self.drained:
            return "until all were received by another process, checksum equal"
        return "until all are acknowledged; read back, checksum equal"

    def create(self, purpose: str) -> str:
        """A new topic; its name."""
        self._topics += 1
        name = f"{purpose}{self._topics}"
        self.sender.call("create", name, self.mode)
        return name

    def forget(self, topic: str) -> None:
        """Nothing more is done with it: what it holds may go."""
        self.sender.call("forget", topic)

    def _fitting(self, how: str, topic: str, count: int) -> int:
        """How many values make a round: `count`, or what takes about `round_s` of the effort.

        Judged by trials, which are warm-ups as well. The first only connects: what it takes says
        nothing of a rate.
        """
        trial, limit_s = min(count, _TRIALS), self.effort.round_s
        self._round(how, topic, trial)
        while True:
            took_s = trial / self._round(how, topic, trial)
            if trial == count or took_s > _TRIAL_SHARE * limit_s:
                return max(1, min(count, int(trial * limit_s / took_s)))
            trial = min(count, 10 * trial)

    def rounds(self, how: str, spec: ValueSpec) -> tuple[list[float], int]:
        """Records a second of each round, and the values in one."""
        self.sender.call("prepare", spec)
        trial = self._opened("trial")
        count = self._fitting(how, trial, spec.count)
        self.forget(trial)
        topic, plan = self._opened(how), self.effort.plan
        rates = [self._round(how, topic, count) for _ in range(plan.warmups + plan.rounds)]
        if not self.drained:
            self._verify(topic, count, len(rates))
        if how == "many" and spec.value_bytes == self.effort.sizes[0]:
            self._filled[spec.value_bytes] = topic, count * len(rates)
        else:
            self.forget(topic)
        return rates[plan.warmups :], count

    def memory(self, spec: ValueSpec) -> int:
        """The most that the server held in rounds which nobody times, after its trials."""
        self.sender.call("prepare", spec)
        topic = self._opened("memory")
        with Watch(self.server) as watch:
            count = self._fitting("many", topic, spec.count)
            for _ in range(self.effort.plan.rounds):
                self._round("many", topic, count)
        self.forget(topic)
        return watch.most_bytes

    def latencies(self, rate: int, spec: ValueSpec) -> list[dict[str, float]]:
        """Of each round: percentiles in us, and "of the rate": what share of it was held."""
        topic, plan = self.create("paced"), self.effort.plan
        found = latencies(self.sender, self.receiver, topic, rate, spec, self.mode, plan)
        self.forget(topic)
        return found

    def full(self, size: int) -> tuple[str, int]:
        """A topic of measured values of that size, and how many; raises when there is none."""
        if size not in self._filled:
            raise RuntimeError("there is no topic to read, because producing it failed")
        return self._filled[size]

    def _opened(self, purpose: str) -> str:
        """A new topic, with the receiver at its end where it must see what is sent."""
        topic = self.create(purpose)
        if self.drained:
            self.receiver.call("listen", topic, self.mode)
        return topic

    def _round(self, how: str, topic: str, count: int) -> float:
        """Records a second."""
        if not self.drained:
            acked: tuple[int, int] = self.sender.call("send", how, topic, count, self.mode)
            return count * 1e9 / (acked[1] - acked[0])
        with self.receiver.meanwhile("drain", count) as drained:
            sent: tuple[int, int] = self.sender.call("send", how, topic, count, self.mode)
        until, checksum = drained[0]
        if checksum != self.sender.call("checksum", count):
            raise AssertionError(f"{topic}: what arrived is not what was sent")
        return count * 1e9 / (int(until) - sent[0])

    def _verify(self, topic: str, count: int, times: int) -> None:
        """Reads back what was sent so many times; raises AssertionError when it differs."""
        self.receiver.start("stored", topic, count * times)
        wanted = self.sender.call("checksum", count, times)
        if self.receiver.finish() != wanted:
            raise AssertionError(f"{topic}: what is stored is not what was sent")


@contextlib.contextmanager
def staged(bench: Bench, effort: Effort, peer: Peer, mode: Mode) -> Iterator[Stage]:
    """The server of a mode, up with two clients; on exit all of it is gone, its data too."""
    directory = bench.home / f"{peer.name}-{mode.name}"
    directory.mkdir()
    try:
        with peer.start(directory, mode) as server:
            bench.guard(server)
            with _client(peer, server) as sender, _client(peer, server) as receiver:
                yield Stage(bench, effort, peer, mode, server, sender, receiver)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _client(peer: Peer, server: Server) -> Remote[Timed]:
    made = peer.client
    path = [str(each) for each in peer.path]
    client = Remote(Timed, path, made.__module__, made.__qualname__, server.address)
    client.limit_s = _LIMIT_S
    return client


__all__ = ["Stage", "staged"]
