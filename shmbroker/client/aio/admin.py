"""The administrative calls as coroutines: each is the synchronous one, in the client's thread."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from shmbroker.client.admin import Admin as SyncAdmin
from shmbroker.client.aio.worker import Worker

P = ParamSpec("P")
T = TypeVar("T")


def _twin(
    method: Callable[Concatenate[SyncAdmin, P], T],
) -> Callable[Concatenate[Admin, P], Coroutine[Any, Any, T]]:
    @wraps(method)
    async def call(self: Admin, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.check()
        return await self._requests.run(partial(method, self._sync, *args, **kwargs))

    return call


class Admin:
    """One request is under way at a time. A cancelled one may still be done by the broker."""

    _sync: SyncAdmin
    _requests: Worker

    def check(self) -> None:
        """ForkedError, ClosedError, or ConcurrentUse in another event loop."""
        raise NotImplementedError

    create_topic = _twin(SyncAdmin.create_topic)
    alter_topic = _twin(SyncAdmin.alter_topic)
    delete_records = _twin(SyncAdmin.delete_records)
    delete_topic = _twin(SyncAdmin.delete_topic)
    topics = _twin(SyncAdmin.topics)
    describe_topic = _twin(SyncAdmin.describe_topic)
    status = _twin(SyncAdmin.status)
    groups = _twin(SyncAdmin.groups)
    describe_group = _twin(SyncAdmin.describe_group)
    reset_group = _twin(SyncAdmin.reset_group)
    delete_group = _twin(SyncAdmin.delete_group)
    delete_group_offsets = _twin(SyncAdmin.delete_group_offsets)


__all__ = ["Admin"]
