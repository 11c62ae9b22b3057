"""The numbers of the native protocol: versions, and a bound for everything that has a length.

Owns: what `docs/protocol.md` states as numbers. Both sides of both codecs use these, so no side
sends what the other refuses.
"""

from __future__ import annotations

from typing import Final

MIN_VERSION: Final = 1  # the oldest version of stream and ingress that this side speaks, inclusive
MAX_VERSION: Final = 1  # the newest, inclusive

TOKEN_BYTES: Final = 256
NAME_BYTES: Final = 256  # of a program, UTF-8
PROBLEM_BYTES: Final = 8 << 10  # an error's JSON
TOPIC_ID_BYTES: Final = 16

BATCH_OVERHEAD_BYTES: Final = 61  # the header of a record batch v2: the least that a batch has
BATCH_BYTES: Final = 32 << 20  # the largest `max.message.bytes`
STREAM_BYTES: Final = BATCH_BYTES  # of batches in one stream frame, so that any batch has room

RECEIVE_BYTES: Final = 256 << 10  # what one `receive_data` may bring
SUBSCRIPTIONS: Final = 1024  # of one connection
ACKNOWLEDGEMENTS: Final = 4096  # in one message
IN_FLIGHT: Final = 64  # batches of one session; what a partition remembers of each producer
WRITERS: Final = 1024  # that one session may have credit for

HEARTBEAT_MS: Final = 3_000  # silence after which a side says that it is there
DEAD_MS: Final = 9_000  # silence after which the other side is given up

U32_MAX: Final = (1 << 32) - 1
U64_MAX: Final = (1 << 64) - 1
