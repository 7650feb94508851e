"""A world that several test files fill with servers."""

from collections.abc import AsyncIterator

import pytest
import trio

from tests.support.oracle import Oracle
from tests.support.servers import World
from tests.support.swarm import ME
from transports.memory.network import MemoryNetwork


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Give a network with only a requester in it."""
    network = MemoryNetwork()
    async with network.join(ME) as me, trio.open_nursery() as nursery:
        yield World(nursery, network, me)
        nursery.cancel_scope.cancel()


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> type[Oracle]:
    """Let sessions draft by an oracle."""
    made = type("Oracle", (Oracle,), {})
    monkeypatch.setattr("peers.asking.ahead.TextDrafter", made)
    return made
