"""Redis's fastest Python client, in a process of its own: hiredis on a socket.

hiredis is redis-py's own packer and parser, in C. What redis-py adds costs more than the server
does: here its `pipeline` took 95,000 XADD a second (130,000 in transactions, 180,000 by the
connection below it), hiredis 300,000 to 570,000; it read 500,000 entries a second, hiredis
1,000,000. A record is the pair that hiredis makes of it, `[id, [field, value]]`.

1,000 XADD are one transaction, and four of these on their way: all are acknowledged by the reply
to EXEC, and with `appendfsync always` the server syncs once for them, which is twice as fast as a
plain pipeline, of which it syncs after each 16 KiB that it reads. Transactions of 500 to 10,000
were tried, 1 to 8 on their way, and a script with 200 to 5,000 values (a third slower).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.mode import Mode

_BATCH: Final = 1000  # records of a transaction, and of a reply
_BATCH_BYTES: Final = 1 << 20  # of their values, at most
_AHEAD: Final = 4  # transactions on their way
_LOOK_MS: Final = 100
_RECEIVE_BYTES: Final = 1 << 20
_MANY: Final = 10_000  # records of one reply to a reader at the end


class _Connection:
    """Commands out, replies in, in order. Waits as long as it takes: who calls has a limit."""

    def __init__(self, address: str) -> None:
        import hiredis

        self.pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command
        self._error = hiredis.HiredisError
        self._reader = hiredis.Reader()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)

    def send(self, data: bytes) -> None:
        """Commands that are packed already."""
        self._socket.sendall(data)

    def reply(self) -> Any:
        """The next; waits for it. Raises what the server answers as an error."""
        while (found := self._reader.gets()) is False:
            if not (data := self._socket.recv(_RECEIVE_BYTES)):
                raise ConnectionError("the server hung up")
            self._reader.feed(data)
        return self._checked(found)

    def _checked(self, found: Any) -> Any:
        if isinstance(found, self._error):
            raise found
        return found

    def ask(self, *command: Any) -> Any:
        """Sends one command; its reply."""
        self.send(self.pack(command))
        return self.reply()

    def look(self) -> None:
        """Takes the replies that are there, without waiting; raises errors among them."""
        try:
            self._reader.feed(self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return
        while (found := self._reader.gets()) is not False:
            self._checked(found)

    def close(self) -> None:
        self._socket.close()


class _Transactions:
    """XADDs gathered into MULTI … EXEC, a few of these on their way."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._multi = connection.pack((b"MULTI",))
        self._exec = connection.pack((b"EXEC",))
        self._sizes: list[int] = []  # records of those on their way

    def send(self, commands: list[bytes]) -> None:
        """One more; waits for the oldest when too many are on their way."""
        self._connection.send(b"".join([self._multi, *commands, self._exec]))
        self._sizes.append(len(commands))
        if len(self._sizes) >= _AHEAD:
            self._acknowledged()

    def end(self) -> None:
        """Returns when all are acknowledged."""
        while self._sizes:
            self._acknowledged()

    def _acknowledged(self) -> None:
        count = self._sizes.pop(0)
        reply = self._connection.reply
        for _ in range(1 + count):  # OK, and a QUEUED for each
            reply()
        ids = reply()
        if ids is None or len(ids) != count or not all(type(each) is bytes for each in ids):
            raise RuntimeError(f"a transaction of {count} records was not taken: {ids!r:.200}")


class RedisClient(Client):
    """One stream a topic, entries of one field."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._connection = _Connection(address)
        self._paced: _Connection | None = None

    def create(self, topic: str, mode: Mode) -> None:
        """The first entry makes it."""
        self._connection.ask(b"PING")

    def forget(self, topic: str) -> None:
        self._connection.ask(b"UNLINK", topic)

    def send_many(self, topic: str, values: list[bytes], mode: Mode) -> None:
        connection, pack = self._connection, self._connection.pack
        sent = _Transactions(connection)
        batch = _batch(values)
        for at in range(0, len(values), batch):
            sent.send([pack((b"XADD", topic, b"*", b"v", v)) for v in values[at : at + batch]])
        sent.end()

    def send_each(self, topic: str, values: list[bytes], mode: Mode) -> None:
        """A packed command each; what has gathered goes out as one transaction."""
        pack, batch = self._connection.pack, _batch(values)
        sent = _Transactions(self._connection)
        gathered: list[bytes] = []
        for value in values:
            gathered.append(pack((b"XADD", topic, b"*", b"v", value)))
            if len(gathered) == batch:
                sent.send(gathered)
                gathered = []
        if gathered:
            sent.send(gathered)
        sent.end()

    def sender(self, topic: str, mode: Mode) -> Callable[[bytes], None]:
        """An XADD at once; waits for no reply."""
        if self._paced is None:
            self._paced = _Connection(self._address)
        send, look, pack = self._paced.send, self._paced.look, self._paced.pack

        def one(value: bytes) -> None:
            send(pack((b"XADD", topic, b"*", b"v", value)))
            look()

        return one

    def tail(self, topic: str, mode: Mode) -> Iterator[list[bytes]]:
        connection = _Connection(self._address)
        try:
            newest = connection.ask(b"XREVRANGE", topic, b"+", b"-", b"COUNT", 1)
            last = newest[0][0] if newest else b"0"
            yield []
            while True:
                found = connection.ask(b"XREAD", b"COUNT", _MANY, b"BLOCK", _LOOK_MS,
                                       b"STREAMS", topic, last)  # fmt: skip
                entries = found[0][1] if found else []
                if entries:
                    last = entries[-1][0]
                yield [fields[1] for _id, fields in entries]
        finally:
            connection.close()

    def values(self, topic: str, count: int) -> Iterator[list[bytes]]:
        for entries in self._entries(topic, count):
            yield [entry[1][1] for entry in entries]

    def records(self, topic: str, count: int) -> Iterator[list[bytes]]:
        for entries in self._entries(topic, count):
            yield [fields[1] for _id, fields in entries]

    def _entries(self, topic: str, count: int) -> Iterator[list[Any]]:
        """A range after the other, the next asked for as soon as its beginning is known."""
        connection = _Connection(self._address)
        try:
            entries = connection.ask(b"XRANGE", topic, b"-", b"+", b"COUNT", _BATCH)
            while entries and (count := count - len(entries)) > 0:
                after = b"(" + entries[-1][0]
                connection.send(connection.pack((b"XRANGE", topic, after, b"+", b"COUNT", _BATCH)))
                yield entries
                entries = connection.reply()
            yield entries
        finally:
            connection.close()

    def close(self) -> None:
        self._connection.close()
        if self._paced is not None:
            self._paced.close()


def _batch(values: list[bytes]) -> int:
    """Records of a transaction; values are of one size."""
    return max(1, min(_BATCH, _BATCH_BYTES // max(1, len(values[0])))) if values else 1


__all__ = ["RedisClient"]
