"""Latencies of records that were due at fixed times: rounds of them, HdrHistogram, percentiles.

Open loop: a record's latency runs from when it was due, not from when it was sent, so a system
that stalls is charged for every record that waited behind the stall (coordinated omission).
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from shmbroker.perf.rounds import Plan
from shmbroker.perf.values import ValueSpec

if TYPE_CHECKING:
    from shmbroker.perf.peers.mode import Mode
    from shmbroker.perf.peers.timed import Timed
    from shmbroker.perf.remote import Remote

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)
_MOST_NS: Final = 600 * 10**9
_DIGITS: Final = 3
_WARM_SHARE: Final = 0.2  # of the records come first and don't count
_ENOUGH: Final = 5  # records beyond a percentile, below which it says nothing


def percentiles(arrived: array[int], first_ns: int, rate: float, sent: int) -> dict[str, float]:
    """Microseconds by name ("p50 us" … "max us"); those for which there are too few are left out.

    `arrived[n]` is when the record came that was due at `first_ns` + n / `rate`. Raises
    AssertionError when one of the first `sent` did not come.
    """
    from hdrh.histogram import HdrHistogram

    histogram = HdrHistogram(1, _MOST_NS, _DIGITS)
    step = 1e9 / rate
    begin = int(sent * _WARM_SHARE)
    for number in range(begin, sent):
        if not arrived[number]:
            raise AssertionError(f"value {number} of {sent} never arrived")
        histogram.record_value(max(1, arrived[number] - first_ns - int(number * step)))
    counted = sent - begin
    found = {
        f"p{share:g} us": histogram.get_value_at_percentile(share) / 1e3
        for share in PERCENTILES
        if share == PERCENTILES[0] or counted * (100 - share) / 100 >= _ENOUGH
    }
    return found | {"max us": histogram.get_max_value() / 1e3}


def latencies(
    sender: Remote[Timed],
    receiver: Remote[Timed],
    topic: str,
    rate: float,
    spec: ValueSpec,
    mode: Mode,
    plan: Plan,
) -> list[dict[str, float]]:
    """All values of `spec` at `rate` a second into a topic that is there, a round each time.

    Of each round: percentiles in us, and "of the rate": what share of it was held.
    """
    sender.call("prepare", spec)
    receiver.call("listen", topic, mode)
    found = []
    for _ in range(plan.warmups + plan.rounds):
        with receiver.meanwhile("collect", spec.count) as collected:
            first, sent = sender.call("pace", topic, rate, spec.count, mode)
        of = {"of the rate": sent / spec.count}
        found.append(percentiles(collected[0], first, rate, sent) | of)
    return found[plan.warmups :]


__all__ = ["PERCENTILES", "latencies", "percentiles"]
