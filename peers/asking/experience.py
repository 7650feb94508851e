"""What a requester learns about peers from its own sessions, for choosing the next route."""

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from random import Random

import trio

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.errors import PeerError, UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Refusal
from peers.steps.messaging import RefusedError
from scheduler.offer_table import Experience
from scheduler.routing import RouteHop
from scheduler.standing import Standing, Standings
from transports.base import Transport

TIMES_MAX = 64
"""A session's most recent tokens whose stage times are kept."""

REACHED_MAX = 16
"""Peers whose round trip is measured; each costs a connection."""

CALLED_MAX = 64
"""Peers called to reach that many: most of a swarm of laptops may be behind NAT."""

CALL_S = 5.0
"""How often more are called, while fewer have been reached."""

CALL_S_MAX = 3.0
"""For one to answer; a peer that takes longer would be a poor choice."""

INNOCENT = (Refusal.BUSY, Refusal.WRONG_RANGE, Refusal.CONTEXT_FULL)
"""Refusals that an honest peer may give: its advertisement was a moment out of date."""

StageTimes = deque[tuple[int, ...]]
"""Microseconds of decoding that each stage of a route reports, token by token."""


def stage_times() -> StageTimes:
    """Return an empty record of one session's stage times."""
    return deque(maxlen=TIMES_MAX)


class Experiences:
    """What this node has itself observed of other peers."""

    def __init__(
        self,
        round_trip_s: Callable[[PeerId], float | None] = lambda _: None,
        standings: Standings | None = None,
    ) -> None:
        self._round_trip_s = round_trip_s
        self._standings = Standings() if standings is None else standings

    def of(self, offers: Iterable[Advertisement]) -> Experience:
        """Return what routing should know about these peers."""
        trips = {a.peer: self._round_trip_s(a.peer) for a in offers}
        known = {peer: seconds for peer, seconds in trips.items() if seconds is not None}
        return self._standings.experience(trio.current_time(), known)

    def standing(self, peer: PeerId) -> float:
        """Return how far a peer is trusted to keep its word, from 0 to 1."""
        return self._standings.of(peer, trio.current_time()).value

    def failed(self, error: PeerError) -> None:
        """Record that a peer ended a session, or did not open one."""
        now = trio.current_time()
        before = self._standings.of(error.peer, now)
        innocent = isinstance(error, RefusedError) and error.refused.code in INNOCENT
        self._put(error.peer, before.refused(now) if innocent else before.failed(now))

    def cheated(self, peer: PeerId) -> None:
        """Record a proof that a peer cheated: it is never used again."""
        now = trio.current_time()
        self._put(peer, self._standings.of(peer, now).cheated(now))

    def worked(self, route: Sequence[RouteHop], times: Iterable[Sequence[int]]) -> None:
        """Record how long each stage took for steps of one row."""
        now = trio.current_time()
        rows = [each for each in times if len(each) == len(route)]
        if not rows:
            return
        for hop, decoding_us in zip(route, zip(*rows, strict=True), strict=True):
            row_us = statistics.median(decoding_us) / (hop.end - hop.first)
            standing = self._standings.of(hop.peer, now)
            self._put(hop.peer, standing.worked(now, row_us, hop.offer.row_us))

    def _put(self, peer: PeerId, standing: Standing) -> None:
        self._standings.put(peer, standing)


async def call_around(
    transport: Transport, offers: Callable[[], Iterable[Advertisement]], chance: Random
) -> None:
    """Connect to some of the serving peers, so that their round trips are measured."""
    called, reached = set[PeerId](), set[PeerId]()
    while wanted := min(REACHED_MAX - len(reached), CALLED_MAX - len(called)):
        strangers = [offer for offer in offers() if offer.peer not in called]
        chance.shuffle(strangers)
        async with trio.open_nursery() as nursery:
            for offer in strangers[:wanted]:
                called.add(offer.peer)
                nursery.start_soon(_call, transport, offer, reached)
        await trio.sleep(CALL_S)


async def _call(transport: Transport, offer: Advertisement, reached: set[PeerId]) -> None:
    with trio.move_on_after(CALL_S_MAX):
        for address in offer.addresses:
            try:
                reached.add(await transport.connect(address))
            except (PeerError, UserError):  # it advertises what no transport can dial
                continue
            return
