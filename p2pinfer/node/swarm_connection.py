"""The one way to join a swarm: a transport, and a directory of its peers."""

import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from p2pinfer.core.errors import NobodyServes, UserError, lone_errors
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.logs import note
from p2pinfer.node.guest_tokens import GuestTokens
from p2pinfer.node.hidden_way import Another, OpenedWay, open_hidden_way
from p2pinfer.node.known_peers import KnownPeers
from p2pinfer.node.model_supply import Choose, pick_model
from p2pinfer.node.networks import Membership, is_network_file, open_network
from p2pinfer.node.sponsors import clock_ms
from peers.discovery.directory import Directory
from peers.discovery.enrolment import Enrolment
from peers.steps.messaging import SESSION
from transports import dnsaddr
from transports.base import Reach, Transport
from transports.blocklist import GuardedTransport
from transports.identity import Identity, ephemeral_identity
from transports.interfaces import are_only_here
from transports.libp2p.padding import CellShape
from transports.secret import read_network_key

RESOLVE_S = 30.0
"""How often names are asked for while no peer is known; a resolver's own cache spares the rest."""

AGAIN_S_MAX = 5.0
"""For one of the peers of a former run to answer; where a machine is gone for good, none does."""

LAN_S_MAX = 4.0
"""For finding a peer on the local network and its answer: two questions by mDNS, a second apart,
should Wi-Fi lose one. Usually less than one; a machine that is alone there waits for all of it."""


def open_transport(
    kind: str,
    identity: Identity,
    listen: Sequence[str],
    announce: Sequence[str],
    network: str | Reach,
    guests: GuestTokens | None = None,
) -> AbstractAsyncContextManager[Transport]:
    """Return the transport of this kind, which runs while the block lasts."""
    if kind == "tcp":
        from transports.tcp import open_tcp

        return open_tcp(identity.peer_id)
    from transports.libp2p.transport import open_libp2p  # half a second of imports

    return open_libp2p(identity, listen, network, announce=announce, guests=guests)


def _enrol(
    transport: GuardedTransport, directory: Directory, members: Membership, chance: random.Random
) -> Enrolment:
    """Return what keeps this machine a member; it answers others from now on."""

    def known() -> Sequence[tuple[PeerId, tuple[str, ...]]]:
        connected = [(peer, ()) for peer in members.proven]
        return [*connected, *((each.peer, each.addresses) for each in directory.peers())]

    found = Enrolment(transport, members, known, chance, secrets.token_bytes)
    found.listen()
    return found


def name_of(network: str | Reach) -> str:
    """Return a network's name."""
    return network if isinstance(network, str) else network.network


def read_key(path: Path, network: str) -> tuple[str, bytes, Membership | None]:
    """Return a private network's name and key, and this machine's part in one of founders.

    Raises:
        UserError: the file cannot be used, or is of a network of another name.
    """
    if not is_network_file(path):
        return network, read_network_key(path), None
    members = open_network(path)
    name = members.founding.network
    if network not in ("main", name):
        raise UserError(f"{path} is of the network {name}, and not of {network}: omit --network")
    if not members.is_admitted:
        note(
            f"this machine's membership of {name} has ended: only peers of its founders admit it,"
            " and renew it unless they have expelled it"
        )
    return name, members.founding.key, members


def reach_of(
    network: str,
    key: bytes | None,
    mdns: bool | None,
    dht: bool | None,
    named: Sequence[str],
    members: Membership | None = None,
) -> Reach:
    """Return how to reach a swarm; mDNS and the DHT are on unless switched off.

    None for either is yes, unless all addresses that are named are of this machine alone.
    """
    looks = not are_only_here(named)
    mdns, dht = (looks if flag is None else flag for flag in (mdns, dht))
    return Reach(network, key, mdns, dht, members=members)


def looks_around(network: str | Reach) -> bool:
    """Whether peers can be found without an address: on the local network, or where they were."""
    return _is_on_lan(network) or bool(KnownPeers(network).load())


def _is_on_lan(network: str | Reach) -> bool:
    return isinstance(network, Reach) and network.mdns


