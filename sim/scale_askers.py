"""Askers in a swarm without messages: routes and standings as real requesters choose and keep them.

Some peers claim to be faster than they are. An asker finds out only by using them.
"""

import heapq
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from attrs import evolve

from p2pinfer.core.advertisement import State
from p2pinfer.core.ids import PeerId
from scheduler.offer_table import OfferTable
from scheduler.routing import Asking, NoRoute, RouteHop, find_route
from scheduler.standing import Standings
from sim.scale_swarm import ScaleSwarm

ASKERS = 16

ASK_S = 10.0
"""Average interval between one asker's questions."""

ANSWER_S = 30.0
"""The mean length of a session."""

ATTEMPTS_MAX = 4
"""Routes tried for one question, each without those that failed before."""

BOASTERS = 0.05
BOAST = 4.0
"""How many times their true speed some peers claim."""


class Askers:
    """The askers and their experience."""

    def __init__(self, swarm: ScaleSwarm, chance: random.Random) -> None:
        self._swarm, self._chance = swarm, chance
        self._standings = [Standings() for _ in range(ASKERS)]
        self._row = {a.peer: row for row, a in enumerate(swarm.said)}
        self._sessions: list[tuple[float, int]] = []
        """When each hop of a session is over, and the peer's row."""
        self._busy: Counter[int] = Counter()
        count = len(swarm.said)
        self._boasters = set(chance.sample(range(count), round(BOASTERS * count)))
        for row in sorted(self._boasters):
            own = swarm.said[row]
            swarm.said[row] = evolve(own, row_us=max(1, round(own.row_us / BOAST)))
        self._outcomes: Counter[str] = Counter()
        self._hops: list[int] = []
        self._boasting: list[float] = []
        """Of each route in turn: the share of hops run by boasters."""

    def step(self, now_s: float, step_s: float, view: OfferTable) -> None:
        """End sessions that are over, and ask as often as is due in a step."""
        while self._sessions and self._sessions[0][0] <= now_s:
            self._free(heapq.heappop(self._sessions)[1])
        if not len(view):
            return
        for asker in range(ASKERS):
            if self._chance.random() < step_s / ASK_S:
                self._ask(asker, now_s, view)

    def _ask(self, asker: int, now_s: float, view: OfferTable) -> None:
        standings = self._standings[asker]
        without: set[PeerId] = set()
        for attempt in range(ATTEMPTS_MAX):
            asking = Asking(
                seen=standings.experience(now_s, {}), without=without, chance=self._chance.random()
            )
            try:
                route = find_route(view, self._swarm.lo, self._swarm.hi, asking)
            except NoRoute:
                self._outcomes["without_route"] += 1
                return
            failed = [hop for hop in route if not self._serves(hop.peer, hop.first, hop.end)]
            for hop in failed:
                is_there = self._swarm.said[self._row[hop.peer]].state is not State.LEFT
                standing = standings.of(hop.peer, now_s)
                said_no = standing.refused(now_s) if is_there else standing.failed(now_s)
                standings.put(hop.peer, said_no)
                without.add(hop.peer)
            if not failed:
                self._outcomes["at_later_try" if attempt else "at_first_try"] += 1
                self._use(route, standings, now_s)
                return
        self._outcomes["failed"] += 1

    def _serves(self, peer: PeerId, first: int, end: int) -> bool:
        """Whether a peer would take a session now, whatever it advertised earlier."""
        row = self._row[peer]
        own = self._swarm.said[row]
        fits = own.state is State.SERVING and own.first == first and end <= own.end
        return fits and self._busy[row] < own.sessions_max

    def _use(self, route: Sequence[RouteHop], standings: Standings, now_s: float) -> None:
        """Run a session along a route, and note how fast its peers are."""
        over_s = now_s + self._chance.expovariate(1 / ANSWER_S)
        boasting = 0
        for hop in route:
            row = self._row[hop.peer]
            self._busy[row] += 1
            self._tell(row)
            heapq.heappush(self._sessions, (over_s, row))
            true_us = 1e6 / float(self._swarm.speed[row])
            standing = standings.of(hop.peer, now_s)
            standings.put(hop.peer, standing.worked(now_s, true_us, hop.offer.row_us))
            boasting += row in self._boasters
        self._hops.append(len(route))
        self._boasting.append(boasting / len(route))

    def _free(self, row: int) -> None:
        self._busy[row] -= 1
        self._tell(row)

    def _tell(self, row: int) -> None:
        """Have a peer advertise how many more sessions it would take."""
        own = self._swarm.said[row]
        free = max(0, own.sessions_max - self._busy[row])
        self._swarm.said[row] = evolve(own, sessions_free=free)

    def report(self) -> dict[str, Any]:
        """Return the results."""
        quarter = max(1, len(self._boasting) // 4)
        names = ("at_first_try", "at_later_try", "without_route", "failed")
        return {
            "asked": sum(self._outcomes.values()),
            **{name: self._outcomes[name] for name in names},
            "hops_median": statistics.median(self._hops) if self._hops else None,
            "boasters_share": BOASTERS,
            "hops_by_boasters_share_at_first": _mean(self._boasting[:quarter]),
            "hops_by_boasters_share_at_last": _mean(self._boasting[-quarter:]),
        }


def _mean(values: list[float]) -> float | None:
    return round(statistics.fmean(values), 3) if values else None
