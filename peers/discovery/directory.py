"""Which peers serve what: each advertises itself, and passes on others' advertisements.

An advertisement is signed by the peer it describes, so any peer may pass it on and none can forge
one. It travels by gossip, one topic for each model; a peer that joins asks a neighbour for a full
view, and now and then every peer compares views with another, which repairs what gossip lost. An
advertisement is only a hint until its peer has answered.
"""

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import trio

from p2pinfer.core.advertisement import ADVERTISEMENTS_MAX, Advertisement
from p2pinfer.core.errors import PeerError, PeerUnavailable, UserError, lone_errors
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.layer_range import LayerRange
from peers.discovery.advertiser import Advertiser, Signer
from peers.discovery.anti_entropy import TOLD_MAX, TOLD_PER_S, answer, ask
from peers.discovery.bootstrap import Bootstrap, Way
from peers.discovery.gossip import judge, news
from peers.discovery.model_index import IndexEntry
from peers.discovery.partners import pick_partners
from peers.discovery.view import SHORTEST_S, SwarmView, Verify
from peers.steps.messaging import DIRECTORY
from peers.steps.rate_limit import RateLimits
from transports.base import Channel, Topic, Transport
from transports.identity import verify as verify_signature

_log = logging.getLogger("p2pinfer.directory")

COMPARE_S = 30.0
"""How often a peer compares views with another; once per period while the period is shortest."""

FIND_S = 5.0
"""How often the bootstrap addresses are tried while no peer is known."""

EXCHANGE_S_MAX = 10.0
"""How long one comparison may take."""

NEIGHBOURS_MIN = 4
"""Peers of a model to stay connected to, so that gossip still spreads when some of them leave."""

PATIENCE_S = 1.0
"""For the first bootstrap peer to send its view; it may hang, and a caller cannot wait long."""

LOOK_AGAIN_S = 0.25
"""Between two attempts to find any peer at all."""

LOOK_OUT = 0.1
"""Share of rounds in which a peer with few neighbours asks the transport to discover more."""


