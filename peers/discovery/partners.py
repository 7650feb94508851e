"""Which peers a peer compares views with next."""

from random import Random

from p2pinfer.core.ids import PeerId
from peers.discovery.model_index import IndexEntry
from peers.discovery.view import SwarmView

DOUBTED_MAX = 4
"""Peers called in a round because only their advertisements are known."""

CALLERS_MAX = 16
"""About how many peers call a newcomer in a round."""

CALL_AGAIN = 0.25
"""Share of rounds in which a peer that is not relied on is called, as it may be back. In a swarm of
laptops behind NAT most cannot be dialled, and a call to one of them only wastes time."""

ELSEWHERE = 0.125
"""Share of rounds spent on a peer of another model: just enough to keep those models known."""


def pick_partners(view: SwarmView, me: PeerId, wanted: int, chance: Random) -> list[PeerId]:
    """Return peers to call, each once: some at random, and some whose presence is in doubt.

    Args:
        view: the known peers.
        me: the calling peer.
        wanted: how many at random, if that many can be relied on.
        chance: draws them.
    """
    entries = _followed(view, me)
    others = list(map(_of, view.glimpses(view.followed)))
    if others and (not entries or chance.random() < ELSEWHERE):
        return [chance.choice(others)]
    there: list[IndexEntry] = []
    gone: list[PeerId] = []
    for entry in entries:
        if entry.is_there:
            there.append(entry)
        else:
            gone.append(_of(entry))
    some = list(map(_of, chance.sample(there, min(wanted, len(there)))))
    if gone and (not there or chance.random() < CALL_AGAIN):
        some.append(chance.choice(gone))
    return list(dict.fromkeys([*some, *_doubted(there, chance)]))


def _followed(view: SwarmView, me: PeerId) -> list[IndexEntry]:
    """Return the entries of other dialable peers that serve a model this peer follows."""
    own = view.get(me)
    return [
        entry
        for model in view.followed
        for entry in view.of(model)
        if entry.parsed.advertisement.addresses and entry is not own
    ]


def _of(entry: IndexEntry) -> PeerId:
    return entry.parsed.advertisement.peer


def _doubted(there: list[IndexEntry], chance: Random) -> list[PeerId]:
    """Return a few peers that are only heard of, or did not answer the last call.

    In a large swarm this may be none: otherwise all peers would call each newcomer at once.
    """
    if chance.random() * len(there) > CALLERS_MAX:
        return []
    doubted = [entry for entry in there if entry.missed or not entry.has_answered]
    return list(map(_of, chance.sample(doubted, min(DOUBTED_MAX, len(doubted)))))
