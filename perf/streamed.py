"""A consumer whose records come by streams, and all else over shared memory.

So that what is measured of a remote consumer is its own: the receiver, the feeds, and the reading
out of them. Tests use it too, where a real reader process is what matters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shmbroker.client.client import Client
from shmbroker.client.local_connection import LocalConnection
from shmbroker.client.metadata import Metadata
from shmbroker.client.remote.data_port import DataPort
from shmbroker.client.remote.source import RemoteSource
from shmbroker.client.remote.streams import Streams
from shmbroker.client.source import Source
from shmbroker.perf.clients import Address, Receiver
from shmbroker.perf.streams import TOKEN
from shmbroker.places import Places


class StreamedConnection(LocalConnection):
    """A local attachment whose consumers read from the data port that `port` tells."""

    def __init__(self, places: Places, port: Callable[[], DataPort], **options: Any) -> None:
        super().__init__(places, **({"timeout": 5.0, "reconnect_s": 30.0} | options))
        self.streams = Streams(port, self.reconnect_s)

    def source(self, metadata: Metadata) -> Source:
        """Streams, wherever the broker is."""
        return RemoteSource(self, metadata, self.streams)

    def close(self) -> None:
        """Hangs up everywhere."""
        super().close()
        if hasattr(self, "streams"):
            self.streams.close()


class StreamedReceiver(Receiver):
    """A Receiver of perf/clients.py over the streams of a ReaderProcess at `port`."""

    def __init__(self, address: Address, port: int) -> None:
        super().__init__(address)
        broker_id = self.client.connection.attachment.dir_id
        where = DataPort((f"tcp://127.0.0.1:{port}",), TOKEN, broker_id, None, "bench")
        places = Places.find(address[0], data_dir=address[1])
        self.client.close()
        self.client = Client(StreamedConnection(places, lambda: where))


__all__ = ["StreamedConnection", "StreamedReceiver"]