class Directory:
    """What this peer knows about the swarm, and advertises about itself.

    Args:
        transport: reaches other peers.
        identity: signs this peer's advertisements.
        chance: picks peers to compare views with.
        verify: checks others' signatures; a simulation may pass a cheaper check.
        room: how many advertisements to keep.
        clock_ms: the wall-clock time, in milliseconds: it numbers this peer's advertisements, so
            other peers see whether its clock is right.
    """

    def __init__(
        self,
        transport: Transport,
        identity: Signer,
        chance: random.Random,
        verify: Verify = verify_signature,
        room: int = ADVERTISEMENTS_MAX,
        clock_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        self._transport, self._chance = transport, chance
        self.view = SwarmView(transport.peer_id, verify, chance, room)
        self._bootstrap = Bootstrap(transport.peer_id)
        self._told = RateLimits(TOLD_MAX, TOLD_PER_S)
        self._news = news()
        self._topics: dict[ModelId, Topic] = {}
        self.advertiser = Advertiser(transport, identity, self.view, self._topics, chance, clock_ms)
        self._wake = trio.Event()
        """Set when a new model is followed."""

    @property
    def is_hidden(self) -> bool:
        """Whether this peer seems undialable; see `peers.discovery.advertiser`."""
        return self.advertiser.is_hidden

    @property
    def advertises(self) -> bool:
        """Whether this peer advertises itself."""
        return self.advertiser.is_on

    @property
    def is_sample(self) -> bool:
        """Whether there is no room for more peers, so that others probably exist."""
        return self.view.is_full

    @property
    def knows_nobody(self) -> bool:
        """Whether no other peer is known."""
        return self.view.knows_nobody()

    def listen(self) -> None:
        """Answer other peers from now on."""
        self._transport.handle(DIRECTORY, self._answer)

    def advertise(self, advertisement: Advertisement) -> None:
        """Advertise this peer like this from now on; it gets its number when it is signed.

        A new range, state or address is published at once; changed figures wait for the next
        renewal.
        """
        self.follow(advertisement.model)
        self.advertiser.say(advertisement)

    def leave(self) -> None:
        """Announce by gossip that this peer has left; it serves nothing any more."""
        self.advertiser.leave()

    def follow(self, model: ModelId) -> None:
        """Keep track of all peers of a model from now on."""
        if self.view.follow(model):
            self._wake.set()

    def shut_out(self, peer: PeerId) -> None:
        """Forget a peer, ignore whatever it advertises, and pass none of it on."""
        self.view.shut_out(peer, trio.current_time())

    def serving(self, model: ModelId) -> list[Advertisement]:
        """Return the other peers known to serve a model, which is followed from now on."""
        return [a for a in self.holding(model) if a.first < a.end]

    def holding(self, model: ModelId) -> list[Advertisement]:
        """Return the other peers that hold some of a model, including those still joining.

        Left out are peers that do not answer when called, and peers that cannot be dialled.
        """
        self.follow(model)
        own = self.view.get(self._transport.peer_id)
        return [
            entry.parsed.advertisement
            for entry in self._entries(model)
            if entry.is_there and entry.parsed.advertisement.addresses and entry is not own
        ]

    def missing(self, model: ModelId, layers: LayerRange) -> list[int]:
        """Return the layers of a range that no peer holds or is about to; this peer counts."""
        self._expire()
        return self.view.missing(model, layers)

    def fewest_holders(self, model: ModelId, layers: LayerRange) -> int:
        """Return how many peers hold a range's rarest layer, or are about to."""
        return self.view.fewest_holders(model, layers)

    def models(self) -> dict[ModelId, str]:
        """Return the names of all models known to be served."""
        self._expire()
        return {
            model: next(iter(index.entries.values())).parsed.advertisement.model_name
            for model, index in self.view.indexes.items()
            if index.entries
        }

    def peers(self) -> list[Advertisement]:
        """Return all known advertisements: every peer of followed models, a few of other models."""
        return [
            entry.parsed.advertisement
            for model in list(self.view.indexes)
            for entry in self._entries(model)
        ]

    async def run(self, ways_in: Sequence[str]) -> None:
        """Gossip, renew our own advertisement and compare views, for ever.

        Args:
            ways_in: addresses that are tried repeatedly while the peer there is unknown.
        """
        self._bootstrap.add(ways_in)
        with lone_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.advertiser.run, self._pause_s)
                nursery.start_soon(self._compare_for_ever)
                nursery.start_soon(self._follow_moves)
                heard: set[ModelId] = set()
                while True:
                    for model in [model for model in self.view.followed if model not in heard]:
                        heard.add(model)
                        nursery.start_soon(self._gossip, model)
                    self._wake = trio.Event()
                    await self._wake.wait()

    def look_at(self, ways_in: Sequence[str]) -> None:
        """Try these addresses, too, whenever the peers there are missing."""
        self._bootstrap.add(ways_in)

    async def enter(self, ways_in: Sequence[str]) -> list[PeerError]:
        """Compare views with the peer at each address; return the errors.

        The first one reached sends its full view, the others what differs; if the first is slow,
        they are asked for everything too. Without an address the last few that answered are asked.

        Raises:
            UserError: one of them is not an address.
        """
        failures: list[PeerError] = []
        told, is_asked = trio.Event(), False

        async def try_one(address: str) -> None:
            nonlocal is_asked
            try:
                peer = await self._transport.connect(address)
                if is_asked:
                    with trio.move_on_after(PATIENCE_S):
                        await told.wait()
                is_asked = True
                await self.exchange(peer, (address,))
                told.set()
            except PeerError as error:
                failures.append(error)

        with lone_errors():
            async with trio.open_nursery() as nursery:
                for address in ways_in or self._bootstrap.ways_back():
                    nursery.start_soon(try_one, address)
        return failures if ways_in else []

    @property
    def answered(self) -> Mapping[PeerId, tuple[tuple[str, ...], float]]:
        """Where peers are that answered when this one called them, and when they last did."""
        return self._bootstrap.answered

    async def find_again(
        self, former: Mapping[PeerId, tuple[str, ...]], seconds: float
    ) -> list[PeerId] | None:
        """Compare views with peers that answered in a former run, until one of them does.

        Return who could not be reached by then, or None if nobody answered in time: perhaps this
        machine has no network, or they start, too. They are looked for from now on then, one at a
        time, as peers that fell silent.
        """
        silent: list[PeerId] = []
        is_found = False

        async def try_one(peer: PeerId, addresses: tuple[str, ...]) -> None:
            nonlocal is_found
            try:
                await self.exchange(peer, addresses)
            except PeerError as error:
                _log.info("%s", error)
                silent.append(peer)
            else:
                is_found = True
                nursery.cancel_scope.cancel()

        with lone_errors(), trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for peer, addresses in former.items():
                    nursery.start_soon(try_one, peer, addresses)
        if is_found:
            return silent
        self._bootstrap.recall(former, trio.current_time())
        return None

    async def find_anybody(self, seconds: float) -> bool:
        """Look for peers without an address until one answers; return whether one did in time."""
        with trio.move_on_after(seconds):
            while self.view.knows_nobody():
                hints = self._strange(await self._transport.discover(None))
                async with trio.open_nursery() as nursery:
                    for address in hints:
                        nursery.start_soon(self._try, self._try_way, address)
                await trio.sleep(LOOK_AGAIN_S)
        return not self.view.knows_nobody()

    async def exchange(self, peer: PeerId, at: tuple[str, ...] = ()) -> None:
        """Compare views with a peer, which may be at these addresses besides those that it says.

        Raises:
            PeerUnavailable, RemoteProtocolError, RefusedError: nothing was learnt, or not all.
        """
        said = self.said_addresses(peer)
        # Dialled even if connected: so both learn that it is dialable, also after a restart.
        own = bool(said)
        addresses = tuple(dict.fromkeys([*at, *said]))
        self._expire()
        try:
            with trio.fail_after(EXCHANGE_S_MAX):
                models: list[ModelId | None] = [*self.view.followed]
                for model in models or [None]:
                    channel = await self._transport.open(peer, DIRECTORY, addresses, own=own)
                    try:
                        await ask(channel, self.view, model, self._told)
                    finally:
                        await channel.close()
        except trio.TooSlowError:
            self.view.note_call(peer, answered=False)
            raise PeerUnavailable(peer, f"{peer} did not answer") from None
        except PeerUnavailable:
            self.view.note_call(peer, answered=False)
            raise
        self.view.note_call(peer, answered=True)
        self._bootstrap.found(peer, [*at, *self.said_addresses(peer)], trio.current_time())

    def said_addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Return where a peer says to be reached; nothing if it says nothing."""
        entry = self.view.get(peer)
        return entry.parsed.advertisement.addresses if entry else ()

    async def _answer(self, channel: Channel) -> None:
        self._expire()
        with trio.move_on_after(EXCHANGE_S_MAX):
            await answer(channel, self.view, self._told)
            self.view.note_caller(channel.remote)
        self.advertiser.note_caller()

    async def _gossip(self, model: ModelId) -> None:
        """Take part in a model's gossip, for ever."""
        accept = judge(self.view, model, self._news)
        async with self._transport.join_topic(f"model/{model}", accept) as topic:
            self._topics[model] = topic
            try:
                self.advertiser.hurry()
                self._wake.set()
                await trio.sleep_forever()
            finally:
                del self._topics[model]

    async def _follow_moves(self) -> None:
        """Advertise a new address at once, and compare views again, for ever."""
        while True:
            await self._transport.wait_moved()
            self.advertiser.move(tuple(self._transport.addresses))
            self._wake.set()

    async def _compare_for_ever(self) -> None:
        while True:
            wake = self._wake
            await self._compare()
            with trio.move_on_after(self._pause_s() * self._chance.uniform(0.7, 1.0)):
                await wake.wait()

    def _pause_s(self) -> float:
        if self.view.knows_nobody():
            return FIND_S
        shortest_s = min(map(self.view.period_s, self.view.followed), default=COMPARE_S)
        return shortest_s if shortest_s <= SHORTEST_S else COMPARE_S

    async def _compare(self) -> None:
        """Compare views with one peer, and with some more while there are few neighbours."""
        self._expire()
        with lone_errors():
            async with trio.open_nursery() as nursery:
                for peer in self._partners():
                    nursery.start_soon(self._try, self.exchange, peer)
                hints = await self._look_out()
                for way in self._bootstrap.pick(self._chance, self.view.knows):
                    nursery.start_soon(self._try, self._try_again, way)
                for address in hints:
                    nursery.start_soon(self._try, self._try_way, address)

    async def _look_out(self) -> list[str]:
        """Return addresses of unknown peers if this peer has too few neighbours."""
        lacks = any(topic.neighbours < NEIGHBOURS_MIN for topic in self._topics.values())
        if not (self.view.knows_nobody() or (lacks and self._chance.random() < LOOK_OUT)):
            return []
        model = next(iter(self.view.followed), None)
        return self._strange(await self._transport.discover(model and f"model/{model}"))

    def _strange(self, hints: Sequence[str]) -> list[str]:
        return [h for h in hints if not self.view.knows(PeerId(h.rpartition("/p2p/")[2]))]

    def _partners(self) -> list[PeerId]:
        """Pick peers to compare views with."""
        lacking = [NEIGHBOURS_MIN - topic.neighbours for topic in self._topics.values()]
        me, wanted = self._transport.peer_id, max([1, *lacking])
        return pick_partners(self.view, me, wanted, self._chance)

    async def _try_way(self, address: str) -> None:
        await self.exchange(await self._transport.connect(address), (address,))

    async def _try_again(self, way: Way) -> None:
        await self.exchange(*way)

    async def _try(self, act: Callable[[Any], Awaitable[None]], to: str | Way) -> None:
        try:
            await act(to)
        except (PeerError, UserError) as error:
            _log.info("%s", error)

    def _expire(self) -> None:
        self._bootstrap.lost(self.view.expire(trio.current_time()), trio.current_time())

    def _entries(self, model: ModelId) -> Iterable[IndexEntry]:
        self._expire()
        return self.view.of(model)
