"""The client: one attachment of this process, from which producers and consumers are made.

Owns: the Connection, its metadata cache, and the list of what was made from it (closed with it).
Every method is thread-safe. Made before a fork, it raises ForkedError in the child.
"""

from __future__ import annotations

import os
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar, Unpack, overload

from shmbroker.client.admin import Admin
from shmbroker.client.local_connection import LocalConnection
from shmbroker.client.metadata import Metadata, TopicPartition
from shmbroker.errors import ForkedError, NoBroker
from shmbroker.places import Places

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from types import TracebackType
    from typing import Literal

    from shmbroker.client.connection import Connection
    from shmbroker.client.consumer import Consumer, Start
    from shmbroker.client.group_consumer import GroupConsumer
    from shmbroker.client.producer import Producer
    from shmbroker.client.serializing import (
        Deserializer,
        DeserializingConsumer,
        DeserializingGroupConsumer,
        Partitioner,
        Serializer,
        SerializingProducer,
    )

V = TypeVar("V")
_REMOTE_CONTROL = "remote-control"  # the Unix socket for programs that can't map shared memory


class _Reading(TypedDict, total=False):
    """The options of `Client.consumer` beside the deserializers."""

    partitions: list[int] | None
    start: Start
    isolation: Literal["durable", "appended"]
    on_gap: Literal["error", "earliest"]
    idle: Literal["adaptive", "spin", "park"]


class _Sharing(TypedDict, total=False):
    """The options of a group's member beside the deserializers."""

    pattern: str | None
    start: Literal["earliest", "latest", "error"] | datetime
    isolation: Literal["durable", "appended"]
    on_gap: Literal["error", "earliest"]
    idle: Literal["adaptive", "spin", "park"]
    auto_commit_ms: int | None
    auto_checkpoint: bool
    instance_id: str | None
    assignor: Literal["sticky", "range", "roundrobin"] | None
    session_timeout_ms: int | None
    rebalance_timeout_ms: int | None
    on_assign: Callable[[list[TopicPartition]], object] | None
    on_revoke: Callable[[list[TopicPartition]], object] | None
    on_lost: Callable[[list[TopicPartition]], object] | None


class _Closable(Protocol):
    def close(self) -> None: ...


def _kind_of_consumer(shares: bool, decodes: bool) -> Callable[..., Consumer]:
    """Which class; none is imported that is not needed."""
    if decodes:
        from shmbroker.client import serializing

        return (
            serializing.DeserializingGroupConsumer if shares else serializing.DeserializingConsumer
        )
    if shares:
        from shmbroker.client.group_consumer import GroupConsumer

        return GroupConsumer
    from shmbroker.client.consumer import Consumer

    return Consumer


def connect(
    instance: str | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    timeout: float = 5.0,
    reconnect_s: float = 30.0,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    keys: str | os.PathLike[str] | None = None,
    local: bool = True,
) -> Client:
    """Attaches to a broker: of this host, through shared memory, or elsewhere, over the network.

    `instance`: its name or its address (`Client.address`), or where it listens
    ("tcp://host:9300", "ipc:///run/…/remote-control"); else SHMBROKER_INSTANCE, else "default".
    `data_dir` (else SHMBROKER_DATA_DIR) says which data directory a broker of this host must serve.
    `timeout` (seconds) bounds attaching and each control request; `reconnect_s` is how long waits
    go on after the broker went away.

    Over the network: `token`, `token_file` (else SHMBROKER_TOKEN, else what this user's brokers on
    this host keep for their clients) or the directory `keys` (else SHMBROKER_KEYS) says who we are
    (docs/remote.md). Where the broker turns out to be one of this host and user, shared memory is
    taken instead, unless `local` is false; where the shared memory of a named one is not here (a
    container that has only its runtime directory), its Unix sockets. Raises NoBroker;
    AuthenticationFailed; ConfigError.
    """
    address = instance or os.environ.get("SHMBROKER_INSTANCE") or ""
    if "://" not in address:
        places = Places.find(instance, data_dir=data_dir)
        beside = Path(places.runtime_dir, _REMOTE_CONTROL)
        if local:
            try:
                return Client(_attach(places, data_dir, timeout, reconnect_s))
            except NoBroker as error:
                # The broker answered, and its shared memory is not here: as in a container.
                if not isinstance(error.__cause__, FileNotFoundError) or not beside.exists():
                    raise
        address, local = f"ipc://{beside}", False
    from shmbroker.client.remote.reach import reach

    return Client(
        reach(
            address,
            token=token,
            token_file=token_file,
            keys=keys,
            local=local,
            timeout=timeout,
            reconnect_s=reconnect_s,
        )
    )


def _attach(
    places: Places, data_dir: str | os.PathLike[str] | None, timeout: float, reconnect_s: float
) -> LocalConnection:
    asked = data_dir
    if not places.is_address:  # an address says which broker it is, whatever the environment says
        asked = asked or os.environ.get("SHMBROKER_DATA_DIR")
    connection = LocalConnection(places, timeout=timeout, reconnect_s=reconnect_s)
    serves = connection.attachment.data_dir
    if asked and os.path.realpath(serves) != os.path.realpath(places.data_dir):
        connection.close()
        raise NoBroker(
            places.instance,
            str(places.runtime_dir),
            f"the broker there serves {serves}, not {places.data_dir}",
        )
    return connection


