"""Which peers are asked to relay: near ones first, then neighbours, never hidden ones."""

from collections import Counter
from typing import Any

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.ids import PeerId
from peers.discovery.relay_candidates import relay_candidates
from tests.support.adverts import MODEL, advert, peer_id, through

OPEN = ("/memory/0",)


class Known:
    """Stands in for a directory that knows these peers."""

    def __init__(self, me: Advertisement, others: list[Advertisement]) -> None:
        self._me, self._others = me, others

    def peers(self) -> list[Advertisement]:
        """Return all."""
        return [self._me, *self._others]

    def holding(self, _: object) -> list[Advertisement]:
        """Return the others."""
        return self._others


def order(
    me: Advertisement, others: list[Advertisement], away_s: dict[PeerId, float]
) -> list[PeerId]:
    """Return the candidates in their order."""
    known: Any = Known(me, others)
    return [peer for peer, _ in relay_candidates(known, me.peer, MODEL, away_s.get)]


def test_near_ones_come_first_then_neighbours() -> None:
    """What others say goes a detour through the relay, neighbour or not; the hidden relay never."""
    me = advert("me", 5, 9, addresses=())
    before, after = advert("b", 1, 5, addresses=OPEN), advert("a", 9, 12, addresses=OPEN)
    near, far = advert("n", 1, 9, addresses=OPEN), advert("f", 1, 9, addresses=OPEN)
    unknown = advert("u", 1, 9, addresses=OPEN)
    hidden = advert("h", 1, 5, addresses=(through("n"),))
    away_s = {near.peer: 0.01, far.peer: 0.3, after.peer: 0.05}
    others = [unknown, far, hidden, near, before, after]
    expected = [near.peer, after.peer, before.peer, unknown.peer, far.peer]
    assert order(me, others, away_s) == expected


def test_hidden_peers_do_not_crowd_one_relay() -> None:
    """Among equals each begins with another, and always with the same."""
    others = [advert(name, 1, 9, addresses=OPEN) for name in "abcd"]
    firsts = Counter(order(advert(f"me{n}", 2, 3), others, {})[0] for n in range(200))
    assert set(firsts) == {peer_id(name) for name in "abcd"}
    assert min(firsts.values()) > 25
    me = advert("me", 2, 3)
    assert order(me, others, {}) == order(me, others[::-1], {})
