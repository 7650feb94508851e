"""A world that several test files fill with servers."""

from collections.abc import AsyncIterator

import pytest
import trio

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
