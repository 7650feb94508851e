"""Which of the known peers a peer calls, and whether it knows all peers."""

from random import Random

from trio.testing import MockClock

from peers.discovery.model_index import CALLS_MISSED_MAX
from peers.discovery.partners import CALL_AGAIN, CALLERS_MAX, DOUBTED_MAX, pick_partners
from tests.support.directories import Peer, directories, fill, identity

ROUNDS = 1000


async def test_a_large_swarm_does_not_overrun_a_newcomer(autojump_clock: MockClock) -> None:
    """In each round only some peers call those they merely heard of."""
    async with directories(1) as (_, (a,)):
        fill(a, range(100, 1100))
        view = a.directory.view
        called = [len(pick_partners(view, a.id, 0, Random(n))) for n in range(ROUNDS)]
        assert set(called) == {0, DOUBTED_MAX}
        assert CALLERS_MAX / 2 < called.count(DOUBTED_MAX) < 1.6 * CALLERS_MAX


def miss(peer: Peer, numbers: range) -> None:
    """Let some peers miss enough calls that they are not relied on."""
    for number in numbers:
        for _ in range(CALLS_MISSED_MAX):
            peer.directory.view.note_call(identity(number).peer_id, answered=False)


async def test_undialable_peers_are_called_rarely(autojump_clock: MockClock) -> None:
    """Most of a swarm may be behind NAT: rounds are for peers that answer."""
    async with directories(1) as (_, (a,)):
        fill(a, range(100, 130))
        miss(a, range(110, 130))
        there = {identity(number).peer_id for number in range(100, 110)}
        view, calls = a.directory.view, [0, 0]
        for n in range(ROUNDS):
            for peer in pick_partners(view, a.id, 1, Random(n)):
                calls[peer in there] += 1
        assert 0.8 * CALL_AGAIN < calls[False] / ROUNDS < 1.2 * CALL_AGAIN
        assert calls[True] > ROUNDS


async def test_if_no_peer_answers_all_are_tried(autojump_clock: MockClock) -> None:
    """One in every round: a peer that was cut off finds its way back."""
    async with directories(1) as (_, (a,)):
        fill(a, range(100, 110))
        miss(a, range(100, 110))
        view = a.directory.view
        called = [pick_partners(view, a.id, 1, Random(n)) for n in range(ROUNDS)]
        assert all(called)
        everybody = {identity(number).peer_id for number in range(100, 110)}
        assert {peer for some in called for peer in some} == everybody


async def test_a_full_view_is_a_sample(autojump_clock: MockClock) -> None:
    """Whether or not its peers can be asked, or are only joining."""
    async with directories(1, room=4) as (_, (me,)):
        fill(me, range(10, 13))
        assert not me.directory.is_sample
        fill(me, range(13, 20))
        assert me.directory.is_sample
