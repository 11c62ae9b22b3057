"""`consume --format TEMPLATE`: `str.format` over a record's plain fields, and nothing else.

Fields: topic, partition, offset, timestamp (ms since 1970; with a spec of `%`, local time), key,
value, headers (`name=value,name=value`). Text specs and numbers' specs as Python's; attributes,
indexes and nested fields are refused, and widths end at four digits: a template may come from
somewhere else than its user's head. Bytes that are not UTF-8 pass through unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from string import Formatter
from typing import Any, Final

from shmbroker._core.batch import Record

FIELDS: Final = ("topic", "partition", "offset", "timestamp", "key", "value", "headers")
_NUMBERS: Final = frozenset({"partition", "offset", "timestamp"})
_SPEC: Final = re.compile(r"(.?[<>=^])?[+\- ]?#?0?\d{0,4}[,_]?(\.\d{1,4})?[sdxXob]?")
_ESCAPES: Final = {r"\n": "\n", r"\t": "\t", r"\0": "\0", r"\\": "\\"}


class _Time(int):
    """Milliseconds; `{timestamp:%F %T}` formats them as local time."""

    def __format__(self, spec: str) -> str:
        if "%" in spec:
            return datetime.fromtimestamp(self / 1000).astimezone().strftime(spec)
        return int(self).__format__(spec)


def compile_template(text: str) -> Callable[[Record], bytes]:
    """What makes a line, without its end, of a record. Raises ValueError for what it can't be."""
    parts = list(Formatter().parse(text))  # raises for braces that don't match
    for _, name, spec, conversion in parts:
        if name is not None:
            _check(name, spec or "", conversion)
    ready = "".join(_part(*part) for part in parts)
    used = {name for _, name, _, _ in parts if name}

    def line(record: Record) -> bytes:
        values = {name: _text(name, getattr(record, name)) for name in used}
        return ready.format_map(values).encode("utf-8", "surrogateescape")

    sample = Record("t", 0, 0, 0, b"", b"")
    try:
        line(sample)  # a spec that a field can't have is found before anything is read
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{text!r}: {error}") from None
    return line


def _check(name: str, spec: str, conversion: str | None) -> None:
    if name not in FIELDS:
        what = repr(name) if name else "an empty field"
        raise ValueError(f"{what} is no field; there are: {', '.join(FIELDS)}")
    if conversion not in (None, "s", "r"):
        raise ValueError(f"'!{conversion}' is no conversion here; allowed: !s, !r")
    if name == "timestamp" and "%" in spec and "{" not in spec and len(spec) <= 64:
        return
    if not _SPEC.fullmatch(spec) or (name not in _NUMBERS and spec[-1:] in tuple("dxXob")):
        raise ValueError(
            f"{spec!r} is no format of {name}; like: {{{name}:>20}}"
            + (", {timestamp:%F %T}" if name == "timestamp" else "")
        )


def _part(literal: str, name: str | None, spec: str | None, conversion: str | None) -> str:
    text = re.sub(r"\\[nt0\\]", lambda found: _ESCAPES[found[0]], literal)
    text = text.replace("{", "{{").replace("}", "}}")
    if name is None:
        return text
    how = f"!{conversion}" if conversion else ""
    return f"{text}{{{name}{how}:{spec}}}" if spec else f"{text}{{{name}{how}}}"


def _text(name: str, value: Any) -> Any:
    if name == "timestamp":
        return _Time(value)
    if name == "headers":
        return ",".join(f"{n}={_decode(v)}" for n, v in value)
    return value if isinstance(value, (int, str)) else _decode(value)


def _decode(data: bytes | None) -> str:
    return "" if data is None else data.decode("utf-8", "surrogateescape")


__all__ = ["FIELDS", "compile_template"]
