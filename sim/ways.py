"""Which virtual peers are connected, and how: directly, punched through NATs, or by a relay."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable

import trio

from p2pinfer.core.ids import ModelId, PeerId
from peers.discovery.directory import Directory
from peers.discovery.relay_candidates import relay_candidates
from transports.base import Reachability
from transports.libp2p.relay_limits import (
    LOOKED_AT_MAX,
    Bucket,
    RelayLimits,
    RelayTable,
    exchanges,
)
from transports.memory.network import MemoryTransport

HELD_MAX = 3
"""Relays of one hidden peer, as in ``transports.libp2p.held_relays``."""

ASKED_MAX = 4
"""Candidates asked at the same time."""

LOOK_S = 1.0
"""How often a peer with too few relays looks for more."""

REFUSED_S, LOST_S = 60.0, 5.0
"""Before a candidate is asked again that has no room, or whose connection broke."""

IDLE_S = 60.0
"""A circuit that carries nothing for so long is closed by who opened it."""

Pair = tuple[PeerId, PeerId]
"""Who opened a circuit, and who was called."""


class Volunteer:
    """One peer that relays, with the limits of real ones."""

    def __init__(self, limits: RelayLimits) -> None:
        self.table: RelayTable[PeerId, PeerId] = RelayTable(limits)
        self.used_at: dict[Pair, float] = {}
        """When each circuit through it last carried something."""
        self._total = Bucket(limits.bytes_per_s, limits.burst_bytes)
        self._rates: dict[Pair, Bucket] = {}

    def open(self, caller: PeerId, target: PeerId, now: float) -> bool:
        """Connect two peers, if that is within the limits."""
        for pair in [pair for pair, at in self.used_at.items() if now - at > IDLE_S]:
            self.close(pair)
        return self.table.connect(caller, target, now)

    def close(self, pair: Pair) -> None:
        """Forget a circuit."""
        del self.used_at[pair]
        for way in (pair, pair[::-1]):
            self._rates.pop(way, None)
        self.table.ended(*pair)

    def carry_s(self, sender: PeerId, receiver: PeerId, size: int, now: float) -> float:
        """Return how long bytes wait before they are passed on."""
        way = (sender, receiver)
        pair = way if way in self.used_at else (receiver, sender)
        if pair in self.used_at:
            self.used_at[pair] = now
        limits = self.table.limits
        rate = self._rates.get(way)
        if rate is None:
            burst = limits.burst_bytes / 4
            rate = self._rates[way] = Bucket(limits.circuit_bytes_per_s, burst)
        wait_s = max(rate.wait_s(size, now), self._total.wait_s(size, now))
        rate.spend(size)
        self._total.spend(size)
        return wait_s


class Ways:
    """All connections, and the relays."""

    def __init__(self, limits: RelayLimits) -> None:
        self.limits = limits
        self.volunteers: dict[PeerId, Volunteer] = {}
        self.lost_s: dict[PeerId, float] = {}
        """When peers last lost a connection with a relay."""
        self.made: Counter[str] = Counter()
        """Connections between two peers that cannot be dialled, and calls back, by their kind."""
        self.relayed_bytes = 0
        self._by: defaultdict[PeerId, dict[PeerId, PeerId | None]] = defaultdict(dict)
        self._on_loss: dict[PeerId, Callable[[PeerId], None]] = {}

    def connect(self, one: PeerId, other: PeerId, relay: PeerId | None = None) -> None:
        """Remember a connection, which serves both sides and stays; a direct one is better."""
        if other not in self._by[one] or relay is None:
            self._by[one][other] = self._by[other][one] = relay

    def connected(self, one: PeerId, other: PeerId) -> bool:
        """Whether two peers are connected in any way."""
        return other in self._by[one]

    def relay_of(self, one: PeerId, other: PeerId) -> PeerId | None:
        """Return the relay that carries what two peers say; None if none does."""
        return self._by[one].get(other)

    def part(self, are_apart: Callable[[PeerId, PeerId], bool]) -> None:
        """End the connections between peers that are apart."""
        for one, others in self._by.items():
            for other in [other for other in others if are_apart(one, other)]:
                del others[other]

    def volunteer(self, peer: PeerId) -> None:
        """Let a peer relay from now on."""
        self.volunteers[peer] = Volunteer(self.limits)

    def relays_of(self, peer: PeerId, held: Iterable[PeerId], now: float) -> list[PeerId]:
        """Return those of a peer's relays that are there and still hold its reservation."""
        there = ((relay, self.volunteers.get(relay)) for relay in held)
        return [relay for relay, each in there if each and each.table.find(peer, now)]

    def watch(self, peer: PeerId, on_loss: Callable[[PeerId], None]) -> None:
        """Tell a hidden peer of each relay that ends."""
        self._on_loss[peer] = on_loss

    def end(self, peer: PeerId, now: float) -> set[Pair]:
        """End a peer, and all that it relayed; return the pairs that it connected, in one order."""
        self._on_loss.pop(peer, None)
        for other in self._by.pop(peer, {}):
            self._by[other].pop(peer, None)
        gone = self.volunteers.pop(peer, None)
        if gone is None:
            return set()
        for one, other in gone.used_at:
            for here, there in ((one, other), (other, one)):
                if self._by[here].get(there) == peer:
                    del self._by[here][there]
                self.lost_s[here] = now
        for tell in list(self._on_loss.values()):
            tell(peer)
        return set(gone.used_at)


