"""Whom a peer compares notes with next."""

from random import Random

from p2pinfer.core.ids import PeerId
from peers.discovery.model_index import IndexEntry
from peers.discovery.view import SwarmView

DOUBTED_MAX = 4
"""Peers called in a round because nothing but words is known of them."""

CALLERS_MAX = 16
"""Peers that call a newcomer in a round, or so."""

CALL_AGAIN = 0.25
"""Share of rounds in which one is called that is not counted on, as it may be back. In a swarm of
laptops behind NAT most cannot be dialled, and a call to one of them only takes time."""

ELSEWHERE = 0.125
"""Share of rounds with a peer of another model: so much of them as keeps them known."""


def pick_partners(view: SwarmView, me: PeerId, wanted: int, chance: Random) -> list[PeerId]:
    """Return peers to be called, each once: some at random, and those that a call is to judge.

    Args:
        view: what is known of them.
        me: who calls.
        wanted: how many at random, where so many are counted on.
        chance: draws.
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
    """Return what is known of the others that serve a model of this peer's and can be dialled."""
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
    """Return a few of those who are only heard of, or did not answer the last time.

    In a large swarm not always any: else everybody would call each newcomer at once.
    """
    if chance.random() * len(there) > CALLERS_MAX:
        return []
    doubted = [entry for entry in there if entry.missed or not entry.has_answered]
    return list(map(_of, chance.sample(doubted, min(DOUBTED_MAX, len(doubted)))))
