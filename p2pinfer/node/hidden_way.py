"""A transport whose stages see neither this machine's address nor an id that it had before.

Who learns what is in `transports.libp2p.path`. Here the relays are chosen: the first is one that
this machine has kept, or the peer at a named address, or drawn from the directory of that peer.
A peer that was called from this machine's own address is no stage for it afterwards; no relay is.

The directory, and parts, are fetched by one such transport for as long as this machine asks. Each
session has another one, behind the same first relay, with an identity that nobody has met: so
neither stages nor second relays can tell by ids which sessions are of one machine.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Final

import trio

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.errors import NoPath, PeerError, UserError
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.node.guards import Guards
from peers.discovery.directory import Directory
from peers.discovery.path_relays import Relay, blocks_of, missing_without, pick_relays
from transports.base import Reach, Relaying, Transport
from transports.blocklist import Blocklist
from transports.identity import Identity, ephemeral_identity
from transports.libp2p.padding import PACE_MS_MAX, PACE_MS_MIN, CellShape

if TYPE_CHECKING:  # half a second of imports
    from transports.libp2p.transport import Libp2pTransport

_log = logging.getLogger("p2pinfer.path")

HOPS_MAX: Final = 2

CALL_S_MAX: Final = 10.0
"""For a relay to answer this machine, and to show its directory."""

SPARE_MAX: Final = 2
"""Relays of each kind that stand by for one that fails."""

SECONDS_MAX: Final = 4
"""Second relays, of which each session draws one: so each of them meets some of the sessions."""

TRIES_MAX: Final = 3
"""Peers of a directory that are asked to be the first relay: each sees this machine's address."""

MODELS_MAX: Final = 16
"""Models that a relay's directory is read of; all alike, so that it does not learn which one."""

WAYS_IN_MAX: Final = 4
"""Peers that are asked for their directory over the path."""

GET_RELAYS = "start some on machines that serve no layers (p2pinfer relay), or ask without --via"
ONE_RELAY = (
    "--via 2 needs two relays from different blocks of addresses, and this swarm has one that this"
    f" machine may use: {GET_RELAYS}"
)


@dataclass(frozen=True)
class OpenedWay:
    """A transport, and how to begin on it."""

    transport: Transport
    identity: Identity
    """On a path it is drawn for this transport, and kept nowhere."""
    ways_in: Sequence[str]
    """Addresses of peers to ask first."""
    barred: Sequence[PeerId] = ()
    """Peers that may be no stage: those on the path, and those that have seen this machine."""
    another: "Another | None" = None
    """Opens one more behind the same first relay, under an identity of its own."""


Another = Callable[[CellShape], AbstractAsyncContextManager[OpenedWay]]
"""Opens a way for one session, whose bytes are given a shape; raises NoPath."""


def check_hops(hops: int, network: str | Reach, pace_ms: int = 0) -> None:
    """Raise UserError if there can be no path of that many relays, or no such pace on it."""
    if not 0 <= hops <= HOPS_MAX:
        raise UserError(f"--via must be 0, 1 or 2, and not {hops}")
    if pace_ms and not hops:
        raise UserError(
            "--pace has rows leave in a rhythm on the way to relays: give --via as well"
        )
    if pace_ms and not PACE_MS_MIN <= pace_ms <= PACE_MS_MAX:
        raise UserError(
            f"--pace must be 0, or {PACE_MS_MIN} to {PACE_MS_MAX} milliseconds, and not {pace_ms}"
        )
    if hops and isinstance(network, Reach) and network.members:
        raise UserError(
            "a network of founders knows its members by lasting keys, which each stage is shown: in"
            " this network --via hides nobody, so omit it"
        )


