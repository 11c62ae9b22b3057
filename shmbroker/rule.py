"""What one setting may be: its kind, its bounds, and the words for saying so.

Owns: turning a raw value (TOML's, an environment variable's or a flag's text, a Kafka setting) into
the value the code uses, and the sentence of what is allowed, which errors and `docs/` share.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from shmbroker.addresses import ADDRESS_ALLOWED, parse_address
from shmbroker.units import (
    BYTES_ALLOWED,
    TIME_ALLOWED,
    format_bytes,
    format_ms,
    parse_bytes,
    parse_ms,
    parse_s,
)

Kind = Literal["count", "bytes", "ms", "s", "bool", "word", "address"]


def _count(raw: Any) -> int:
    if isinstance(raw, str) and re.fullmatch(r"\s*-?[0-9]{1,20}\s*", raw, re.ASCII):
        raw = int(raw)
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise ValueError(f"{raw!r} is no whole number")
    return raw


def _bool(raw: Any) -> bool:
    if isinstance(raw, str) and raw.strip().lower() in ("true", "false"):
        return raw.strip().lower() == "true"
    if not isinstance(raw, bool):
        raise ValueError(f"{raw!r} is neither true nor false")
    return raw


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"{raw!r} is no text")
    return raw


_PARSERS: Final[dict[str, Callable[[Any], Any]]] = {
    "count": _count,
    "bytes": parse_bytes,
    "ms": parse_ms,
    "s": parse_s,
    "bool": _bool,
    "word": _text,
    "address": parse_address,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """`low` and `high` are inclusive and in the base unit; `words` are allowed besides numbers."""

    kind: Kind
    low: int = 0
    high: int = 2**63 - 1
    words: tuple[str, ...] = ()
    multiple_of: int = 1
    unlimited: bool = False  # -1 stands for "no limit", as in Kafka
    free_text: bool = False  # a word that is not listed is allowed too: a path

    def parse(self, raw: Any) -> Any:
        """The value to use; ValueError names the problem, without what is allowed."""
        if isinstance(raw, str) and raw in self.words:
            return raw
        if self.kind == "word" and not self.free_text:
            raise ValueError(f"{raw!r} is not known")
        try:
            value = _PARSERS[self.kind](raw)
        except ValueError as error:
            raise ValueError(str(error).split("; allowed:")[0]) from None
        if self.kind in ("bool", "word", "address") or (self.unlimited and value == -1):
            return value
        if not self.low <= value <= self.high:
            raise ValueError(f"{raw!r} is out of range")
        if value % self.multiple_of:
            raise ValueError(f"{raw!r} is no multiple of {self.format(self.multiple_of)}")
        return value

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        choices = ", ".join(f'"{word}"' for word in self.words if word)
        if self.kind == "word":
            return choices or "a text"
        if self.kind == "address":
            return ADDRESS_ALLOWED
        if self.kind == "bool":
            return "true, false" + (f", {choices}" if choices else "")
        how = {"bytes": BYTES_ALLOWED, "ms": TIME_ALLOWED, "s": TIME_ALLOWED}.get(
            self.kind, "a whole number"
        )
        bounds = f"at least {self.format(self.low)}"
        if self.high < 2**62:
            bounds = f"{self.format(self.low)} to {self.format(self.high)}"
        if self.multiple_of > 1:
            bounds += f" in multiples of {self.format(self.multiple_of)}"
        more = ", -1 for no limit" if self.unlimited else ""
        return f"{how}, {bounds}{more}" + (f", or {choices}" if choices else "")

    def format(self, value: Any) -> str:
        """The value as a person would write it."""
        if self.kind == "bytes" and isinstance(value, int):
            return format_bytes(value)
        if self.kind == "ms" and isinstance(value, int):
            return format_ms(value)
        if self.kind == "s" and isinstance(value, (int, float)):
            return f"{value:g}s"
        return str(value).lower() if isinstance(value, bool) else str(value)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` when something known is close to `name`, otherwise nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


__all__ = ["Kind", "Rule", "did_you_mean"]
