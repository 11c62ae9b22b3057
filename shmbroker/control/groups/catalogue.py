"""What topics there are, and which of them a subscription means.

Invariants: a pattern is matched once against each topic's name, however many members have it; the
number of patterns that are remembered is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shmbroker.control.groups.pattern import Pattern
from shmbroker.control.groups.values import Subscription, TopicView

_PATTERNS_MAX: Final = 4096


class Catalogue:
    """The topics, by name and by id."""

    def __init__(self, topics: Iterable[TopicView] = ()) -> None:
        self._by_name: dict[str, TopicView] = {t.name: t for t in topics}
        self._patterns: dict[str, tuple[Pattern, set[str]]] = {}  # with the names that match
        self.counts: dict[str, int] = {}  # topic id -> partitions
        self.names: dict[str, str] = {}  # topic id -> name
        self._index()

    def replace(self, topics: Iterable[TopicView]) -> bool:
        """Takes the topics as they are now; whether that is another state than before."""
        now = {topic.name: topic for topic in topics}
        if now == self._by_name:
            return False
        new, gone = now.keys() - self._by_name.keys(), self._by_name.keys() - now.keys()
        for pattern, matching in self._patterns.values():
            matching -= gone
            matching.update(filter(pattern.matches, new))
        self._by_name = now
        self._index()
        return True

    def read_by(self, wants: Subscription) -> frozenset[str]:
        """The ids of the topics that a subscription means now; raises InvalidPattern."""
        names: set[str] = set(wants.topics)
        if wants.pattern is not None:
            names |= self._matching(wants.pattern)
        return frozenset(self._by_name[n].topic_id for n in names if n in self._by_name)

    def _matching(self, text: str) -> set[str]:
        found = self._patterns.get(text)
        if found is None:
            pattern = Pattern(text)
            if len(self._patterns) >= _PATTERNS_MAX:
                del self._patterns[next(iter(self._patterns))]
            found = (pattern, set(filter(pattern.matches, self._by_name)))
            self._patterns[text] = found
        return found[1]

    def _index(self) -> None:
        self.counts = {t.topic_id: t.partitions for t in self._by_name.values()}
        self.names = {t.topic_id: t.name for t in self._by_name.values()}


__all__ = ["Catalogue"]
