"""Replacements for a session's lost peers, and what is learnt about every peer in it."""

import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress

from attrs import evolve

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.errors import PeerError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.messages import Hop
from peers.asking.experience import Experiences
from peers.asking.repair import Neighbours, Repair
from peers.asking.session import Session
from scheduler.routing import Asking, NoRoute, RouteHop, replacement

SLOW_TIMES = 10
"""A stage that takes this many times as long as it claimed is replaced, if possible."""

BETTER_TIMES = 2
"""Its replacement must claim to be this many times as fast as the stage was seen to be."""

APART_TIMES = 4
"""A stage is slow by itself if it is this many times as late, by what it claims, as another of the
route. Where all are late alike, their machine is busy: then its other peers are as slow, and
computing a session's rows again there would stop its answer for seconds."""

ROWS_PER_SESSION = 0.5
"""That count as waiting for each other session of a stage: one that answers has a row there most of
the time, and which do is not told."""

TIMES_MIN = 8
"""Tokens, half of which may have been slow for some other reason."""


class Replacements:
    """Tracks a session's route as it changes."""

    def __init__(
        self,
        route: Sequence[RouteHop],
        offers: Callable[[], Sequence[Advertisement]],
        asking: Asking,
        experiences: Experiences,
        on_wait: Callable[[str], None],
        on_lost: Callable[[PeerError], None],
    ) -> None:
        """Begin with a route; ``offers`` returns the peers that serve the model.

        ``asking`` says what they are wanted for.
        """
        self.session: Session | None = None
        self.route = list(route)
        self._offers, self._asking, self._experiences = offers, asking, experiences
        self._on_wait, self._on_lost = on_wait, on_lost
        self._chosen: dict[PeerId, RouteHop] = {}

    def repair(self) -> Repair:
        """Return the callbacks that the session needs."""
        return Repair(
            self._choose,
            self._on_wait,
            self._on_lost,
            self._take,
            self._better,
            self._rows_of_others,
        )

    def learn(self) -> None:
        """Record how fast the peers of the route were."""
        if self.session:
            self._experiences.worked(self.route, self.session.times)
            self.session.times.clear()

    def _choose(
        self, layers: LayerRange, between: Neighbours, without: Collection[PeerId]
    ) -> list[Hop]:
        """Return hops that can run these layers; raises NoRoute if there are none."""
        return next(self._chains(layers, between, without))

    def _chains(
        self, layers: LayerRange, between: Neighbours, without: Collection[PeerId]
    ) -> Iterator[list[Hop]]:
        """Yield hops that can run these layers: first in the same numerics class, then in any.

        With other bits other tokens may follow, and receipts from before and after do not match.

        Raises:
            NoRoute: there are none.
        """
        offers = self._offers()
        asking = evolve(self._asking, seen=self._experiences.of(offers), without=without)
        replaced = [hop for hop in self.route if hop.first in layers]
        classes = {hop.offer.numerics_class for hop in replaced}
        alike = [offer for offer in offers if offer.numerics_class in classes]
        with suppress(NoRoute):
            yield self._hops(replacement(alike, layers, between, asking))
        yield self._hops(replacement(offers, layers, between, asking))

    def _hops(self, chain: Sequence[RouteHop]) -> list[Hop]:
        self._chosen |= {hop.peer: hop for hop in chain}
        return [Hop(hop.peer, hop.addresses, hop.first, hop.end) for hop in chain]

    def _better(self) -> tuple[int, list[Hop]]:
        """Return a stage far slower than advertised, and hops that advertise to be far faster."""
        times = (
            [each for each in self.session.times if len(each) == len(self.route)]
            if self.session
            else []
        )
        if len(times) < TIMES_MIN:
            return 0, []
        peers = [None, *(hop.peer for hop in self.route), None]
        taken = [statistics.median(each[index] for each in times) for index in range(len(times[0]))]
        claimed = [hop.offer.row_us * (hop.end - hop.first) for hop in self.route]
        for index in slow_stages(taken, claimed):
            hop, taken_us = self.route[index], taken[index]
            between = peers[index], peers[index + 2]
            without = frozenset(peer for peer in peers if peer)
            with suppress(NoRoute):
                for others in self._chains(LayerRange(hop.first, hop.end), between, without):
                    offers = [(self._chosen[o.peer].offer, o.end - o.first) for o in others]
                    said_us = [offer.row_us * count for offer, count in offers]
                    if all(said_us) and BETTER_TIMES * sum(said_us) < taken_us:
                        return index, others
        return 0, []

    def _rows_of_others(self, own: int) -> float:
        """Return how many rows of others wait, or soon will, where most do on the route."""
        peers = {hop.peer for hop in self.route}
        offers = (each for each in self._offers() if each.peer in peers)
        return max((rows_of_others(each, own) for each in offers), default=0.0)

    def _take(self, hops: Sequence[Hop]) -> None:
        """Update the route to the chain's current peers."""
        self.learn()
        known = {hop.peer: hop for hop in self.route} | self._chosen
        self.route = [evolve(known[hop.peer], end=hop.end) for hop in hops]


def rows_of_others(offer: Advertisement, own: int) -> float:
    """Return how many rows wait at a peer, besides ``own``, or may as its other sessions answer."""
    sessions = max(0, offer.sessions_max - offer.sessions_free - 1)
    return max(offer.queued_rows - own, ROWS_PER_SESSION * sessions, 0.0)


def slow_stages(taken_us: Sequence[float], claimed_us: Sequence[float]) -> list[int]:
    """Return which stages of a route take far longer than they claim, and than others do.

    Args:
        taken_us: by each for one row.
        claimed_us: by each in its advertisement; 0: it claims nothing.
    """
    late = [taken / said if said else 0.0 for taken, said in zip(taken_us, claimed_us, strict=True)]
    known = [times for times in late if times]
    return [
        index
        for index, times in enumerate(late)
        if times > SLOW_TIMES and (len(known) == 1 or times > APART_TIMES * min(known))
    ]
