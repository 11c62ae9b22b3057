"""Latencies of records that were due at fixed times: HdrHistogram, percentiles, a row.

Open loop: a record's latency runs from when it was due, not from when it was sent, so a system
that stalls is charged for every record that waited behind the stall (coordinated omission).
"""

from __future__ import annotations

from array import array
from typing import Final

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


__all__ = ["PERCENTILES", "percentiles"]
