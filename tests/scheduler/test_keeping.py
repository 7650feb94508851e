"""Who keeps what, when it is rebuilt, and how much may be lost."""

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.ids import ModelId, PeerId
from scheduler import keeping
from scheduler.keeping import Group, choose_copies, deal, may_lose, present, ranked

MODEL = ModelId("a" * 64)
GROUP = Group(0, 8, 8, 8)
PEERS = [PeerId(f"12D3KooW{n:044}") for n in range(200)]


@pytest.mark.parametrize(
    ("up", "copies", "code"),
    [(0.9, 1e-3, 6e-6), (0.7, 3e-2, 3e-2), (0.5, 0.13, 0.40)],
)
def test_chances_are_those_of_the_binomial(up: float, copies: float, code: float) -> None:
    """Three copies, and 8 of 16 shares."""
    assert (1 - up) ** 3 == pytest.approx(copies, rel=0.15)
    assert keeping.out_of_reach(8, 16, up) == pytest.approx(code, rel=0.15)


def test_a_code_is_chosen_where_it_loses_less() -> None:
    """It needs enough peers, and peers that are up often enough; then it stays for a while."""
    assert choose_copies(8, 8, 200, 0.7) == 0
    assert choose_copies(8, 8, 16, 0.9) == 0
    assert choose_copies(8, 8, 15, 0.9) == 2
    assert choose_copies(8, 8, 15, 0.7) == 3
    assert choose_copies(8, 8, 200, 0.5) == 4
    assert choose_copies(8, 8, 1, 0.7) == 1
    assert choose_copies(8, 8, 200, 0.59) == choose_copies(8, 8, 200, 0.57, now=0) == 0
    assert choose_copies(8, 8, 200, 0.59, now=3) > 0
    assert choose_copies(3, 2, 5, 0.8) == 0


def test_peers_keep_in_proportion_to_what_they_lend() -> None:
    """And one that leaves changes nobody else's rank."""
    lent = {peer: 2 if n < 100 else 1 for n, peer in enumerate(PEERS)}
    first = sum(lent[ranked(MODEL, group, lent)[0]] == 2 for group in range(600))
    assert first / 600 == pytest.approx(2 / 3, abs=0.06)
    before = ranked(MODEL, 1, lent)
    del lent[before[3]]
    assert ranked(MODEL, 1, lent) == [*before[:3], *before[4:]]
    assert ranked(MODEL, 1, {PEERS[0]: 0}) == []


def test_a_boast_counts_for_ten_peers_at_most() -> None:
    """One that says it lends a PiB is not first everywhere."""
    lent = dict.fromkeys(PEERS, 1 << 34) | {PEERS[7]: 1 << 50}
    first = sum(ranked(MODEL, group, lent)[0] == PEERS[7] for group in range(300))
    assert first / 300 < 0.1


def test_at_first_the_j_th_peer_gets_the_j_th_row() -> None:
    """Nobody holds anything yet."""
    found = deal(PEERS, {}, GROUP.slots(0))
    assert found.owners == tuple(enumerate(PEERS[:16]))
    assert found.kept == 0


@given(st.randoms(use_true_random=False), st.integers(1, 30), st.integers(0, 3))
def test_rows_stay_where_they_are(chance: random.Random, peers: int, copies: int) -> None:
    """Who holds a row and has room keeps it; no peer gets too much, none the same row twice."""
    order = PEERS[:peers]
    holds = {p: {chance.randrange(16) for _ in range(chance.randrange(4))} for p in PEERS[:20]}
    due = GROUP.slots(copies)
    found = deal(order, holds, due)
    assert len(set(found.owners)) == len(found.owners) <= len(due)
    assert all(len(found.of(peer)) <= found.each_max for peer in PEERS)
    assert found.kept == sum(row in holds.get(owner, ()) for row, owner in found.owners)
    again = deal(order, {p: found.of(p) for p in PEERS if found.of(p)}, due)
    assert again.owners == found.owners or again.kept >= found.kept


def test_who_has_everything_keeps_one_row() -> None:
    """The others take theirs from it: a single peer counts once, whatever it holds."""
    found = deal(PEERS[:16], {PEERS[3]: range(16)}, GROUP.slots(0))
    assert found.kept == 1
    assert len(found.of(PEERS[3])) == 1
    assert {owner for _, owner in found.owners} == set(PEERS[:16])


def test_a_night_is_no_loss_but_a_failure_of_many_is() -> None:
    """Silence counts after two days, or where chance does not explain how many are silent."""
    up, away, gone = PEERS[:11], PEERS[11:16], PEERS[16:18]
    silent = dict.fromkeys(up, 0.0) | dict.fromkeys(away, 3600.0)
    silent |= dict.fromkeys(gone, keeping.GONE_S + 1)
    assert present(silent, 0.7) == {*up, *away}
    assert present(silent, 0.97) == set(up)
    assert present({}, 0.7) == set()


def test_rows_are_rebuilt_while_there_is_some_margin() -> None:
    """At 11 of 16, and at 4 of 3-of-5."""
    assert GROUP.rebuild_at == 11
    assert Group(0, 3, 3, 2).rebuild_at == 4
    assert Group(0, 5, 8, 8).rebuild_at == 8


def test_zeros_are_kept_by_nobody() -> None:
    """A small group has fewer data rows, and needs fewer."""
    small = Group(0, 2, 8, 8)
    assert small.slots(0) == [0, 1, *range(8, 16)]
    assert small.slots(2) == [0, 0, 1, 1]
    assert may_lose([(small, {PEERS[0]: {0}, PEERS[1]: {9}, PEERS[2]: {8}})]) == 1


@given(st.randoms(use_true_random=False))
def test_what_may_be_lost_is_never_said_too_high(chance: random.Random) -> None:
    """Compared with trying every set of peers."""
    peers = PEERS[:6]
    groups = [
        {p: {chance.randrange(5) for _ in range(chance.randrange(4))} for p in peers}
        for _ in range(2)
    ]
    said = may_lose((Group(0, 3, 3, 2), holds) for holds in groups)

    def is_there(gone: tuple[PeerId, ...]) -> bool:
        left = [
            set[int]().union(*(rows for p, rows in holds.items() if p not in gone))
            for holds in groups
        ]
        return all(len(rows) >= 3 for rows in left)

    assert is_there(()) is (said >= 0)
    if said > 0:
        assert all(is_there(gone) for gone in combinations(peers, said))


def test_safety_is_said_in_words() -> None:
    """For a person."""
    full = {peer: {row} for row, peer in enumerate(PEERS[:16])}
    assert may_lose([(GROUP, full)]) == 8
    assert may_lose([]) == -1
    assert keeping.in_words("M", 8, 16) == (
        "M would survive the loss of any 8 peers at once, kept by 16"
    )
    assert "any one peer" in keeping.in_words("M", 1, 0)
    assert "may lose some" in keeping.in_words("M", 0, 0)
    assert "not all of M" in keeping.in_words("M", -1, 0)


def test_availability_is_measured() -> None:
    """Little seen is little believed."""
    assert keeping.measured_up(0, 0) == 0.7
    assert keeping.measured_up(1000, 1000) == pytest.approx(1, abs=0.01)
