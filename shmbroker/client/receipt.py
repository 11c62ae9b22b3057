"""What send() and send_many() return, under the names that programs use. The types are the core's:
a receipt is a pointer to its batch, and costs a tenth of a Future of the standard library."""

from __future__ import annotations

from shmbroker._core.producer import ManyMetadata, ManyReceipt, Receipt, RecordMetadata

__all__ = ["ManyMetadata", "ManyReceipt", "Receipt", "RecordMetadata"]
