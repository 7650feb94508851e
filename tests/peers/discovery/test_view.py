"""What a view keeps, for how long, and what it believes."""

import random
from collections.abc import Callable

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.advertisement import Advertisement, Heard
from p2pinfer.core.exchange import BUCKETS
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.messages import Attached
from p2pinfer.core.wire import decode, encode
from peers.discovery.gossip import NEWS_MAX, Announcer, judge, news
from peers.discovery.view import (
    ARRIVALS_PER_S_MAX,
    EXPIRIES_PER_PEER_MAX,
    GLIMPSE_MAX,
    MODELS_MAX,
    SAID_MAX,
    SwarmView,
    Taken,
    lasts_s,
)
from tests.support.directories import MODEL, OTHER, advertisement, identity, signed
from transports.base import GossipVerdict
from transports.identity import verify

ME = identity(0).peer_id
NO_ID = PeerId("1" * 52)


def view(room: int = 4096, check: Callable[[PeerId, bytes, bytes], bool] = verify) -> SwarmView:
    """Make a view that follows one model."""
    made = SwarmView(ME, check, random.Random(1), room)
    made.follow(MODEL)
    return made


def unsigned(said: Advertisement, age_ms: int = 0) -> Heard:
    """Return an advertisement without a valid signature, for views that do not check it."""
    return Heard(encode(said), bytes(64), age_ms)


def trusting(room: int = 4096) -> SwarmView:
    """Make a view that checks no signature."""
    return view(room, lambda *_: True)


def test_the_newest_advertisement_wins() -> None:
    """A later advertisement replaces an earlier one, never the other way round."""
    seen = view()
    author = identity(1)
    results = [
        seen.take(signed(advertisement(author, model, sequence), author), 0)
        for sequence, model in ((5, MODEL), (6, OTHER), (4, MODEL), (6, MODEL))
    ]
    assert results == [Taken.NEW, Taken.NEW, Taken.OLD, Taken.OLD]
    assert [len(list(seen.of(model))) for model in (MODEL, OTHER)] == [0, 1]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda h: evolve(h, signature=bytes(64)), id="no signature"),
        pytest.param(lambda h: evolve(h, body=h.body[:-1] + b"\x02"), id="changed"),
        pytest.param(lambda h: signed(advertisement(identity(7)), identity(8)), id="another's key"),
        pytest.param(lambda h: evolve(h, body=b"garbage"), id="garbage"),
        pytest.param(lambda h: evolve(h, body=encode(Attached())), id="another message"),
        pytest.param(
            lambda h: signed(evolve(decode(h.body, Advertisement), peer=NO_ID), identity(7)),
            id="no peer id",
        ),
        pytest.param(
            lambda h: signed(advertisement(identity(7), layers=(10, 1)), identity(7)),
            id="layers backwards",
        ),
        pytest.param(
            lambda h: signed(advertisement(identity(7), layers=(1, 31)), identity(7)),
            id="more layers than there are",
        ),
    ],
)
async def test_what_is_not_genuine_is_dropped(
    spoil: Callable[[Heard], Heard], autojump_clock: MockClock
) -> None:
    """A forged or damaged advertisement is not kept, and the neighbour that sent it is blamed."""
    seen = view()
    bad = spoil(signed(advertisement(identity(7)), identity(7)))
    assert seen.take(bad, 0) is Taken.BAD
    assert not list(seen.of(MODEL))
    accept = judge(seen, MODEL, news())
    assert accept(NO_ID, encode(bad)) is GossipVerdict.BLAME


async def test_gossip_is_judged(autojump_clock: MockClock) -> None:
    """News is passed on once; one of another model, or that claims an age, is blamed."""
    accept = judge(view(), MODEL, news())
    good = signed(advertisement(identity(7)), identity(7))
    assert accept(NO_ID, encode(good)) is GossipVerdict.PASS
    assert accept(NO_ID, encode(good)) is GossipVerdict.DROP
    assert accept(NO_ID, b"garbage") is GossipVerdict.BLAME
    other = signed(advertisement(identity(8), OTHER), identity(8))
    assert accept(NO_ID, encode(other)) is GossipVerdict.BLAME
    old = signed(advertisement(identity(9)), identity(9), age_ms=1)
    assert accept(NO_ID, encode(old)) is GossipVerdict.BLAME


