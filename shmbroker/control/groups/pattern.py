r"""Patterns of topic names: regular expressions that are matched in time linear in the name.

A client's pattern is matched by the acceptor, whose one thread must not stand still; `re` takes
exponential time for some. So there are no back references and no look-around, as in RE2 (which
Kafka uses for the same reason): literals, `.`, `[a-z]`, `[^…]`, `\d`, `\w`, `\.`, `( | )`, `*`,
`+`, `?`, `{m}`, `{m,}`, `{m,n}`. A pattern is matched against the whole name; `^` at its beginning
and `$` at its end may stand there and change nothing.

Invariants: at most STATES_MAX states, so a match is at most that many steps a character; what was
found is kept as a table (a DFA made as it is needed) of at most TABLE_MAX sets.
Source: K. Thompson, Regular Expression Search Algorithm, CACM 11 (1968).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NoReturn

from shmbroker.errors import InvalidPattern

LENGTH_MAX: Final = 256  # characters of a pattern
STATES_MAX: Final = 512
TABLE_MAX: Final = 1024
_CHARS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"  # of topics
_ALL: Final = frozenset(_CHARS)
_CLASSES: Final = {
    "d": frozenset("0123456789"),
    "w": frozenset(_CHARS) - frozenset(".-"),
}
_NESTED_MAX: Final = 32

# What a parsed piece is: given the state that follows it, the state with which it begins.
_Piece = Callable[[int], int]


class Pattern:
    """A pattern, compiled. Raises InvalidPattern, with the place, for what can't be read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._at = 0
        self._nested = 0
        # state -> (characters, next) or, without characters, the states one is in as well
        self._chars: list[frozenset[str] | None] = []
        self._next: list[tuple[int, ...]] = []
        if not 1 <= len(text) <= LENGTH_MAX:
            raise InvalidPattern(
                f"a pattern has 1 to {LENGTH_MAX} characters, and this one {len(text)}",
                pattern=text[:LENGTH_MAX],
            )
        end = self._state(frozenset(), ())
        body = self._body()
        self._final = end
        self._table: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._begin = self._closed((body(end),))

    def matches(self, name: str) -> bool:
        """Whether the whole of `name` is what the pattern says."""
        states = self._begin
        for char in name:
            found = self._table.get((states, char))
            states = self._step(states, char) if found is None else found
            if not states:
                return False
        return self._final in states

    def _step(self, states: frozenset[int], char: str) -> frozenset[int]:
        after: list[int] = []
        for state in states:
            chars = self._chars[state]
            if chars is not None and char in chars:
                after += self._next[state]
        if len(self._table) >= TABLE_MAX:
            self._table.clear()
        closed = self._table[states, char] = self._closed(after)
        return closed

    def _closed(self, states: Iterable[int]) -> frozenset[int]:
        found: set[int] = set()
        todo = list(states)
        while todo:
            state = todo.pop()
            if state not in found:
                found.add(state)
                if self._chars[state] is None:
                    todo += self._next[state]
        return frozenset(found)

    def _state(self, chars: frozenset[str] | None, after: tuple[int, ...]) -> int:
        if len(self._chars) >= STATES_MAX:
            self._refuse(f"it is too large: its repetitions make more than {STATES_MAX} states")
        self._chars.append(chars)
        self._next.append(after)
        return len(self._chars) - 1

    # Reading the text

    def _body(self) -> _Piece:
        if self._peek() == "^":
            self._at += 1
        piece = self._either()
        if self._peek():
            self._refuse("this ) closes nothing")
        return piece

    def _either(self) -> _Piece:
        self._nested += 1
        if self._nested > _NESTED_MAX:
            self._refuse(f"more than {_NESTED_MAX} parentheses within each other")
        choices = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            choices.append(self._sequence())
        self._nested -= 1
        if len(choices) == 1:
            return choices[0]
        return lambda after: self._state(None, tuple(choice(after) for choice in choices))

    def _sequence(self) -> _Piece:
        pieces: list[_Piece] = []
        while self._peek() not in ("", "|", ")"):
            if self._peek() == "$" and self._at == len(self.text) - 1:
                self._at += 1
                break
            pieces.append(self._repeated(self._one()))

        def sequence(after: int) -> int:
            for piece in reversed(pieces):
                after = piece(after)
            return after

        return sequence

    def _one(self) -> _Piece:
        char = self._take()
        if char == "(":
            if self.text.startswith("?:", self._at):
                self._at += 2
            elif self._peek() == "?":
                self._refuse("look-around and named groups are not supported")
            inner = self._either()
            if self._peek() != ")":
                self._refuse("a ( is not closed")
            self._at += 1
            return inner
        if char in "*+?{":
            self._refuse(f"there is nothing before this {char} to repeat")
        if char in "^$":
            self._refuse(f"{char} may stand at the pattern's beginning or end only")
        chars = (
            _ALL
            if char == "."
            else self._set()
            if char == "["
            else self._escaped()
            if char == "\\"
            else frozenset(char)
        )
        return lambda after: self._state(chars, (after,))

    def _repeated(self, piece: _Piece) -> _Piece:
        char = self._peek()
        if char not in ("*", "+", "?", "{"):
            return piece
        self._at += 1
        low, high = {"*": (0, -1), "+": (1, -1), "?": (0, 1)}.get(char) or self._bounds()
        if self._peek() in ("*", "+", "?", "{") and self._peek():
            self._refuse("a repetition of a repetition; use parentheses")

        def repeated(after: int) -> int:
            if high < 0:  # a loop: filled in when its body is there
                loop = self._state(None, (after,))
                self._next[loop] = (after, piece(loop))
                after = loop
            for _ in range(high - low):
                after = self._state(None, (after, piece(after)))
            for _ in range(low):
                before, after = after, piece(after)
                if after == before:  # it is empty: no number of it makes a state
                    break
            return after

        return repeated

    def _bounds(self) -> tuple[int, int]:
        text, closed, _ = self.text[self._at :].partition("}")
        low, comma, high = text.partition(",")
        if not closed or not low.isdecimal() or (high and not high.isdecimal()):
            self._refuse("a repetition is {m}, {m,} or {m,n}")
        self._at += len(text) + 1
        bounds = (int(low), int(high) if high else -1 if comma else int(low))
        if max(bounds) > STATES_MAX or 0 <= bounds[1] < bounds[0]:
            self._refuse(f"{{{text}}} can't be: the first at most the second, {STATES_MAX} at most")
        return bounds

    def _set(self) -> frozenset[str]:
        negative = self._peek() == "^"
        self._at += negative
        chars: set[str] = set()
        first = True
        while first or self._peek() != "]":
            first = False
            low = self._take()
            if low == "\\":
                chars |= self._escaped()
            elif self._peek() == "-" and self.text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._take()
                if not low <= high:
                    self._refuse(f"{low}-{high} goes backwards")
                chars |= {c for c in _CHARS if low <= c <= high}
            else:
                chars.add(low)
        self._at += 1
        return _ALL - chars if negative else frozenset(chars)

    def _escaped(self) -> frozenset[str]:
        char = self._take()
        if char in _CLASSES:
            return _CLASSES[char]
        if char.lower() in _CLASSES:
            return _ALL - _CLASSES[char.lower()]
        if char.isalnum():
            self._refuse(f"\\{char} is not supported")
        return frozenset(char)

    def _peek(self) -> str:
        return self.text[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._peek()
        if not char:
            self._refuse("it ends too early")
        self._at += 1
        return char

    def _refuse(self, problem: str) -> NoReturn:
        raise InvalidPattern(
            f"pattern {self.text!r}, at character {self._at + 1}: {problem}", pattern=self.text
        )


__all__ = ["LENGTH_MAX", "STATES_MAX", "Pattern"]
