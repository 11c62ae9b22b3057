"""Where each key of a TOML document stands, which `tomllib` does not tell.

Owns: the map from a key's path, as a tuple of names, to the line (from 1) on which the key is
written; a table's header counts as the place of the table. It understands what can hide a key or
look like one: comments, quoted and dotted keys, multi-line strings and arrays, inline tables, and
arrays of tables, whose elements share the path (the first one's line is kept).

The text must have passed `tomllib` before: this module looks for places and judges nothing.
Source of the grammar: the TOML 1.0.0 specification.
"""

from __future__ import annotations

import re
import tomllib
from typing import Final

Path = tuple[str, ...]

_BLANK: Final = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")  # between two statements, or in an array
_SPACE: Final = re.compile(r"[ \t]*")
_KEY: Final = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_STRING: Final = re.compile(
    r'"""(?:[^\\]|\\[\s\S])*?"{3,5}(?!")'
    r"|'''[\s\S]*?'{3,5}(?!')"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
)
_BARE: Final = re.compile(r"[^,\]}#\n]*")  # a number, a date or a boolean


def key_lines(text: str) -> dict[Path, int]:
    """The line of each key and table of a valid document; a path seen twice keeps its first."""
    return _Scanner(text).document()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text.replace("\r\n", "\n")
        self._at = 0
        self._lines: dict[Path, int] = {}

    def document(self) -> dict[Path, int]:
        table: Path = ()
        while True:
            self._skip(_BLANK)
            if self._at >= len(self._text):
                return self._lines
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        brackets = 2 if self._text.startswith("[[", self._at) else 1
        line = self._line()
        self._at += brackets
        table = self._path()
        self._note((), table, line)
        self._at += brackets
        return table

    def _pair(self, table: Path) -> None:
        line = self._line()
        key = self._path()
        self._note(table, key, line)
        self._at += 1  # the equals sign
        self._skip(_SPACE)
        self._value(table + key)

    def _path(self) -> Path:
        """A dotted key, up to and without what follows it."""
        names: list[str] = []
        while True:
            self._skip(_SPACE)
            word = self._take(_KEY)
            # A quoted name may hold escapes; TOML's own reader knows them all.
            names.append(next(iter(tomllib.loads(f"{word} = 0"))) if word[:1] in "\"'" else word)
            self._skip(_SPACE)
            if self._text[self._at : self._at + 1] != ".":
                return tuple(names)
            self._at += 1

    def _value(self, path: Path) -> None:
        first = self._text[self._at]
        if first in "\"'":
            self._take(_STRING)
        elif first == "[":
            self._items("]", path)
        elif first == "{":
            self._items("}", path)
        else:
            self._take(_BARE)

    def _items(self, closing: str, path: Path) -> None:
        """An array, or an inline table, whose keys are noted under `path`."""
        self._at += 1
        while True:
            self._skip(_BLANK)
            here = self._text[self._at]
            if here == closing:
                self._at += 1
                return
            if here == ",":
                self._at += 1
            elif closing == "}":
                self._pair(path)
            else:
                self._value(path)

    def _note(self, table: Path, key: Path, line: int) -> None:
        for length in range(1, len(key) + 1):  # `a.b = 1` also makes `a`
            self._lines.setdefault(table + key[:length], line)

    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise ValueError(f"no TOML at line {self._line()}: tomllib must have read it first")
        self._at = match.end()
        return match[0]


__all__ = ["Path", "key_lines"]
