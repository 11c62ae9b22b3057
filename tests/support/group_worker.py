"""A member of a consumer group that is made to be killed: `group_worker.py WHERE TOPIC DIARY`.

Writes every record that it is handed down, and every commit that was answered, into a diary that
all members share: one line a time, appended whole by the kernel, so the order of the lines is the
order in which it happened. Ends in order when its standard input does.

    H partition offset value        it was handed this record
    C partition offset              it was told that the group's offset stands there
"""

from __future__ import annotations

import os
import sys
import threading
import time

import shmbroker
from shmbroker import errors

EVERY = 25  # records between two commits


def main() -> None:
    """One life."""
    where, topic, path = sys.argv[1:]
    diary = os.open(path, os.O_WRONLY | os.O_APPEND)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    with (
        connect(where) as client,
        client.consumer(topic, group="g", session_timeout_ms=4_000) as consumer,
    ):

        def commit() -> None:
            try:
                stands = consumer.commit()
            except (errors.UnknownMember, errors.FencedMemberEpoch, errors.StaleMemberEpoch):
                return  # others have them; what was not committed is repeated
            except (errors.BrokerGone, errors.TimedOut, errors.OutcomeUnknown):
                return
            said = "".join(f"C {where.partition} {at}\n" for where, at in stands.items())
            os.write(diary, said.encode())

        handed = 0
        while not ended.is_set():
            record = consumer.poll(0.1)
            if record is not None:
                line = f"H {record.partition} {record.offset} {(record.value or b'').decode()}\n"
                os.write(diary, line.encode())
                handed += 1
            if handed >= EVERY or (record is None and handed):
                commit()
                handed = 0


def connect(where: str) -> shmbroker.Client:
    """To a broker that may be dead at this moment, and is started again."""
    until = time.monotonic() + 30
    while True:
        try:
            return shmbroker.connect(where, timeout=30, local="://" not in where)
        except (errors.NoBroker, errors.BrokerGone):
            if time.monotonic() > until:
                raise
        time.sleep(0.1)


if __name__ == "__main__":
    main()
