"""The auditor: listens in on all topics, in a group of its own, and counts."""

from __future__ import annotations

from collections import Counter

import shmbroker


def main() -> None:
    """Until Ctrl+C; prints how many records of each topic have gone by."""
    seen: Counter[str] = Counter()
    with (
        shmbroker.connect() as client,
        client.consumer(group="audit", pattern=".*", auto_commit_ms=1000) as everything,
    ):
        for batch in everything.batches():
            seen[batch.topic] += len(batch)
            print(dict(seen), flush=True)


if __name__ == "__main__":
    main()
