"""Calling peers only to learn how far they are: routes are chosen by that."""

from collections.abc import Callable, Iterable
from random import Random

import trio

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.errors import PeerError, UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from transports.base import Transport

REACHED_MAX = 16
"""Peers whose round trip is measured; each costs a connection."""

CALLED_MAX = 64
"""Peers called to reach that many: most of a swarm of laptops may be behind NAT."""

CALL_S = 5.0
"""How often more are called, while fewer have been reached."""

CALL_S_MAX = 3.0
"""For one to answer; a peer that takes longer would be a poor choice."""


async def call_around(
    transport: Transport, offers: Callable[[], Iterable[Advertisement]], chance: Random
) -> None:
    """Connect to some peers, so that their round trips are measured."""
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


def neighbours(offers: Iterable[Advertisement], layers: LayerRange) -> list[Advertisement]:
    """Return the peers that rows may come from or go to, of a peer that serves these layers."""
    return [
        a for a in offers if layers.first < a.first <= layers.end or a.first < layers.first <= a.end
    ]
