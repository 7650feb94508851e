"""How a requester rates peers after it has seen them at work."""

from trio.testing import MockClock

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.errors import PeerUnavailable
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Refusal
from peers.asking.experience import TIMES_MAX, Experiences, stage_times
from peers.steps.messaging import RefusedError
from scheduler.offer_table import STANDING_NEW
from scheduler.routing import Asking, RouteHop, find_route
from tests.support.swarm import MODEL, peer

A, B, C = peer("a"), peer("b"), peer("c")


def offer(name: PeerId, row_us: int = 1000) -> Advertisement:
    """Advertise a peer that serves everything."""
    return Advertisement(
        peer=name, addresses=(f"/memory/0/p2p/{name}",), model=MODEL, model_name="toy", layers=30,
        first=1, end=29, context=256, numerics_class="0" * 32, sequence=1, row_us=row_us,
    )  # fmt: skip


def hop(name: PeerId, row_us: int = 1000) -> RouteHop:
    """Run ten layers at a peer."""
    return RouteHop(offer(name, row_us), 11)


async def test_failures_count_for_more_than_refusals(autojump_clock: MockClock) -> None:
    """A place may be taken while the advertisement that it is free is on its way."""
    seen = Experiences()
    seen.failed(PeerUnavailable(A, "gone"))
    seen.failed(RefusedError.of(B, Refusal.BUSY, "all sessions are taken"))
    seen.failed(RefusedError.of(C, Refusal.ENGINE_FAILED, "it died"))
    assert seen.standing(A) == seen.standing(C) < seen.standing(B) < STANDING_NEW


async def test_work_as_claimed_raises_and_lies_lower(autojump_clock: MockClock) -> None:
    """The times that stages report for each token are compared with what they advertise."""
    seen = Experiences()
    for _ in range(5):
        times = stage_times()
        times.extend([(10_000, 50_000)] * 2 * TIMES_MAX)
        assert len(times) == TIMES_MAX
        seen.worked([hop(A), hop(B)], times)
    assert seen.standing(A) > STANDING_NEW > seen.standing(B)
    experience = seen.of([offer(A), offer(B)])
    assert (experience.row_us[A], experience.row_us[B]) == (1000, 5000)
    for chance in (0.1, 0.5, 0.9):
        asking = Asking(seen=experience, chance=chance)
        assert [h.peer for h in find_route([offer(A), offer(B)], 1, 29, asking)] == [A]


async def test_times_of_another_route_say_nothing(autojump_clock: MockClock) -> None:
    """A stage may have been replaced meanwhile; no peer is judged by another's work."""
    seen = Experiences()
    seen.worked([hop(A), hop(B)], [(1, 2, 3), ()])
    seen.worked([hop(A)], [])
    assert seen.standing(A) == seen.standing(B) == STANDING_NEW


async def test_nearer_peer_is_preferred(autojump_clock: MockClock) -> None:
    """Of two equal peers, the one with the shorter round trip is chosen."""
    near_s = {A: 0.1, B: 0.001}
    seen = Experiences(near_s.get)
    offers = [offer(A), offer(B)]
    route = find_route(offers, 1, 29, Asking(seen=seen.of(offers), chance=0.3))
    assert [h.peer for h in route] == [B]