async def test_a_neighbour_cannot_flood(autojump_clock: MockClock) -> None:
    """From one neighbour, however genuine, no more news is taken than a large swarm sends."""
    accept = judge(trusting(), MODEL, news())
    flood = [encode(unsigned(advertisement(identity(i)))) for i in range(1, int(NEWS_MAX) + 50)]
    passed = sum(accept(NO_ID, message) is GossipVerdict.PASS for message in flood)
    assert passed == NEWS_MAX
    await trio.sleep(1)
    assert accept(NO_ID, flood[-1]) is GossipVerdict.PASS


def test_an_author_cannot_flood() -> None:
    """From one author a burst of advertisements is taken, then as many as honest authors send."""
    seen = trusting()
    said = [unsigned(advertisement(identity(1), sequence=i)) for i in range(1, 1000)]
    burst = [seen.take(heard, 0, MODEL) for heard in said[:20]]
    assert burst == [Taken.NEW] * SAID_MAX + [Taken.OLD] * (20 - SAID_MAX)
    later = [seen.take(heard, i, MODEL) for i, heard in enumerate(said[20:120])]
    assert later.count(Taken.NEW) == pytest.approx(40, abs=2)


def test_renewals_without_end_take_no_room() -> None:
    """When sent directly, as in comparisons, where no rate limit applies; and they expire."""
    seen, author = trusting(room=4), identity(1)
    for sequence in range(1000):
        assert seen.take(unsigned(advertisement(author, MODEL, sequence)), 0) is Taken.NEW
        assert len(seen._expiries) <= 4 * EXPIRIES_PER_PEER_MAX
    assert [gone.sequence for gone in seen.expire(1e9)] == [999]


def test_a_dead_peer_stays_dead() -> None:
    """Its last advertisement, repeated by another peer as if it were fresh, is not accepted."""
    seen = trusting()
    word = unsigned(advertisement(identity(1)))
    seen.take(word, 0)
    assert len(seen.expire(35)) == 1
    assert seen.take(word, 36) is Taken.OLD
    assert seen.take(unsigned(advertisement(identity(1), sequence=2)), 37) is Taken.NEW


def test_a_peer_that_is_shut_out_is_ignored() -> None:
    """Whatever it sends later; other peers are kept."""
    seen = trusting()
    for number in (1, 2):
        seen.take(unsigned(advertisement(identity(number))), 0)
    seen.shut_out(identity(1).peer_id, 1)
    assert seen.take(unsigned(advertisement(identity(1), sequence=9)), 400) is Taken.OLD
    assert [entry.parsed.advertisement.peer for entry in seen.of(MODEL)] == [identity(2).peer_id]


def test_the_fewest_holders_of_a_range() -> None:
    """Counted over its rarest layer, including layers that no peer holds."""
    seen = trusting()
    for number, layers in ((1, (1, 9)), (2, (3, 9)), (3, (3, 5))):
        seen.take(unsigned(advertisement(identity(number), layers=layers)), 0)
    ranges = ((3, 5), (3, 9), (1, 9), (1, 10), (20, 30))
    assert [seen.fewest_holders(MODEL, LayerRange(*each)) for each in ranges] == [3, 2, 1, 0, 0]
    assert seen.fewest_holders(OTHER, LayerRange(1, 9)) == 0


def test_the_period_stretches_with_the_swarm() -> None:
    """However many peers there are, none receives more than ten advertisements a second."""
    seen = trusting()
    assert seen.period_s(MODEL) == 10
    for number in range(1, 1000):
        seen.take(unsigned(advertisement(identity(number), period_ms=100_000)), 0)
    assert seen.period_s(MODEL) == 1000 / ARRIVALS_PER_S_MAX == 100
    assert not seen.expire(100 + 25 + 60 - 1)
    assert len(seen.expire(100 + 25 + 60 + 1)) == 999


def test_three_short_renewals_may_be_missed_but_no_long_one() -> None:
    """Gossip may lose one; before a late renewal is due, anti-entropy has long repaired that."""
    assert lasts_s(10) == 35
    assert lasts_s(100) == 185
    periods = [1 + second / 4 for second in range(1000)]
    believed = [lasts_s(period) for period in periods]
    assert believed == sorted(believed)
    assert all(seconds > period for seconds, period in zip(believed, periods, strict=True))


def test_a_peer_that_claims_a_long_period_does_not_linger() -> None:
    """In a small swarm a peer that promises hourly renewals is forgotten long before."""
    seen = trusting()
    seen.take(unsigned(advertisement(identity(1), period_ms=3_600_000)), 0)
    assert not seen.expire(100)
    assert len(seen.expire(141)) == 1


