"""Lines out of a stream, many at a time, in constant memory.

A block is whatever one read gives, at most BLOCK_BYTES: a file is read in large pieces, and what
somebody types is there at once. A line that is split over blocks is put together again; one that
is longer than LINE_BYTES_MAX, which no topic may take, is dropped while it is read and named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

BLOCK_BYTES: Final = 1 << 20
LINE_BYTES_MAX: Final = 32 << 20  # the largest max.message.bytes there is

TooLong = Callable[[int], None]


def line_blocks(
    stream: BinaryIO, delimiter: bytes, too_long: TooLong, read: Callable[[int], None]
) -> Iterator[tuple[int, list[bytes]]]:
    """(number of the first line, from 1; lines without their delimiter), block by block.

    `too_long` is told the numbers of lines that were dropped, `read` of bytes taken in. What stands
    behind the last delimiter is a line if it is not empty.
    """
    number = 1
    pieces: list[bytes] = []  # of a line whose end has not come yet
    held = 0
    # A pipe gives what there is; a file as much as was asked for.
    more = getattr(stream, "read1", stream.read)
    while block := more(BLOCK_BYTES):
        read(len(block))
        lines = block.split(delimiter)
        rest = lines.pop()
        if not lines:
            held += len(block)
            if held <= LINE_BYTES_MAX:
                pieces.append(rest)
            else:
                pieces.clear()
            continue
        if held + len(lines[0]) > LINE_BYTES_MAX:
            too_long(number)
            number += 1
            del lines[0]
        elif pieces:
            lines[0] = b"".join([*pieces, lines[0]])
        pieces, held = [rest], len(rest)
        if lines:
            yield number, lines
            number += len(lines)
    if held > LINE_BYTES_MAX:
        too_long(number)
    elif last := b"".join(pieces):
        yield number, [last]


def one_byte(text: str) -> bytes:
    r"""A delimiter as somebody writes it on a command line: `,`, `\n`, `\t`, `\0` or `\x1f`.

    Raises ValueError unless it is one byte.
    """
    try:
        found = text.encode("utf-8", "surrogateescape")
        if text.startswith("\\"):
            found = text.encode("ascii").decode("unicode_escape").encode("latin-1")
    except UnicodeError:
        found = b""
    if len(found) != 1:
        raise ValueError(rf"{text!r} is not one byte; like: ';' '\n' '\t' '\0' '\x1f'")
    return found


__all__ = ["BLOCK_BYTES", "LINE_BYTES_MAX", "line_blocks", "one_byte"]
