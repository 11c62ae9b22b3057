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

from shmbroker.perf.case import Bench, Case, Sizes, written
from shmbroker.perf.clients import Receiver, Sender
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.values import ValueSpec

_TOPIC: Final = "checkpoints"
_LEAST_SHARE: Final = 0.95
_LEAST_COMMITS: Final = 100_000
_AIM: Final = 1.25 * _LEAST_COMMITS  # of what is made by hand
_PASSES: Final = 3  # a pass is short, and a share is of two of them
How = Literal["none", "by hand", "by itself"]
_WAYS: Final[tuple[How, ...]] = ("none", "by hand", "by itself")


class CheckpointingReceiver(Receiver):
    """The only member of a group, which has the whole topic; each round is a group of its own."""

    def round(self, how: How, count: int, every: int) -> float:
        """Seconds to read `count` records one by one."""
        self._rounds = getattr(self, "_rounds", 0) + 1
        with self.client.consumer(
            _TOPIC, group=f"bench-{self._rounds}", auto_checkpoint=how == "by itself"
        ) as consumer:
            next(consumer)
            left = count - 1
            began = time.perf_counter()
            if how == "by hand":
                checkpoint = consumer.checkpoint
                for record in consumer:
                    left -= 1
                    if not left % every:
                        checkpoint(record)
                    if not left:
                        break
            else:
                for _ in consumer:
                    left -= 1
                    if not left % every:  # as above, without the call
                        pass
                    if not left:
                        break
            took = time.perf_counter() - began
            consumer.poll(0)  # asks past the last
            (committed,) = consumer.committed().values()
            if how != "none" and committed != count:
                raise AssertionError(f"{how}: {count} were checkpointed, {committed} committed")
            return took


def _run(bench: Bench) -> list[Row]:
    spec, plan = ValueSpec(bench.sizes.values), bench.sizes.plan
    rates: dict[How, list[float]] = {how: [] for how in _WAYS}
    with bench.broker() as broker:
        with broker.connect() as client:
            client.create_topic(_TOPIC)
        with Remote(Sender, broker.address, _TOPIC, spec) as sender:
            sender.call("many")
        with Remote(CheckpointingReceiver, broker.address) as receiver:
            receiver.call("round", "none", spec.count, 16)  # the first is cold
            every = max(1, int(spec.count / receiver.call("round", "none", spec.count, 16) / _AIM))
            for n in range(plan.warmups + plan.rounds * (1 if plan.rounds == 1 else _PASSES)):
                for how in (*_WAYS[n % 3 :], *_WAYS[: n % 3]):
                    bench.say(f"checkpoints {how}")
                    took = receiver.call("round", how, spec.count, every)
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
