"""Which peers of a swarm may carry a path for a requester that hides, and which it must not ask.

A peer that has seen where a requester is may not be a stage for it, so who serves layers that
nobody else serves is no relay for a path. One operator should not hold both ends of it: no two
relays come from one block of addresses, which is all that is known of operators.
"""

import ipaddress
from collections.abc import Collection, Iterable, Sequence
from random import Random
from typing import Final

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.ways import is_circuit

BLOCK_BITS: Final = {4: 16, 6: 32}
"""Of an IPv4 and of an IPv6 address: about what one provider has in one place."""

Relay = tuple[PeerId, tuple[str, ...]]
"""A peer, and where it is."""


def blocks_of(addresses: Iterable[str]) -> set[str]:
    """Return the blocks that addresses are in; private ones count for none.

    On one local network there is no second operator to be found.
    """
    found: set[str] = set()
    for address in addresses:
        try:
            host = ipaddress.ip_address(address.split("/")[2])
        except (ValueError, IndexError):
            continue  # a name
        if host.is_global:
            found.add(str(ipaddress.ip_network((host, BLOCK_BITS[host.version]), strict=False)))
    return found


def missing_without(
    known: Iterable[Advertisement], barred: Collection[PeerId]
) -> dict[ModelId, list[int]]:
    """Return, by model, the layers that only peers serve which may not be stages."""
    held: dict[ModelId, set[int]] = {}
    left: dict[ModelId, set[int]] = {}
    for each in known:
        layers = range(each.first, each.end)
        held.setdefault(each.model, set()).update(layers)
        if each.peer not in barred:
            left.setdefault(each.model, set()).update(layers)
    lost = {model: sorted(layers - left.get(model, set())) for model, layers in held.items()}
    return {model: layers for model, layers in lost.items() if layers}


def pick_relays(
    known: Sequence[Advertisement],
    count: int,
    barred: Collection[PeerId],
    blocks: Collection[str],
    chance: Random,
) -> list[Relay]:
    """Return peers to carry a path: at random, those without layers before those with some.

    Args:
        known: all that is advertised.
        count: how many at most.
        barred: who has another part in the path, or saw the requester: no relay, and no stage.
        blocks: of addresses that others on the path are in.
        chance: draws.
    """
    taken, used = set(barred), set(blocks)
    found: list[Relay] = []
    drawn = sorted(known, key=lambda each: (each.end > each.first, chance.random()))
    before = missing_without(known, taken)
    for each in drawn:
        addresses = tuple(a for a in each.addresses if not is_circuit(a))
        if len(found) == count or not addresses or each.peer in taken:
            continue
        own = blocks_of(addresses)
        if own & used or missing_without(known, taken | {each.peer}) != before:
            continue
        taken.add(each.peer)
        used |= own
        found.append((each.peer, addresses))
    return found
