"""The one way to join a swarm: a transport, and a directory of its peers."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import trio

from p2pinfer.core.errors import NobodyServes, lone_errors
from p2pinfer.core.ids import ModelId
from p2pinfer.node.model_supply import Choose, pick_model
from p2pinfer.node.sponsors import clock_ms
from peers.discovery.directory import Directory
from transports.base import Reach, Transport
from transports.blocklist import GuardedTransport
from transports.identity import Identity, ephemeral_identity

LAN_S_MAX = 8.0
"""For finding a peer on the local network and its answer; usually two or three seconds."""


def open_transport(
    kind: str, identity: Identity, listen: Sequence[str], network: str | Reach
) -> AbstractAsyncContextManager[Transport]:
    """Return the transport of this kind, which runs while the block lasts."""
    if kind == "tcp":
        from transports.tcp import open_tcp

        return open_tcp(identity.peer_id)
    from transports.libp2p.transport import open_libp2p  # half a second of imports

    return open_libp2p(identity, listen, network)


def name_of(network: str | Reach) -> str:
    """Return a network's name."""
    return network if isinstance(network, str) else network.network


def looks_around(network: str | Reach) -> bool:
    """Whether peers can be found without an address, by mDNS."""
    return isinstance(network, Reach) and network.mdns


@dataclass(frozen=True)
class SwarmConnection:
    """A connection to a swarm."""

    identity: Identity
    transport: GuardedTransport
    directory: Directory
    bootstrap: Sequence[str]
    """Multiaddrs of peers in the swarm."""
    chance: random.Random
    """Picks which peers to ask, and where to start."""
    nursery: trio.Nursery
    """For tasks that run as long as the connection; cancelled when it closes."""

    async def enter(self, model: ModelId | None) -> None:
        """Learn which peers are there, those of the model above all, and stay in touch.

        Raises:
            NobodyServes: no peer answers at any of the addresses, or on the local network.
            UserError: one of them is no address.
        """
        if model is not None:
            self.directory.follow(model)
        failures = await self.directory.enter(self.bootstrap)
        if not self.bootstrap and not await self.directory.find_anybody(LAN_S_MAX):
            raise NobodyServes("no peer answers on the local network: name one with --bootstrap")
        if self.bootstrap and len(failures) == len(self.bootstrap):
            reasons = "; ".join(str(failure) for failure in failures)
            raise NobodyServes(f"no peer answers: {reasons}")
        self.stay_in_touch()

    def stay_in_touch(self) -> None:
        """Gossip and exchange digests with other peers from now on."""
        self.nursery.start_soon(self.directory.run, self.bootstrap)

    async def pick_model(self, default: Choose) -> ModelId:
        """Follow the model that the swarm serves, or else the default; return its id.

        Raises:
            UserError: the swarm serves several models, and the default is not one of them.
        """
        model = await pick_model(self.directory, default)
        self.directory.follow(model)
        await self.directory.enter(self.bootstrap)
        return model


@asynccontextmanager
async def open_swarm_connection(
    bootstrap: Sequence[str],
    network: str | Reach,
    *,
    identity: Identity | None = None,
    listen: Sequence[str] = (),
    kind: str = "libp2p",
) -> AsyncIterator[SwarmConnection]:
    """Open a transport with a directory while the block lasts; no peer is dialled yet.

    Args:
        bootstrap: multiaddrs of peers in the swarm.
        network: which swarm it is.
        identity: None makes a temporary one.
        listen: multiaddrs to listen on.
        kind: ``libp2p``, or ``tcp`` for measuring what libp2p costs.

    Raises:
        UserError: an address cannot be listened on.
    """
    chance = random.Random()  # noqa: S311 -- picks which peers to ask, and where to start
    identity = identity or ephemeral_identity()
    with lone_errors():
        async with (
            open_transport(kind, identity, listen, network) as inner,
            trio.open_nursery() as nursery,
        ):
            transport = GuardedTransport(inner)
            directory = Directory(transport, identity, chance, clock_ms=clock_ms)
            try:
                yield SwarmConnection(identity, transport, directory, bootstrap, chance, nursery)
            finally:
                nursery.cancel_scope.cancel()
