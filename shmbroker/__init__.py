"""shmbroker: a durable event log and message broker for one Linux host.

Hands on the names that programs use; the client behind them is loaded at the first use of one, so
that `import shmbroker` brings no CLI, log or plot library with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shmbroker import errors
from shmbroker.errors import *  # noqa: F403

if TYPE_CHECKING:
    from shmbroker import aio as aio
    from shmbroker.client import (
        Client,
        Consumer,
        GroupInfo,
        GroupListing,
        PartitionInfo,
        PartitionPressure,
        Pressure,
        Producer,
        Receipt,
        Record,
        RecordBatch,
        RecordMetadata,
        TopicInfo,
        TopicPartition,
        connect,
    )
    from shmbroker.client.group_consumer import GroupConsumer
    from shmbroker.embedded import embedded

__version__ = "0.1.0"

__all__ = [
    "Client",
    "Consumer",
    "GroupConsumer",
    "GroupInfo",
    "GroupListing",
    "PartitionInfo",
    "PartitionPressure",
    "Pressure",
    "Producer",
    "Receipt",
    "Record",
    "RecordBatch",
    "RecordMetadata",
    "TopicInfo",
    "TopicPartition",
    "connect",
    "embedded",
]
_LAZY = frozenset(__all__)
__all__ += errors.__all__


def __getattr__(name: str) -> Any:
    """Loads the client when one of its names is used first (PEP 562)."""
    if name == "aio":
        return import_module("shmbroker.aio")
    if name not in _LAZY:
        raise AttributeError(f"module 'shmbroker' has no attribute {name!r}")
    if name == "embedded":  # not part of the client: it starts processes
        value = import_module("shmbroker.embedded").embedded
    elif name == "GroupConsumer":  # most programs are in no group
        value = import_module("shmbroker.client.group_consumer").GroupConsumer
    else:
        from shmbroker import client

        value = getattr(client, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "aio"})
