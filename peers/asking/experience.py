"""What a requester learns about peers from its own sessions, for choosing the next route."""

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import trio

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.errors import PeerError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Refusal
from peers.steps.messaging import RefusedError
from scheduler.offer_table import Experience
from scheduler.routing import RouteHop
from scheduler.standing import Standing, Standings

TIMES_MAX = 64
"""A session's most recent tokens whose stage times are kept."""

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
