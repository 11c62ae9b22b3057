"""The driver of RabbitMQ streams, as far as it can be tried without RabbitMQ."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from shmbroker.perf.peers import rabbitmq_sending
from shmbroker.perf.peers.rabbitmq_sending import Confirms


def status(confirmed: bool, code: int = 0) -> SimpleNamespace:
    return SimpleNamespace(is_confirmed=confirmed, response_code=code)


def test_a_round_ends_with_the_last_confirm() -> None:
    async def two() -> None:
        confirms = Confirms(2)
        waiting = asyncio.create_task(confirms.all())
        confirms(status(True))
        await asyncio.sleep(0)
        assert not waiting.done()
        confirms(status(True))
        await waiting

    asyncio.run(two())


def test_one_that_is_refused_fails_its_round() -> None:
    async def two() -> None:
        confirms = Confirms(2)
        confirms(status(False, 18))
        confirms(status(True))
        await confirms.all()

    with pytest.raises(RuntimeError, match="code 18"):
        asyncio.run(two())


def test_confirms_that_never_come_fail_their_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq_sending, "_LIMIT_S", 0.01)

    async def one() -> None:
        await Confirms(1).all()

    with pytest.raises(RuntimeError, match="1 not confirmed"):
        asyncio.run(one())
