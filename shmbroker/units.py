"""Quantities as people write them, parsed once into the base unit of their key.

Owns: the spellings `7d`, `1h30m`, `5ms`, `512MiB`, `64KB` and how each base unit is printed again.
A plain number is in the base unit, which is the last part of the key's name: `retention.ms` is in
milliseconds, `drain_s` in seconds, `flush_max_bytes` in bytes. No unit is guessed: `7` is 7 of the
base unit and `7x` an error that lists what is allowed.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

_BYTES: Final = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_MS: Final = {
    "us": Fraction(1, 1000),
    "ms": Fraction(1),
    "s": Fraction(1000),
    "m": Fraction(60_000),
    "min": Fraction(60_000),
    "h": Fraction(3_600_000),
    "d": Fraction(86_400_000),
    "w": Fraction(7 * 86_400_000),
}
BYTES_ALLOWED: Final = 'bytes as a number or like "64KiB", "512MiB", "1GiB", "10MB"'
TIME_ALLOWED: Final = 'a number or a time like "5ms", "30s", "15m", "12h", "7d", "1h30m"'
_NUMBER_AND_UNIT: Final = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)\s*([a-zA-Z]*)", re.ASCII)


def parse_bytes(value: int | str) -> int:
    """Bytes out of a number or a text with a unit; ValueError says what is allowed."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"{value!r} is no size; allowed: {BYTES_ALLOWED}")
    if isinstance(value, int):
        return value
    text = value.strip()
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    match = _NUMBER_AND_UNIT.fullmatch(digits)
    factor = _BYTES.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{value!r} is no size; allowed: {BYTES_ALLOWED}")
    size = Fraction(match[1].replace("_", "")) * factor
    if size.denominator != 1:
        raise ValueError(f"{value!r} is no whole number of bytes")
    return sign * int(size)


def parse_ms(value: float | str) -> int:
    """Milliseconds out of a number (of milliseconds) or a text with units."""
    ms = _time_ms(value, base="ms")
    if ms.denominator != 1:
        raise ValueError(f"{value!r} is no whole number of milliseconds")
    return int(ms)


def parse_s(value: float | str) -> float:
    """Seconds out of a number (of seconds) or a text with units."""
    return float(_time_ms(value, base="s") / 1000)


def format_bytes(size: int) -> str:
    """The shortest exact spelling: 4194304 is "4MiB", 1000 is "1000"."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = _BYTES[unit.lower()]
        if size >= factor and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def format_ms(ms: int) -> str:
    """The shortest exact spelling: 604800000 is "7d", 1500 is "1500ms"."""
    for unit in ("d", "h", "m", "s"):
        factor = int(_MS[unit])
        if ms >= factor and ms % factor == 0:
            return f"{ms // factor}{unit}"
    return f"{ms}ms" if ms > 0 else str(ms)


def about_bytes(size: float) -> str:
    """Bytes as a person reads them: "1.5 MiB"."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"


def about_s(seconds: float) -> str:
    """A time as a person reads it: "12 ms", "3.4 s", "5 min"."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h" if hours < 48 else f"{hours // 24} days"


def _time_ms(value: float | str, *, base: str) -> Fraction:
    problem = f"{value!r} is no time; allowed: {TIME_ALLOWED}"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(problem)
    try:
        if isinstance(value, (int, float)):
            return Fraction(value) * _MS[base]
        text = value.strip()
        sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
        if re.fullmatch(r"[0-9][0-9_]*(\.[0-9]+)?", digits, re.ASCII):
            return sign * Fraction(digits.replace("_", "")) * _MS[base]
        total, at = Fraction(0), 0
        while at < len(digits):
            match = _NUMBER_AND_UNIT.match(digits, at)
            if match is None:
                raise ValueError(problem)
            total += Fraction(match[1].replace("_", "")) * _MS[match[2].lower()]
            at = match.end()
    except (KeyError, ValueError, OverflowError):  # also a float that is inf or nan
        raise ValueError(problem) from None
    if not digits:
        raise ValueError(problem)
    return sign * total


__all__ = [
    "BYTES_ALLOWED",
    "TIME_ALLOWED",
    "about_bytes",
    "about_s",
    "format_bytes",
    "format_ms",
    "parse_bytes",
    "parse_ms",
    "parse_s",
]