@dataclass(frozen=True)
class SwarmConnection:
    """A connection to a swarm."""

    identity: Identity
    transport: GuardedTransport
    directory: Directory
    bootstrap: Sequence[str]
    """Multiaddrs of peers in the swarm; no names that stand for others."""
    chance: random.Random
    """Picks which peers to ask, and where to start."""
    nursery: trio.Nursery
    """For tasks that run as long as the connection; cancelled when it closes."""
    known: KnownPeers | None = None
    """Who answered in former runs."""
    is_on_lan: bool = True
    """Whether peers are looked for on the local network, too."""
    names: Sequence[str] = ()
    """The ``/dnsaddr/`` names among the addresses that a person gave."""
    faults: Sequence[str] = ()
    """Why some of these stood for nothing at the start."""
    another: Another | None = None
    """Opens a way for one session, where this machine hides."""

    async def find_anybody(self) -> bool:
        """Look for peers without an address; say whether one answered in time."""
        former = self.known.load() if self.known else {}
        found = False

        async def look(find: Callable[[], Awaitable[bool]]) -> None:
            nonlocal found
            if await find():
                found = True
                nursery.cancel_scope.cancel()

        with lone_errors():
            async with trio.open_nursery() as nursery:
                if self.is_on_lan:
                    nursery.start_soon(look, partial(self.directory.find_anybody, LAN_S_MAX))
                if former:
                    nursery.start_soon(look, partial(self._find_again, former))
        return found

    async def _find_again(self, former: Mapping[PeerId, tuple[str, ...]]) -> bool:
        silent = await self.directory.find_again(former, AGAIN_S_MAX)
        if silent and self.known:
            self.known.drop(silent)
        return silent is not None

    async def enter(self, model: ModelId | None) -> None:
        """Learn which peers are there, those of the model above all, and stay in touch.

        Where none of the addresses answers, peers are looked for as if there were none.

        Raises:
            NobodyServes: no peer answers anywhere.
            UserError: one of them is no address.
        """
        if model is not None:
            self.directory.follow(model)
        failures = await self.directory.enter(self.bootstrap)
        if len(failures) == len(self.bootstrap) and not await self.find_anybody():
            reasons = "; ".join([*self.faults, *map(str, failures)])
            raise NobodyServes(f"no peer answers: {reasons}" if reasons else self.alone())
        self.stay_in_touch()

    def alone(self) -> str:
        """Return where no peer was found, and what else a person can try."""
        places = ["on the local network"] if self.is_on_lan else []
        places += ["where peers were before"] if self.known and self.known.load() else []
        return (
            f"no peer answers {' or '.join(places)}: take an invitation, which p2pinfer invite"
            " prints on a machine of the swarm, or name a peer with --bootstrap; to try it on this"
            " machine alone: p2pinfer demo, or for a web page p2pinfer serve --local 3"
        )

    def stay_in_touch(self) -> None:
        """Gossip and exchange digests with other peers from now on."""
        self.nursery.start_soon(self.directory.run, self.bootstrap)
        if self.names:
            self.nursery.start_soon(self._resolve_again)
        if self.known:
            self.nursery.start_soon(self.known.keep, lambda: self.directory.answered)

    async def _resolve_again(self) -> None:
        """Ask what the names stand for while nobody is known, for ever.

        A laptop may start before its Wi-Fi, and records change while it sleeps.
        """
        while True:
            await trio.sleep(RESOLVE_S)
            if self.directory.knows_nobody:
                found, _ = await dnsaddr.resolve(self.names)
                self.directory.look_at(found)

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
async def _guarded(
    another: Another, like: GuardedTransport, shape: CellShape
) -> AsyncIterator[OpenedWay]:
    """Open a way for one session, on which peers that are shut out anywhere are shut out, too."""
    async with another(shape) as way:
        yield replace(way, transport=GuardedTransport(way.transport, like))


@asynccontextmanager
async def open_swarm_connection(
    bootstrap: Sequence[str],
    network: str | Reach,
    *,
    identity: Identity | None = None,
    listen: Sequence[str] = (),
    announce: Sequence[str] = (),
    kind: str = "libp2p",
    via: int = 0,
) -> AsyncIterator[SwarmConnection]:
    """Open a transport with a directory while the block lasts; no peer is dialled yet.

    In a private network one that listens gives the key to guests that this machine has invited.

    Args:
        bootstrap: multiaddrs of peers in the swarm, or names that stand for some.
        network: which swarm it is.
        identity: None makes a temporary one.
        listen: multiaddrs to listen on.
        announce: multiaddrs at which others reach it, besides the machine's own.
        kind: ``libp2p``, or ``tcp`` for measuring what libp2p costs.
        via: how many relays to hide behind; the identity is then one that nobody has seen.

    Raises:
        UserError: an address cannot be listened on, or announced.
        NoPath: there are not enough relays.
    """
    chance = random.Random()  # noqa: S311 -- picks which peers to ask, and where to start
    identity = identity or ephemeral_identity()
    guests = None
    if listen and isinstance(network, Reach) and network.key:
        guests = GuestTokens(network)
    names = [address for address in bootstrap if dnsaddr.is_dnsaddr(address)]
    bootstrap, faults = await dnsaddr.resolve(bootstrap)
    if via and isinstance(network, Reach):
        network, names = replace(network, mdns=False, dht=False), []

    @asynccontextmanager
    async def plain() -> AsyncIterator[OpenedWay]:
        async with open_transport(kind, identity, listen, announce, network, guests) as found:
            yield OpenedWay(found, identity, bootstrap)

    opening = open_hidden_way(bootstrap, network, via, chance) if via else plain()
    with lone_errors():
        async with opening as way, trio.open_nursery() as nursery:
            transport = GuardedTransport(way.transport)
            directory = Directory(transport, way.identity, chance, clock_ms=clock_ms)
            for peer in way.barred:
                transport.shut_out(peer)
                directory.shut_out(peer)
            if isinstance(network, Reach) and isinstance(network.members, Membership):
                nursery.start_soon(_enrol(transport, directory, network.members, chance).run)
            transport.prefer_direct({SESSION}, directory.said_addresses)
            told = names, faults, way.another and partial(_guarded, way.another, transport)
            try:
                yield SwarmConnection(
                    way.identity,
                    transport,
                    directory,
                    way.ways_in,
                    chance,
                    nursery,
                    # Bare TCP dials what a libp2p peer does not understand.
                    KnownPeers(network) if kind == "libp2p" else None,
                    _is_on_lan(network),
                    *told,
                )
            finally:
                nursery.cancel_scope.cancel()
