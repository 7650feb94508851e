"""A peer that serves no layers, and yet is one of its swarm: a keeper, a relay, a learner."""

import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from p2pinfer.core.errors import lone_errors
from p2pinfer.node.identity_lock import hold_identity
from p2pinfer.node.inviting import ways_in_told
from p2pinfer.node.listen_port import own_listen
from p2pinfer.node.status_socket import Status, open_status
from p2pinfer.node.swarm_connection import SwarmConnection, open_swarm_connection
from transports.base import Reach


class Whereabouts(Protocol):
    """Where a peer is to be found, and how it finds others."""

    @property
    def listen(self) -> Sequence[str]:
        """Multiaddrs; empty: all interfaces, at the port that is kept beside the key."""
        ...

    @property
    def announce(self) -> Sequence[str]:
        """Addresses told to others before those of the machine."""
        ...

    @property
    def bootstrap(self) -> Sequence[str]:
        """Addresses of peers in the swarm."""
        ...

    @property
    def network(self) -> Reach:
        """Which swarm it is."""
        ...

    @property
    def identity(self) -> Path | None:
        """File with the key; None takes a free one of this machine's."""
        ...


@asynccontextmanager
async def open_bystander(
    options: Whereabouts, say: Callable[[str], None], role: str | None = None
) -> AsyncGenerator[SwarmConnection, None]:
    """Connect under a key of this machine's while the block lasts.

    Args:
        options: where it is.
        say: called with what the owner should know.
        role: what the machine's status calls it; None leaves it out there.

    Raises:
        UserError: an option cannot be used; the sentence says what to do.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(lone_errors())
        key = stack.enter_context(hold_identity(options.identity))
        chance = random.Random()  # noqa: S311 -- draws a port
        swarm = await stack.enter_async_context(
            open_swarm_connection(
                options.bootstrap,
                options.network,
                identity=key.identity,
                listen=options.listen or own_listen(key.path, chance, say),
                announce=options.announce,
            )
        )
        if role:
            await stack.enter_async_context(_open_status(swarm, options.network, role))
        yield swarm


@asynccontextmanager
async def _open_status(
    swarm: SwarmConnection, network: Reach, role: str
) -> AsyncGenerator[None, None]:
    transport = swarm.transport
    about = {"network": network.network, "role": role, "peer": transport.peer_id}

    def describe() -> Status:
        return {**about, "addresses": [*transport.addresses], "state": "up", "sessions": []}

    ways_in = partial(ways_in_told, network, lambda: transport.addresses, swarm.directory)
    async with open_status(describe, ways_in):
        yield
