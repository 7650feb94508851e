"""Which peers a hidden one asks to relay for it, the best first."""

import hashlib
from collections.abc import Callable

from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.ways import is_circuit
from peers.discovery.directory import Directory

FAR_S = 0.2
"""Assumed of a peer whose round trip was not measured: the far side of the world."""


def relay_candidates(
    directory: Directory,
    me: PeerId,
    model: ModelId,
    round_trip_s: Callable[[PeerId], float | None] = lambda _: None,
) -> list[tuple[PeerId, tuple[str, ...]]]:
    """Return the dialable peers of a model, and where they are.

    First come the near ones, since what others say goes a detour through them. Among those whose
    distance is unknown, those that this peer's rows come from or go to come first: they are called
    anyway. Each hidden peer has an order of its own among equals, so that they do not all crowd one
    relay.
    """
    own = next((each for each in directory.peers() if each.peer == me), None)
    ends = (own.first, own.end) if own and own.end else ()
    found = [each for each in directory.holding(model) if not any(map(is_circuit, each.addresses))]

    def rank(peer: PeerId, first: int, end: int) -> tuple[float, bool, bytes]:
        is_stranger = not ends or (end != ends[0] and first != ends[1])
        away_s = round_trip_s(peer)
        lot = hashlib.blake2b(f"{me} {peer}".encode(), digest_size=8).digest()
        return FAR_S if away_s is None else away_s, is_stranger, lot

    found.sort(key=lambda each: rank(each.peer, each.first, each.end))
    return [(each.peer, each.addresses) for each in found]
