"""The same values dealt out over a topic's partitions again and again, each round read back whole.

The sending is timed by the sender's process; the reading back, which also waits until all of it is
durable, is not.
"""

from __future__ import annotations

from shmbroker.perf.clients import Receiver, Sender
from shmbroker.perf.remote import Remote


class Spread:
    """A topic that was empty, who sends to it and who reads it."""

    def __init__(
        self,
        sender: Remote[Sender],
        receiver: Remote[Receiver],
        topic: str,
        count: int,
        partitions: int,
    ) -> None:
        """`count`: of the sender's values, dealt out equally; the rest is left out."""
        self._sender, self._receiver, self._topic = sender, receiver, topic
        self._expected = dict(enumerate(sender.call("part_checksums", partitions)))
        self._each = count // partitions
        self._offset = 0  # in each partition
        self.count = self._each * partitions

    def round(self) -> float:
        """Seconds until all were acknowledged; AssertionError when something else came out."""
        took = float(self._sender.call("spread", len(self._expected)))
        start = dict.fromkeys(self._expected, self._offset)
        if self._receiver.call("checksums", self._topic, start, self.count) != self._expected:
            raise AssertionError(f"{self._topic}: what came out is not what went in")
        self._offset += self._each
        return took


__all__ = ["Spread"]
