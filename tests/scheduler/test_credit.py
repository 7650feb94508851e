"""Credit: what a peer may have for what it did, and that peers that only vouch have nothing."""

from collections.abc import Mapping
from itertools import chain
from random import Random
from statistics import median

import pytest
from attrs import evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core.ids import PeerId, SessionId
from scheduler.admission import WAIT_S_MAX, Admission, AdmissionVerdict, Ask
from scheduler.credit import ANSWER_WORK, PLACES_MAX, UNSTATED_MAX, Debts

FRIEND, HELPER, STRANGER = map(PeerId, ("friend", "helper", "stranger"))
PEERS = [PeerId(f"peer {number}") for number in range(6)]


def test_work_counts_directly_and_through_one_other() -> None:
    """By the smaller of the two debts; what was had from here is taken off."""
    debts = Debts(had={FRIEND: 50, HELPER: 30})
    assert debts.net(FRIEND) == 50
    assert debts.net(STRANGER, {HELPER: 20, FRIEND: 500}) == 20 + 50
    used = Debts(had={FRIEND: 50}, given={FRIEND: 80})
    assert used.net(FRIEND) == -30
    assert used.places(FRIEND) == 0


def test_places_grow_slowly() -> None:
    """Ten times the work is one place more, up to a limit; less than an answer is none."""
    places = [Debts(had={FRIEND: ANSWER_WORK * 10**power}).places(FRIEND) for power in range(6)]
    assert places == [1, 2, 3, PLACES_MAX, PLACES_MAX, PLACES_MAX]
    assert Debts(had={FRIEND: ANSWER_WORK - 1}).places(FRIEND) == 0


def test_who_does_not_say_what_it_had_has_no_credit() -> None:
    """A little may be on its way; a statement mends it."""
    had, given = {FRIEND: 10**9}, {FRIEND: UNSTATED_MAX + 5}
    assert Debts(had, given, unstated=given).places(FRIEND) == 0
    assert Debts(had, given, unstated={FRIEND: UNSTATED_MAX}).places(FRIEND) > 0


work = st.integers(0, 10**6)
debts_of = st.dictionaries(st.sampled_from(PEERS), work)


@given(debts_of, debts_of, st.integers(1, 100))
def test_sybils_gain_no_more_than_the_real_debts_towards_them(
    had: Mapping[PeerId, int], vouched: Mapping[PeerId, int], count: int
) -> None:
    """However many there are, and whatever they sign for each other."""
    sybils = [PeerId(f"sybil {number}") for number in range(count)]
    forged = dict.fromkeys(sybils, 10**9)
    debts = Debts(had)
    for sybil in sybils:
        assert debts.net(sybil, forged) == 0
        assert debts.net(sybil, {**forged, **vouched}) == debts.net(sybil, vouched)
        assert debts.net(sybil, vouched) <= sum(had.values())


amounts = st.integers(0, 30 * ANSWER_WORK)

LASTS_S = 3000.0
"""An overload of 50 minutes: four places, 20 askers, 6 s a session."""


@settings(max_examples=25)
@given(
    st.dictionaries(st.sampled_from(PEERS), amounts),
    st.dictionaries(st.sampled_from(PEERS), amounts),
    st.integers(0, 40 * ANSWER_WORK),
    st.randoms(use_true_random=False),
)
def test_a_hundred_sybils_together_get_no_more_than_the_real_debts_towards_them(
    had: Mapping[PeerId, int], signed: Mapping[PeerId, int], real: int, chance: Random
) -> None:
    """One of them worked here; others' word for work goes to one; the rest they sign themselves."""
    sybils = [PeerId(f"sybil {number}") for number in range(100)]
    debts = Debts({**had, sybils[0]: real})
    forged = dict.fromkeys(sybils, 10**9)
    vouched = dict.fromkeys(sybils, forged) | {sybils[1]: {**forged, **signed}}
    given = 0
    for sybil in chance.sample(sybils, 30) * 3 + sybils[:2] * 50:
        if debts.places(sybil, vouched[sybil]):
            had_here = debts.given.get(sybil, 0) + ANSWER_WORK
            debts = evolve(debts, given={**debts.given, sybil: had_here})
            debts = debts.charged(debts.charges(sybil, vouched[sybil]))
            given += ANSWER_WORK
    assert given <= real + sum(min(had.get(peer, 0), work) for peer, work in signed.items())
    assert given >= min(real, 40 * ANSWER_WORK) - ANSWER_WORK  # and what is owed, they do get


