"""Calling peers only to learn how far they are: routes are chosen by that.

Each tells how far it is from a few others, its relay among them. So once some of these are known
from here, those are called that cannot be far. Without that, hidden peers know the open ones that
they looked at as relays, and few other hidden ones; routes then pass these by. Of near ones those
come first that are quick and hold many layers: a town may have more slow peers than are called.
"""

import math
from collections.abc import Callable, Iterable
from random import Random

import trio

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.errors import PeerError, UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from scheduler.offer_table import ROW_US_DEFAULT, US_PER_S
from scheduler.route_cost import HOP_S, ROUND_TRIP_S_DEFAULT
from transports.base import Transport
from transports.vain_dials import VainDials

REACHED_MAX = 16
"""Peers whose round trip is measured; each costs a connection."""

CALLED_AT_ONCE_MAX = 4
"""After each few, more is known of who is near."""

CALLED_MAX = 64
"""Peers called to reach that many: most of a swarm of laptops may be behind NAT."""

CALL_S = 5.0
"""How often more are called, while fewer have been reached."""

CALL_S_MAX = 3.0
"""For one to answer; a peer that takes longer would be a poor choice."""


async def call_around(
    transport: Transport,
    offers: Callable[[], Iterable[Advertisement]],
    chance: Random,
    round_trip_s: Callable[[PeerId], float | None] = lambda _: None,
) -> None:
    """Connect to some peers, so that their round trips are measured: rather to near and quick ones.

    Nobody is sent to a stranger's host, or about its own network, by peers that are made up.

    Args:
        transport: reaches them.
        offers: returns those that may be called.
        chance: decides among those of which nothing is known.
        round_trip_s: to a connected peer, if it was measured.
    """
    called, reached, dials = set[PeerId](), set[PeerId](), VainDials()
    while wanted := min(REACHED_MAX - len(reached), CALLED_MAX - len(called)):
        strangers = [
            offer
            for offer in offers()
            if offer.peer not in called and round_trip_s(offer.peer) is None
        ]
        chance.shuffle(strangers)
        strangers.sort(key=lambda offer: layer_s(offer, round_trip_s))
        before = len(reached)
        async with trio.open_nursery() as nursery:
            for offer in strangers[: min(wanted, CALLED_AT_ONCE_MAX)]:
                called.add(offer.peer)
                addresses = dials.begin(offer.addresses, trio.current_time())
                nursery.start_soon(_call, transport, addresses, reached, dials)
        if len(reached) == before:
            await trio.sleep(CALL_S)


def layer_s(offer: Advertisement, round_trip_s: Callable[[PeerId], float | None]) -> float:
    """Return what each layer that a peer holds costs a token at most, with its share of the way.

    A peer that tells of nobody known from here may be on the far side of the world.
    """
    way_s = min(farthest_s(offer, round_trip_s), ROUND_TRIP_S_DEFAULT)
    held = max(1, offer.end - offer.first)
    return (HOP_S + way_s) / held + (offer.row_us or ROW_US_DEFAULT) / US_PER_S


def farthest_s(offer: Advertisement, round_trip_s: Callable[[PeerId], float | None]) -> float:
    """Return the round trip that a peer has at most, by those it tells to others known from here.

    Infinite if it tells of none of them.
    """
    ways = ((round_trip_s(link.peer), link.round_trip_us / 1e6) for link in offer.links)
    return min((near + far for near, far in ways if near is not None), default=math.inf)


async def _call(
    transport: Transport, addresses: list[str], reached: set[PeerId], dials: VainDials
) -> None:
    with trio.move_on_after(CALL_S_MAX):
        for address in addresses:
            try:
                reached.add(await transport.connect(address))
            except (PeerError, UserError):  # it advertises what no transport can dial
                continue
            dials.answered(addresses)
            return


def neighbours(offers: Iterable[Advertisement], layers: LayerRange) -> list[Advertisement]:
    """Return the peers that rows may come from or go to, of a peer that serves these layers."""
    return [
        a for a in offers if layers.first < a.first <= layers.end or a.first < layers.first <= a.end
    ]
