"""A place in a log, as people write it."""

from __future__ import annotations

import re
from datetime import datetime

import typer


def place_of(
    text: str, option: str, *, words: tuple[str, ...] = (), below_end: bool = True
) -> str | int | datetime:
    """One of `words`, an offset, -N (records before the end, if `below_end`), or a time with its
    zone; BadParameter for anything else."""
    if text in words:
        return text
    if re.fullmatch(r"-?[0-9]{1,18}" if below_end else r"[0-9]{1,18}", text, re.ASCII):
        return "latest" if text.startswith("-") and int(text) == 0 else int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        known = [*words, "an offset", *(["-N"] if below_end else [])]
        raise typer.BadParameter(
            f"{text!r}; allowed: {', '.join(known)}, or a time like 2026-01-31T12:00",
            param_hint=option,
        ) from None
    return at if at.tzinfo is not None else at.astimezone()
