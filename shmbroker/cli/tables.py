"""Tables and JSON lines, as several commands print them."""

from __future__ import annotations

import sys
from typing import Any


def print_table(titles: list[str], rows: list[list[Any]]) -> None:
    """Numbers under their titles; the last column is words, as long as they are."""
    lines = [titles, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for *numbers, words in lines:
        aligned = [n.rjust(width) for n, width in zip(numbers, widths, strict=False)]
        print("  ".join(["", *aligned, words]))


def print_json(value: Any) -> None:
    """One object on a line of its own."""
    import orjson

    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()