class RelayHolder:
    """Holds the reservations of one hidden peer, as ``transports.libp2p.held_relays`` does.

    Args:
        ways: the network's.
        transport: of the hidden peer.
        directory: tells who may relay.
        model: of which the candidates serve layers.
        round_trip_s: to a connected peer.
    """

    def __init__(
        self,
        ways: Ways,
        transport: MemoryTransport,
        directory: Directory,
        model: ModelId,
        round_trip_s: Callable[[PeerId], float | None],
    ) -> None:
        self._ways, self._transport = ways, transport
        self._directory, self._model, self._round_trip_s = directory, model, round_trip_s
        self._again_at: dict[PeerId, float] = {}
        self._refused: Counter[PeerId] = Counter()
        self._looked_at: set[PeerId] = set()
        self._wake = trio.Event()

    async def run(self) -> None:
        """Hold relays while others cannot dial this peer, for ever."""
        self._ways.watch(self._transport.peer_id, self._lose)
        while True:
            self._wake = trio.Event()
            if self._transport.reachability is Reachability.HIDDEN:
                await self._find()
                await self._look_around()
            is_settled = len(self._transport.relays) >= HELD_MAX
            pause_s = self._ways.limits.reservation_s / 2 if is_settled else LOOK_S
            with trio.move_on_after(pause_s):
                await self._wake.wait()
            if is_settled and not self._wake.is_set():
                for relay in self._transport.relays:
                    self._reserve(relay)

    def _lose(self, relay: PeerId) -> None:
        if relay in self._transport.relays:
            self._again_at[relay] = trio.current_time() + LOST_S
            self._transport.hold(each for each in self._transport.relays if each != relay)
            self._wake.set()

    async def _find(self) -> None:
        """Ask the best candidates until enough of them relay."""
        while (lacking := HELD_MAX - len(self._transport.relays)) > 0:
            asked = self._due()[: min(ASKED_MAX, lacking)]
            if not asked:
                return
            async with trio.open_nursery() as nursery:
                for relay in asked:
                    nursery.start_soon(self._ask, relay)

    async def _look_around(self) -> None:
        """Connect to some candidates to see how far they are, once; then exchange far relays."""
        while self._transport.relays and (room := LOOKED_AT_MAX - len(self._looked_at)):
            strangers = [peer for peer in self._due() if self._round_trip_s(peer) is None]
            some = [each for each in strangers if each not in self._looked_at]
            some = some[: min(ASKED_MAX, room)]
            self._looked_at.update(some)
            async with trio.open_nursery() as nursery:
                for peer in some:
                    nursery.start_soon(self._transport.is_reached, peer)
            if not some or len(self._looked_at) == LOOKED_AT_MAX:
                await self._improve()
                return

    async def _improve(self) -> None:
        held_s = {relay: self._round_trip_s(relay) or 0.0 for relay in self._transport.relays}
        others_s = {p: s for p in self._due() if (s := self._round_trip_s(p)) is not None}
        for old, new in exchanges(held_s, others_s):
            await self._ask(new)
            held = self._transport.relays
            if new in held and old in held:
                self._transport.hold(each for each in held if each != old)

    def _due(self) -> list[PeerId]:
        me, now = self._transport.peer_id, trio.current_time()
        named = relay_candidates(self._directory, me, self._model, self._round_trip_s)
        held: Collection[PeerId] = self._transport.relays
        return [p for p, _ in named if p not in held and self._again_at.get(p, 0.0) <= now]

    async def _ask(self, relay: PeerId) -> None:
        if await self._transport.is_reached(relay) and self._reserve(relay):
            self._transport.hold([*self._transport.relays, relay])
            del self._refused[relay]
        else:
            pause_s = REFUSED_S * 2 ** self._refused[relay] if self._transport.relays else LOST_S
            self._refused[relay] += 1
            self._again_at[relay] = trio.current_time() + pause_s

    def _reserve(self, relay: PeerId) -> bool:
        me, volunteer = self._transport.peer_id, self._ways.volunteers.get(relay)
        return volunteer is not None and volunteer.table.reserve(me, me, me, trio.current_time())