class Client(Admin):
    """Made by `connect()`; close it, or use it as a context manager."""

    def __init__(self, connection: Connection) -> None:
        self._pid = os.getpid()
        self._connection = connection
        self._metadata = Metadata(connection)
        self._made: weakref.WeakSet[_Closable] = weakref.WeakSet()

    @property
    def connection(self) -> Connection:
        """The attachment, for producers and consumers."""
        return self._connection

    @property
    def metadata(self) -> Metadata:
        """The cache of topics, for producers and consumers."""
        return self._metadata

    @property
    def instance(self) -> str:
        """The name of the broker's instance."""
        return str(self._connection.attachment.instance)

    @property
    def address(self) -> str:
        """Where other processes of this user reach the same broker: connect(address), or
        --instance. An absolute path, or where a broker elsewhere listens."""
        return self._connection.address

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._connection.closed

    @overload
    def producer(
        self,
        *,
        partitioner: None = None,
        key_serializer: None = None,
        value_serializer: None = None,
        **options: Any,
    ) -> Producer: ...
    @overload
    def producer(
        self,
        *,
        partitioner: Partitioner | None = None,
        key_serializer: Serializer | None = None,
        value_serializer: Serializer | None = None,
        **options: Any,
    ) -> SerializingProducer: ...
    def producer(
        self,
        *,
        partitioner: Partitioner | None = None,
        key_serializer: Serializer | None = None,
        value_serializer: Serializer | None = None,
        **options: Any,
    ) -> Producer:
        """A producer; its options are Producer's: acks, compression, linger_ms, on_full …

        `partitioner(topic, key, partitions)` chooses where no partition is named; the serializers
        make buffers of what is sent as key and value (None stays None). What they raise comes as
        SerializationError.
        """
        self._connection.check()
        made: Producer
        if partitioner is None and key_serializer is None and value_serializer is None:
            from shmbroker.client.producer import Producer

            made = Producer(self, **options)
        else:
            from shmbroker.client.serializing import SerializingProducer

            made = SerializingProducer(
                self,
                partitioner=partitioner,
                key_serializer=key_serializer,
                value_serializer=value_serializer,
                **options,
            )
        self._made.add(made)
        return made

    @overload
    def consumer(
        self,
        *topics: str,
        group: str,
        value_deserializer: Callable[[bytes], V],
        key_deserializer: Deserializer | None = None,
        **options: Unpack[_Sharing],
    ) -> DeserializingGroupConsumer[V]: ...
    @overload
    def consumer(
        self,
        *topics: str,
        group: str,
        key_deserializer: Deserializer,
        **options: Unpack[_Sharing],
    ) -> DeserializingGroupConsumer[bytes]: ...
    @overload
    def consumer(self, *topics: str, group: str, **options: Unpack[_Sharing]) -> GroupConsumer: ...
    @overload
    def consumer(
        self,
        *topics: str,
        value_deserializer: Callable[[bytes], V],
        key_deserializer: Deserializer | None = None,
        **options: Unpack[_Reading],
    ) -> DeserializingConsumer[V]: ...
    @overload
    def consumer(
        self, *topics: str, key_deserializer: Deserializer, **options: Unpack[_Reading]
    ) -> DeserializingConsumer[bytes]: ...
    @overload
    def consumer(self, *topics: str, **options: Unpack[_Reading]) -> Consumer: ...
    def consumer(
        self,
        *topics: str,
        group: str | None = None,
        key_deserializer: Deserializer | None = None,
        value_deserializer: Callable[[bytes], Any] | None = None,
        **options: Any,
    ) -> Consumer:
        """A consumer of all (or the named) `partitions` of `topics`; or a member of a `group`.

        `start`: "latest" (the end as it is now), "earliest", an offset (one partition only), -n
        (the last n records of each), {partition: offset} (one topic only), or a datetime.
        `isolation`: "durable" sees what is on stable storage, "appended" what the broker has.
        `on_gap`: what to do when retention took the next record: OffsetOutOfRange, or go on at the
        earliest. `idle`: how it waits. With a deserializer (a function of bytes) keys or values
        come decoded: DeserializingConsumer.

        With `group` the partitions are shared with its other members, and reading begins at what
        the group has committed (docs/groups.md); where that is nothing, at `start`: "earliest" (by
        default, so that nothing is skipped), "latest", a datetime, or "error". Besides: `pattern`
        of topic names, `auto_commit_ms` (off by default), `auto_checkpoint` (each position that was
        asked past, through shared memory: see `checkpoint`), `instance_id` of a static member,
        `assignor` ("sticky", "range", "roundrobin"), `session_timeout_ms`, `rebalance_timeout_ms`,
        and `on_assign`, `on_revoke`, `on_lost`, called with the partitions by the reading thread.
        """
        self._connection.check()
        more = dict[str, Any]()
        if key_deserializer is not None or value_deserializer is not None:
            more = {"key_deserializer": key_deserializer, "value_deserializer": value_deserializer}
        made = _kind_of_consumer(group is not None, bool(more))(
            self, topics, **({} if group is None else {"group": group}), **options, **more
        )
        self._made.add(made)
        return made

    def close(self) -> None:
        """Closes what was made from this client, then hangs up; ends every wait. Twice is fine.

        Raises what a producer's close() raises (DeliveryError), after everything was closed.
        """
        if os.getpid() != self._pid:
            raise ForkedError("this client")
        failed: BaseException | None = None
        for made in list(self._made):
            try:
                made.close()
            except Exception as error:
                failed = failed or error
        self._connection.close()
        if failed is not None:
            raise failed

    def __enter__(self) -> Client:
        self._connection.check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
            return
        try:
            self.close()
        except Exception as second:  # what happened first is what the user must see
            if error is not None:
                error.add_note(f"closing the client failed too: {second}")

    def __del__(self) -> None:
        if getattr(self, "_pid", None) == os.getpid() and not self._connection.closed:
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:
                self._connection.close()

    def __repr__(self) -> str:
        state = (
            "closed" if self._connection.closed else f"client {self._connection.attachment.client}"
        )
        return f"<shmbroker.Client of {self.instance!r}, {state}>"


__all__ = ["Client", "connect"]