@frozen
class Waits:
    """How long askers of each kind waited, in virtual seconds, from their question to a place."""

    workers_s: float
    riders_s: float
    """Medians."""
    longest_s: float
    fewest: int
    """Places of the asker that got fewest."""


def overload(seed: int, *, named: int = 14, sybils: int = 0) -> Waits:
    """Ask an overloaded stage; 6 of its 20 askers never worked, and come back as told.

    Of those that worked, ``named`` ask by name, and the others by a voucher; the Sybils sign as
    much as they like for each other.
    """
    chance, admission = Random(seed), Admission(4, 4000)
    workers = [PeerId(f"worker {number}") for number in range(14)]
    riders = [PeerId(f"rider {number}") for number in range(6)]
    debts = Debts(had=dict.fromkeys(workers, 100 * ANSWER_WORK))
    credit = {peer: 1 + debts.places(peer) for peer in workers[:named]}
    credit |= dict.fromkeys(workers[named:], 1)
    others = [PeerId(f"sybil {number}") for number in range(sybils)]
    forged = dict.fromkeys(others, 10**9)
    credit |= {peer: debts.places(peer, forged) for peer in others}
    waited: dict[PeerId, list[float]] = {peer: [] for peer in (*workers, *riders, *others)}
    begun = {peer: chance.uniform(0, 5) for peer in waited}  # when each came with its question
    due: list[tuple[float, str, PeerId, bytes]] = [
        (at, "ask", peer, chance.randbytes(16)) for peer, at in begun.items()
    ]
    holders: dict[bytes, PeerId] = {}
    while due:
        due.sort()
        now, what, peer, number = due.pop(0)
        if now > LASTS_S:
            break
        session = SessionId(number)
        if what == "ask":
            holders[session] = peer
            ask = Ask(session, peer, 1000, now, credit.get(peer, 0))
            answers = admission.ask(ask)
            due.append((now + WAIT_S_MAX, "late", peer, session))
        elif what == "late":
            answers = admission.refuse_late(now)
        else:
            answers = admission.release(session, now)
            begun[peer] = now + chance.expovariate(1 / 3)  # the next question
            due.append((begun[peer], "ask", peer, chance.randbytes(16)))
        for answer in answers:
            other = holders[answer.session]
            if answer.verdict is AdmissionVerdict.ADMITTED:
                waited[other].append(now - begun.pop(other))
                due.append((now + chance.uniform(4, 8), "end", other, answer.session))
            elif answer.verdict is AdmissionVerdict.REFUSED:
                back = now + answer.retry_ms / 1000
                due.append((back, "ask", other, chance.randbytes(16)))
    works, rides = (
        median(chain.from_iterable(waited[peer] for peer in kind)) for kind in (workers, riders)
    )
    asking = [LASTS_S - at for at in begun.values() if at < LASTS_S]
    longest = max(*(max(times, default=0.0) for times in waited.values()), *asking)
    return Waits(works, rides, longest, min(map(len, waited.values())))


@pytest.mark.parametrize("seed", [1, 2, 7])
@pytest.mark.parametrize("named", [14, 7])
def test_contributors_wait_a_third_of_free_riders_and_nobody_for_ever(
    seed: int, named: int
) -> None:
    """An overloaded stage; also where half of those that worked say only that somebody vouches."""
    found = overload(seed, named=named)
    assert found.workers_s <= found.riders_s / 3
    assert found.longest_s < 150
    assert found.fewest > 30


def test_a_hundred_strangers_more_keep_nobody_out() -> None:
    """They vouch for each other in vain: contributors wait as before, others in turn."""
    alone, found = overload(1), overload(1, sybils=100)
    assert found.workers_s <= alone.workers_s + 1
    assert found.longest_s < LASTS_S / 2
    assert found.fewest >= 2
