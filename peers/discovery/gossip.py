"""When a peer publishes its advertisement, and how it judges those of others."""

from functools import lru_cache
from random import Random

import trio

from p2pinfer.core.advertisement import Advertisement, Heard
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.wire import BadMessage, decode
from peers.discovery.view import NEW, SwarmView, Taken
from peers.steps.rate_limit import RateLimits
from transports.base import Accept, GossipVerdict

BURST_MAX = 4
"""Changes of our own state that are published at once."""

BURST_PER_S = 0.3
"""Further changes per second; others accept more of both: see `peers.discovery.view.SAID_MAX`."""

ALONE_S = 0.5
"""How soon to try again while no neighbour is connected."""

EARLY = 0.1
"""Largest share of a period by which a renewal comes early, so that renewals spread out."""

SPREAD_RATIO = 1.5
"""If the period grew by more than this, the next renewal comes at a random moment within it."""

NEWS_MAX = 500
NEWS_PER_S = 100
"""Advertisements taken from one neighbour, at once and in the long run: five times what a swarm of
any size sends, and 1 % of a core for checking their signatures."""

PASS = GossipVerdict.PASS
"""Looked up once, as `peers.discovery.view.NEW` is."""


class Announcer:
    """Times the publishing of our own advertisement."""

    def __init__(self) -> None:
        self._due = float("inf")
        self._period_s = 0.0
        self._spread = False
        self._hurry = trio.Event()
        self._credit, self._credited_at = float(BURST_MAX), -float("inf")

    def hurry(self) -> None:
        """Have our own advertisement published as soon as the rate limit allows."""
        self._hurry.set()

    async def wait_due(self, chance: Random) -> None:
        """Wait until our own advertisement is due for publishing."""
        early = chance.random() if self._spread else 1 - EARLY * chance.random()
        with trio.move_on_after(max(0.0, early * (self._due - trio.current_time()))):
            await self._hurry.wait()
        self._hurry = trio.Event()
        if (lacking := 1 - self._now_credit()) > 0:
            await trio.sleep(lacking / BURST_PER_S)

    def published(self, period_s: float) -> None:
        """Wait for another period from now on."""
        now = trio.current_time()
        self._credit, self._credited_at = self._now_credit() - 1, now
        self._due = now + period_s
        # Peers that started together, or slow down as the swarm grows, must not publish together.
        self._spread = period_s > SPREAD_RATIO * self._period_s
        self._period_s = period_s

    def wait(self, seconds: float) -> None:
        """Try again later: there is no neighbour, or nothing to publish."""
        self._due = trio.current_time() + seconds
        self._spread = False

    def _now_credit(self) -> float:
        return min(
            float(BURST_MAX),
            self._credit + BURST_PER_S * (trio.current_time() - self._credited_at),
        )


def news() -> RateLimits:
    """Return the rate limits for each neighbour's advertisements."""
    return RateLimits(NEWS_MAX, NEWS_PER_S)


def judge(view: SwarmView, model: ModelId, news: RateLimits) -> Accept:
    """Return the judge of gossip about a model; ``news`` limits what each neighbour may send."""

    def accept(neighbour: PeerId, message: bytes) -> GossipVerdict:
        now = trio.current_time()
        if not news.spend(neighbour, now):
            return GossipVerdict.DROP
        heard = _heard(message)
        taken = view.take(heard, now, model) if heard else Taken.BAD
        if taken is NEW:
            return PASS
        return GossipVerdict.BLAME if taken is Taken.BAD else GossipVerdict.DROP

    return accept


def essence(said: Advertisement) -> tuple[object, ...]:
    """Return the part that others must learn at once; the rest are ever-changing figures."""
    return said.model, said.first, said.end, said.state, said.addresses, said.numerics_class


@lru_cache(1024)
def _heard(message: bytes) -> Heard | None:
    """Read a gossiped advertisement, whose age is always zero; None if it is invalid."""
    try:
        found = decode(message, Heard)
    except BadMessage:
        return None
    return None if found.age_ms else found
