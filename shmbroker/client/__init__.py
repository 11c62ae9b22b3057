"""Everything that a Python program uses; names only, the work is in the modules."""

from shmbroker._core.batch import Record
from shmbroker._core.reader import RecordBatch
from shmbroker.client.client import Client, connect
from shmbroker.client.consumer import Consumer
from shmbroker.client.group_admin import GroupInfo, GroupListing
from shmbroker.client.group_consumer import GroupConsumer
from shmbroker.client.metadata import PartitionInfo, TopicInfo, TopicPartition
from shmbroker.client.pressure import Pressure
from shmbroker.client.producer import Producer
from shmbroker.client.receipt import Receipt, RecordMetadata
from shmbroker.control.pressure import PartitionPressure

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
]