class _Outside:
    """What is called from this machine's own address: as few peers as possible."""

    def __init__(
        self, transport: "Libp2pTransport", network: str, directory: Directory, chance: Random
    ) -> None:
        self._transport, self._network = transport, network
        self._directory, self._chance = directory, chance
        self.seen_by: dict[PeerId, None] = {}
        """Who has seen this machine, in order."""

    @property
    def known(self) -> list[Advertisement]:
        """All that is advertised, as far as it was shown."""
        return self._directory.peers()

    async def find_guard(self, bootstrap: Sequence[str], kept: Sequence[Relay]) -> Relay:
        """Return the first relay, which has shown its directory; raises NoPath."""
        for each in kept:
            if await self.extends(each):
                return each
        faults: list[str] = []
        for address in bootstrap:
            try:
                with trio.fail_after(CALL_S_MAX):
                    relay = (await self._transport.connect(address), (address,))
                    if await self.extends(relay):
                        return relay
                    await self.ask(*relay)
                    break
            except (PeerError, trio.TooSlowError) as error:
                faults.append(str(error) or f"{address} does not answer")
        for drawn in self.pick(TRIES_MAX, (), ()):
            if await self.extends(drawn):
                return drawn
        raise NoPath(_no_guard(bootstrap, kept, faults))

    async def extends(self, relay: Relay) -> bool:
        """Whether a peer extends paths, and has shown its directory."""
        from transports.libp2p.path import Extension

        self.seen_by[relay[0]] = None
        try:
            with trio.fail_after(CALL_S_MAX):
                await Extension(self._transport, self._network, [relay]).check()
                await self.ask(*relay)
        except (PeerError, trio.TooSlowError) as error:
            _log.info("%s is no first relay: %s", relay[0], error)
            return False
        return True

    async def ask(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        """Have a peer show its directory; raises PeerError."""
        self.seen_by[peer] = None
        await self._directory.exchange(peer, addresses)
        for model in list(self._directory.models())[:MODELS_MAX]:
            self._directory.follow(model)
        await self._directory.exchange(peer, addresses)

    def pick(self, count: int, barred: Sequence[PeerId], near: Sequence[Relay]) -> list[Relay]:
        """Draw relays that are neither barred nor near others."""
        blocks = blocks_of(address for _, addresses in near for address in addresses)
        return pick_relays(self.known, count, {*barred, *self.seen_by}, blocks, self._chance)


@asynccontextmanager
async def open_hidden_way(
    bootstrap: Sequence[str], network: str | Reach, hops: int, chance: Random
) -> AsyncIterator[OpenedWay]:
    """Open a transport that reaches everybody through one relay or two, while the block lasts.

    Raises:
        NoPath: there are not enough relays; the sentence says what to do.
        UserError: an address, or the number of relays, cannot be used.
    """
    from transports.libp2p.path import Extension
    from transports.libp2p.transport import open_libp2p  # half a second of imports

    check_hops(hops, network)
    reach = Reach(network) if isinstance(network, str) else network
    reach = replace(reach, mdns=False, dht=False, maps_port=False, relaying=Relaying.NEVER)
    async with AsyncExitStack() as stack:
        identity = ephemeral_identity()
        below = await stack.enter_async_context(open_libp2p(identity, (), reach))
        directory = Directory(below, identity, chance)
        outside = _Outside(below, reach.network, directory, chance)
        guards = Guards(_named(reach), chance)
        former = guards.load()
        guard = await outside.find_guard(bootstrap, former)
        drawn = outside.pick(SPARE_MAX + (SECONDS_MAX if hops > 1 else 0), (), [guard])
        seconds, standing_by = share_out(drawn, former) if hops > 1 else ([], drawn)
        if hops > 1 and not seconds:
            raise NoPath(ONE_RELAY)
        taken = [peer for peer, _ in seconds]
        kept = [each for each in former if each[0] not in (guard[0], *taken)]
        names = [peer for peer, _ in kept]
        spare = [each for each in standing_by if each[0] not in names]
        spare = spare[: max(0, SPARE_MAX - len(kept))]
        guards.keep([guard, *spare])
        first = [guard, *kept, *spare]
        barred = [*outside.seen_by, *taken, *(peer for peer, _ in first)]
        if lost := missing_without(outside.known, barred):
            raise NoPath(
                f"a peer that has seen this machine's address serves layers ({_some(lost)}) that"
                " nobody else serves: name a relay as the first --bootstrap, or start one (p2pinfer"
                " relay)"
            )
        barred = list(dict.fromkeys(barred))
        silent = Blocklist()

        @asynccontextmanager
        async def another(shape: CellShape | None) -> AsyncGenerator[OpenedWay, None]:
            top, stack = below, AsyncExitStack()
            levels = [first, chance.sample(seconds, len(seconds))] if seconds else [first]
            async with stack:
                for relays in levels:
                    is_last, pace_ms = relays is levels[-1], shape.pace_ms if shape else 0
                    told = (shape if is_last else None, silent, pace_ms)
                    via = Extension(top, reach.network, relays, *told)
                    try:
                        await via.check()
                    except PeerError as error:
                        raise NoPath(f"{error}: {GET_RELAYS}") from error
                    drawn = ephemeral_identity()
                    top = await stack.enter_async_context(open_libp2p(drawn, (), reach, via=via))
                yield OpenedWay(top, drawn, (), barred)

        way = await stack.enter_async_context(another(None))
        free = [each for each in outside.known if each.peer not in barred and each.addresses]
        chance.shuffle(free)
        ways_in = [each.addresses[0] for each in free[:WAYS_IN_MAX]]
        yield replace(way, ways_in=ways_in, another=another)


def share_out(drawn: Sequence[Relay], kept: Sequence[Relay]) -> tuple[list[Relay], list[Relay]]:
    """Return who may be second, and who stands by for the first relay: some of each, if possible.

    Those that this machine kept as first relays know its address already, so they stand by first.
    """
    peers = {peer for peer, _ in kept}
    ordered = sorted(drawn, key=lambda each: each[0] in peers)
    seconds = len(ordered) - min(SPARE_MAX, len(ordered) // 2)
    return ordered[: min(seconds, SECONDS_MAX)], ordered[seconds:]


def _named(reach: Reach) -> str:
    """Return what a network is called in this machine's files: a private one is one of its own."""
    from p2pinfer.node.known_peers import KnownPeers

    return KnownPeers(reach).name


def _some(lost: Mapping[ModelId, Sequence[int]]) -> str:
    layers = next(iter(lost.values()))
    return f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else str(layers[0])


def _no_guard(bootstrap: Sequence[str], kept: Sequence[Relay], faults: Sequence[str]) -> str:
    if not bootstrap and not kept:
        return (
            "--via needs the address of one relay the first time, since looking around would show"
            " this machine to everybody: name it with --bootstrap"
        )
    why = f" ({'; '.join(faults)})" if faults else ""
    return f"no relay answers that carries paths for others{why}: {GET_RELAYS}"