def test_a_peer_that_promises_a_shorter_period_expires_sooner() -> None:
    """When the new advertisement expires, not when the old one would have; with one check each."""
    gone, stays = identity(1), identity(2)
    seen = trusting()
    for each in (gone, stays):
        seen.take(unsigned(advertisement(each, period_ms=40_000)), 0)
        seen.take(unsigned(advertisement(each, sequence=2)), 1)
    for now in range(10, 120, 10):
        seen.take(unsigned(advertisement(stays, sequence=now)), now)
        found = seen.expire(now)
        assert [a.peer for a in found] == ([gone.peer_id] if now == 40 else [])
    assert len(seen._expiries) == 1


def test_a_full_view_keeps_a_sample_with_every_layer() -> None:
    """Beyond the limit rare layers displace common ones; the swarm's size is still known."""
    seen = trusting(room=100)
    assert not seen.is_full
    chance = random.Random(2)
    for now in range(30_000):  # 1,000 peers, each once in 1,000 seconds
        number = now % 1000 + 1
        rare = number % 50 == 0
        first = 20 + chance.randrange(9) if rare else chance.randrange(10)
        said = advertisement(
            identity(number), layers=(first, first + 1), sequence=now, period_ms=1_000_000
        )
        seen.take(unsigned(said), now, MODEL)
        if now > 2000:
            break
    served = {a.parsed.advertisement.first for a in seen.of(MODEL)}
    assert {*range(10)} <= served
    assert len(served & {*range(20, 29)}) >= 7
    assert len(list(seen.of(MODEL))) == 100
    assert seen.is_full
    assert seen.indexes[MODEL].crowd == pytest.approx(1000, rel=0.3)
    assert seen.period_s(MODEL) == pytest.approx(1000 / ARRIVALS_PER_S_MAX, rel=0.3)


def test_other_models_take_little_room() -> None:
    """A few peers of each model that is not followed are kept, and only of ``MODELS_MAX``."""
    seen = trusting()
    for model in range(2 * MODELS_MAX):
        for number in range(2):
            author = identity(1 + 2 * model + number)
            seen.take(unsigned(advertisement(author, ModelId(f"{model:064x}"))), 0)
    assert len(seen.indexes) <= MODELS_MAX + 1
    for number in range(1000, 1100):
        seen.take(unsigned(advertisement(identity(number), ModelId("0" * 64))), 0)
    assert len(list(seen.of(ModelId("0" * 64)))) == GLIMPSE_MAX
    for number in range(2000, 2100):
        seen.take(unsigned(advertisement(identity(number))), 0)
    assert len(list(seen.of(MODEL))) == 100


def test_digests_do_not_depend_on_the_order_of_news() -> None:
    """Two equal views agree bucket by bucket, in whatever order they learnt."""
    a, b = trusting(), trusting()
    said = [unsigned(advertisement(identity(number), sequence=2)) for number in range(1, 200)]
    for heard in said:
        a.take(heard, 0)
    for number in range(1, 50):
        b.take(unsigned(advertisement(identity(number))), 0)
    for heard in reversed(said):
        b.take(heard, 0)
    assert a.indexes[MODEL].differing(b.indexes[MODEL].digests()) == 0
    b.take(unsigned(advertisement(identity(7), sequence=3)), 0)
    differing = a.indexes[MODEL].differing(b.indexes[MODEL].digests())
    assert differing.bit_count() == 1
    assert len(list(a.indexes[MODEL].within(differing))) < 199 / BUCKETS * 4


async def test_peers_that_start_together_do_not_renew_together(autojump_clock: MockClock) -> None:
    """The first renewal, and one of a longer period, comes at a random moment within it."""
    due: list[float] = []
    later: list[float] = []

    async def announce(seed: int) -> None:
        announcer, chance = Announcer(), random.Random(seed)
        announcer.published(10)
        await announcer.wait_due(chance)
        due.append(trio.current_time() - begun)
        announcer.published(10)
        before = trio.current_time()
        await announcer.wait_due(chance)
        later.append(trio.current_time() - before)

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for seed in range(100):
            nursery.start_soon(announce, seed)
    assert min(due) < 1
    assert 9 < max(due) <= 10
    assert all(9 <= each <= 10 for each in later)
