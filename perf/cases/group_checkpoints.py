"""Checkpoints through shared memory: what they cost a local consumer, and how many it makes.

One consumer reads the same hot records, one by one, in alternating rounds: without checkpoints,
with some more than 100,000 a second by hand, and with each position stored as it is asked past.
The limit of the latter two is the first, in the same round; after each, not timed, the coordinator
must say the offset that was stored last.
"""

from __future__ import annotations

import statistics
import time
from typing import Final, Literal

from shmbroker.client.checkpoints import MemberCheckpoints
from shmbroker.control.groups.messages import Fetch, FetchAnswer, Heartbeat, HeartbeatAnswer
from shmbroker.control.groups.values import Subscription
from shmbroker.perf.case import Bench, Case, Sizes, written
from shmbroker.perf.clients import Receiver, Sender
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.values import ValueSpec

_TOPIC: Final = "checkpoints"
_GROUP: Final = "bench"
_SESSION_MS: Final = 300_000  # nobody beats during a round
_LEAST_SHARE: Final = 0.95
_LEAST_COMMITS: Final = 100_000
_AIM: Final = 1.25 * _LEAST_COMMITS  # of what is made by hand
_PASSES: Final = 3  # a pass is short, and a share is of two of them
How = Literal["none", "by hand", "by itself"]
_WAYS: Final[tuple[How, ...]] = ("none", "by hand", "by itself")


class CheckpointingReceiver(Receiver):
    """The only member of a group, which has the whole topic."""

    def join(self) -> None:
        """Joins, and has its slots."""
        wants, beat = Subscription((_TOPIC,)), HeartbeatAnswer(0, 0, 0, 0)
        while beat.assignment is None or not beat.assignment:
            said = self.client.connection.request(
                "group_heartbeat",
                **Heartbeat(
                    _GROUP, "one", beat.epoch, wants=None if beat.epoch else wants,
                    session_timeout_ms=None if beat.epoch else _SESSION_MS,
                ).to_args(),
            )  # fmt: skip
            beat = HeartbeatAnswer.from_ok(said)
            time.sleep(0.01)
        self.member = MemberCheckpoints(self.client.connection, _GROUP, "one")
        topic = self.client.metadata.get(_TOPIC).id
        self.member.take([(_TOPIC, topic, 0)], beat.epoch)

    def round(self, how: How, count: int, every: int) -> float:
        """Seconds to read `count` records one by one."""
        slots = self.member.slots
        with self.client.consumer(_TOPIC, start="earliest") as consumer:
            if how != "none":
                consumer._checkpoints, consumer._stores_itself = slots, how == "by itself"
            records = iter(consumer)
            next(records)
            left = count - 1
            began = time.perf_counter()
            if how == "by hand":
                store = slots.store
                for record in records:
                    left -= 1
                    if not left % every:
                        store(_TOPIC, record.partition, record.offset + 1)
                    if not left:
                        break
            else:
                for _ in records:
                    left -= 1
                    if not left % every:  # as above, without the call
                        pass
                    if not left:
                        break
            took = time.perf_counter() - began
            if how == "by itself":
                consumer._ask()  # as the call for the next record does
            return took

    def committed(self) -> int:
        """What the coordinator says."""
        said = self.client.connection.request("fetch_offsets", **Fetch(_GROUP).to_args())
        return next((c.offset for c in FetchAnswer.from_ok(said).committed.values()), -1)


def _run(bench: Bench) -> list[Row]:
    spec, plan = ValueSpec(bench.sizes.values), bench.sizes.plan
    rates: dict[How, list[float]] = {how: [] for how in _WAYS}
    with bench.broker() as broker:
        with broker.connect() as client:
            client.create_topic(_TOPIC)
        with Remote(Sender, broker.address, _TOPIC, spec) as sender:
            sender.call("many")
        with Remote(CheckpointingReceiver, broker.address) as receiver:
            receiver.call("join")
            receiver.call("round", "none", spec.count, 16)  # the first is cold
            every = max(1, int(spec.count / receiver.call("round", "none", spec.count, 16) / _AIM))
            for n in range(plan.warmups + plan.rounds * (1 if plan.rounds == 1 else _PASSES)):
                for how in (*_WAYS[n % 3 :], *_WAYS[: n % 3]):
                    bench.say(f"checkpoints {how}")
                    took = receiver.call("round", how, spec.count, every)
                    if how != "none" and receiver.call("committed") != spec.count:
                        raise AssertionError(f"{how}: the last checkpoint was not committed")
                    if n >= plan.warmups:
                        rates[how].append(spec.count / took)
    bare = statistics.median(rates["none"])
    return [
        _row("by hand", f"a checkpoint every {every} records, by hand", rates, every, bare),
        _row("by itself", "each position stored as it is asked past", rates, 1, bare),
    ]


def _row(how: How, figure: str, rates: dict[How, list[float]], every: int, bare: float) -> Row:
    shares = [one / other for one, other in zip(rates[how], rates["none"], strict=True)]
    share, commits = statistics.median(shares), statistics.median(rates[how]) / every
    return Row(
        case="group-checkpoints",
        figure=f"consumer, hot, one by one, {figure}",
        unit="records/s",
        values=tuple(rates[how]),
        limit=Limit("without checkpoints, same round", bare, "records/s"),
        ratio=share,
        target=f">= {_LEAST_COMMITS:,} commits/s, >= {_LEAST_SHARE:.0%} of the speed",
        met=commits >= _LEAST_COMMITS and share >= _LEAST_SHARE,
        note=f"{commits / 1e6:.2f} M commits/s",
        more={"commits_per_s": commits},
    )


def _space(sizes: Sizes) -> int:
    return written(sizes.values, 100)


CASES: Final = (Case("group-checkpoints", "a local member's checkpoints", _run, _space),)

__all__ = ["CASES", "CheckpointingReceiver"]
