"""A chain of stages that is open for as long as a block lasts."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from p2pinfer.core.messages import Hop
from peers.asking.chain import Chain


@asynccontextmanager
async def open_chain(
    chain: Chain, route: Sequence[Hop], nursery: trio.Nursery
) -> AsyncIterator[Chain]:
    """Open a session along a route, for as long as the block lasts; its tasks run in the nursery.

    Raises:
        RefusedError: a stage refused.
        PeerUnavailable: a peer cannot be reached.
        RemoteProtocolError: a peer broke the protocol.
    """
    try:
        await nursery.start(chain.run)
        await chain.open(route)
        yield chain
    finally:
        chain.close()
