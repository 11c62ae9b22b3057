"""The leader epochs of one partition: which began at which offset.

A list of (epoch, start offset), both rising, part of the checkpoint. An epoch begins with each
unclean open, so that records lost with the host are noticed by whoever had read them: a consumer
says the epoch of its last record, the broker answers where that epoch ended (Kafka's
OffsetForLeaderEpoch). Pure functions. Source: Kafka's `LeaderEpochFileCache`.
"""

from __future__ import annotations

import itertools

Epochs = tuple[tuple[int, int], ...]


def begin(epochs: Epochs, epoch: int, start_offset: int) -> Epochs:
    """Notes that `epoch` begins at start_offset; epochs without records before it are dropped."""
    kept = tuple(e for e in epochs if e[0] < epoch and e[1] < start_offset)
    return (*kept, (epoch, start_offset))


def cut(epochs: Epochs, end_offset: int) -> Epochs:
    """Forgets epochs that begin at or behind end_offset (exclusive end of the log)."""
    return tuple(e for e in epochs if e[1] < end_offset)


def retire(epochs: Epochs, log_start_offset: int) -> Epochs:
    """Forgets epochs that ended at or before the log's start; the one it lies in begins there."""
    older = [e for e in epochs if e[1] <= log_start_offset]
    if not older:
        return epochs
    return ((older[-1][0], log_start_offset), *epochs[len(older) :])


def end_offset(epochs: Epochs, epoch: int, log_end_offset: int) -> tuple[int, int]:
    """(largest epoch known that is at most `epoch`, its end offset, exclusive); (-1, -1):
    unknown."""
    if not epochs or epoch < 0 or epoch > epochs[-1][0]:
        return -1, -1
    if epoch == epochs[-1][0]:
        return epoch, log_end_offset
    floor, end = epoch, epochs[0][1]  # before the first known one: it ended where that began
    for (known, _), (_, next_start) in itertools.pairwise(epochs):
        if known <= epoch:
            floor, end = known, next_start
    return floor, end
