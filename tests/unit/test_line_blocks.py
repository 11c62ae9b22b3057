"""Lines out of a stream: the same lines however the blocks fall."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbroker._core.batch import Record
from shmbroker.cli import line_blocks as module
from shmbroker.cli.line_blocks import line_blocks, one_byte
from shmbroker.cli.record_json import from_json, to_json
from shmbroker.cli.template import compile_template


class _Pieces(io.RawIOBase):
    """A stream whose reads give these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]

    def read(self, _size: int = -1) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


def _lines(pieces: list[bytes], delimiter: bytes = b"\n") -> tuple[list[bytes], list[int]]:
    found: list[bytes] = []
    dropped: list[int] = []
    for number, lines in line_blocks(_Pieces(pieces), delimiter, dropped.append, lambda _n: None):
        assert number == len(found) + len(dropped) + 1
        found += lines
    return found, dropped


@given(st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"a", b"\n")), max_size=20))
def test_lines_are_those_of_the_whole_however_it_is_cut(pieces: list[bytes]) -> None:
    whole = b"".join(pieces).split(b"\n")
    assert _lines(pieces)[0] == (whole if whole[-1] else whole[:-1])


def test_a_line_beyond_the_limit_is_named_and_the_next_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LINE_BYTES_MAX", 10)
    found, dropped = _lines([b"a\n", b"x" * 8, b"x" * 8, b"xx\nb\n", b"1234567890\n", b"y" * 11])
    assert found == [b"a", b"b", b"1234567890"]
    assert dropped == [2, 5]


def test_a_delimiter_is_one_byte() -> None:
    given = {r"\n": b"\n", r"\0": b"\0", r"\x1f": b"\x1f", ";": b";", r"\t": b"\t"}
    assert {text: one_byte(text) for text in given} == given
    for wrong in ("", "ab", "é", r"\xzz", "\\"):
        with pytest.raises(ValueError, match="one byte"):
            one_byte(wrong)


@given(
    st.none() | st.binary(max_size=9),
    st.none() | st.binary(max_size=9),
    st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=5)), max_size=3),
)
def test_a_record_survives_its_json(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    record = Record("t", 3, 42, 1_700_000_000_000, key, value, headers)
    found = from_json(to_json(record))
    assert found == (value, key, headers, 1_700_000_000_000, 3)


def test_a_template_passes_bytes_that_are_no_text_through() -> None:
    line = compile_template(r"{key!r}\t{value}{{}} {timestamp:%Y}")
    record = Record("t", 0, 0, 1_700_000_000_000, b"k", b"\xff\xfe")
    assert line(record) == b"'k'\t\xff\xfe{} 2023"
