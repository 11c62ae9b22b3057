"""Figures of systems that differ by four orders of magnitude, for people."""

from __future__ import annotations

from typing import Final

#: unit: from which value on, (divisor, text after the number, decimals)
_STEPS: Final[dict[str, tuple[tuple[float, float, str, int], ...]]] = {
    "records/s": ((1e6, 1e6, " M/s", 2), (1e4, 1e3, " k/s", 0), (0, 1, " /s", 0)),
    "us": ((1e6, 1e6, " s", 2), (1e4, 1e3, " ms", 0), (1e3, 1e3, " ms", 1), (1e2, 1, " us", 0),
           (0, 1, " us", 1)),
    "bytes": ((0, 1 << 20, " MiB", 0),),
}  # fmt: skip


def said(value: float, unit: str) -> str:
    """A value with its unit, in as many digits as mean something."""
    for least, divisor, text, decimals in _STEPS[unit]:
        if value >= least:
            return f"{value / divisor:,.{decimals}f}{text}"
    return f"{value:,.4g}"


__all__ = ["said"]
