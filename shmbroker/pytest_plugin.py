"""Fixtures for tests of programs that use shmbroker: a broker a session, a client a test.

    def test_it(shmbroker_client):
        shmbroker_client.create_topic("ticks")
        my_program.run(shmbroker_client.address)

pytest loads this module in every run, so that it imports nothing but pytest: the rest comes with
the first test that asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from shmbroker.client import Client


@pytest.fixture(scope="session")
def shmbroker_broker() -> Iterator[Client]:
    """A broker of this test run's own (`shmbroker.embedded`), as a client of it.

    `.address` is what programs under test connect to. It is gone after the run, with its records,
    also when the run is killed. With pytest-xdist each worker has its own.
    """
    from shmbroker.embedded import embedded

    with embedded() as client:
        yield client


@pytest.fixture
def shmbroker_client(shmbroker_broker: Client) -> Iterator[Client]:
    """A client of this test's own; the topics that the test made are deleted after it.

    Close producers and consumers, or leave it to this fixture; a record that failed and that nobody
    looked at is a DeliveryError at the test's end.
    """
    from shmbroker.client import connect

    before = set(shmbroker_broker.topics())
    try:
        with connect(shmbroker_broker.address) as client:
            yield client
    finally:
        for name in set(shmbroker_broker.topics()) - before:
            shmbroker_broker.delete_topic(name)
