"""A member's part in a sum: what it refuses, who gets the blame, and who can be missing."""

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core.sums import member as sums
from p2pinfer.core.sums.layout import BadSum
from p2pinfer.core.sums.member import (
    HELLO_BYTES,
    PUBLIC_BYTES,
    SEALED_BYTES,
    SETS_MAX,
    SUMMED_MIN,
    SumMember,
    SumRefused,
    default_threshold,
    encrypted_bytes,
    least_summed,
    share_bytes,
)
from p2pinfer.core.sums.parameters import NUMBER_MAX, STANDARD
from tests.support.small_sums import CONTEXT, SMALL, drawing, encrypted, members, shares

COUNT = 40
"""More than one small ciphertext holds."""


def updates(count: int, of: int, seed: int = 0) -> dict[int, Any]:
    """Return numbers for each of some members."""
    chance = np.random.default_rng(seed)
    return {m: chance.integers(-NUMBER_MAX, NUMBER_MAX + 1, count) for m in range(of)}


@st.composite
def rounds(draw: st.DrawFn) -> tuple[int, int, set[int], set[int], list[int], int, int]:
    """Draw members, a threshold, givers of keys, contributors, sharers, a count and a seed."""
    count = draw(st.integers(2, 5))
    threshold = draw(st.integers(2, count))
    everybody = st.integers(0, count - 1)
    givers = draw(st.sets(everybody, min_size=threshold))
    contributors = draw(st.sets(everybody, min_size=max(threshold, min(count, SUMMED_MIN))))
    who = draw(st.permutations(sorted(givers)))[:threshold]
    return (
        count,
        threshold,
        givers,
        contributors,
        who,
        draw(st.integers(1, 70)),
        draw(st.integers()),
    )


def play(case: tuple[int, int, set[int], set[int], list[int], int, int]) -> None:
    """Play a round where some give no keys, some no numbers, and some no shares."""
    count, threshold, givers, contributors, who, size, seed = case
    group = members(count, threshold, size, givers=givers, seed=seed % 1000)
    given_ = {m: v for m, v in updates(size, count, abs(seed)).items() if m in contributors}
    total = sum(given_.values())
    ciphertexts = encrypted(group, given_)
    assert len({each.add(ciphertexts) for each in group}) == 1
    opening = shares(group, who)
    for each in group:
        np.testing.assert_array_equal(each.open(opening), total)


@settings(max_examples=15)
@given(rounds())
def test_any_threshold_opens_the_exact_sum(case: Any) -> None:
    """Some give no keys, no numbers or no shares: all members find the same exact sum."""
    play(case)


@pytest.mark.long
@settings(max_examples=1000)
@given(rounds())
def test_a_thousand_rounds(case: Any) -> None:
    """The same, a thousand times."""
    play(case)


def test_a_round_with_the_parameters_for_use() -> None:
    """Three members, two open the sum, and sizes are as stated: under six times the plain one."""
    size = 100_000
    group = members(3, 2, size, STANDARD)
    assert len(group[0].hello) == HELLO_BYTES
    assert len(group[0].public) == PUBLIC_BYTES
    assert len(group[0].sealed_for(1)) == SEALED_BYTES
    wanted = updates(size, 3)
    ciphertexts = encrypted(group, wanted)
    assert len(ciphertexts[0]) == encrypted_bytes(size) < 8 * 2 * size
    assert encrypted_bytes(10**6) < 5.2 * 2 * 10**6
    for each in group:
        each.add(ciphertexts)
    opening = shares(group, (2, 0))
    assert len(opening[0]) == share_bytes(size)
    np.testing.assert_array_equal(group[1].open(opening), sum(wanted.values()))
    assert group[1].margin_bits
    assert STANDARD.margin_bits(2) < group[1].margin_bits < STANDARD.margin_bits(2) + 3


@pytest.fixture
def group() -> list[SumMember]:
    """Return four members whose keys are settled; three open a sum."""
    return members(4, 3, COUNT)


def test_one_sum_and_no_other(group: list[SumMember]) -> None:
    """A member helps to open the sum that it added up itself, and no second one."""
    ciphertexts = encrypted(group, updates(COUNT, 4))
    with pytest.raises(SumRefused, match="not added up"):
        group[0].share((0, 1, 2))
    digest = group[0].add(ciphertexts)
    assert group[0].add(dict(reversed(ciphertexts.items()))) == digest
    shared = group[0].share((0, 1, 2))
    others = encrypted(group[1:], updates(COUNT, 3))
    for another in (
        {m: ciphertexts[m] for m in (0, 1, 2)},
        {**ciphertexts, 1: others[1]},
        {**ciphertexts, 3: ciphertexts[1]},
    ):
        with pytest.raises(SumRefused, match="another sum"):
            group[0].add(another)
    assert group[0].share((2, 1, 0)) == shared  # of the first sum, and the same bytes


def test_a_sum_has_enough_members_and_ones_own_number(group: list[SumMember]) -> None:
    """A sum of few shows too much; one without what this member gave may be meant to show it."""
    ciphertexts = encrypted(group, updates(COUNT, 4))
    with pytest.raises(SumRefused, match="shows too much"):
        group[0].add({m: ciphertexts[m] for m in (0, 1)})
    with pytest.raises(SumRefused, match="what this member gave"):
        group[0].add({m: ciphertexts[m] for m in (1, 2, 3)})
    with pytest.raises(SumRefused, match="what this member gave"):
        group[0].add({**ciphertexts, 0: ciphertexts[1]})


def test_sharers_that_are_gone_are_replaced(group: list[SumMember]) -> None:
    """Others share the same sum again; a share without its set opens nothing; sets have a limit."""
    wanted = updates(COUNT, 4)
    ciphertexts = encrypted(group, wanted)
    for each in group:
        each.add(ciphertexts)
    first = shares(group, (0, 1, 2))
    again = shares(group, (0, 1, 3))
    np.testing.assert_array_equal(group[2].open(again), sum(wanted.values()))
    with pytest.raises(BadSum, match="do not open"):
        group[3].open({0: first[0], 1: again[1], 3: again[3]})
    assert first[0] != again[0]
    group[0].share((0, 2, 3))
    assert SETS_MAX == 3
    assert group[0].share((0, 1, 2)) == first[0]
    fresh = members(5, 3, COUNT)
    numbers = encrypted(fresh, updates(COUNT, 5))
    fresh[0].add(numbers)
    for who in ((0, 1, 2), (0, 1, 3), (0, 1, 4)):
        fresh[0].share(who)
    with pytest.raises(SumRefused, match="3 sets"):
        fresh[0].share((0, 2, 3))


@pytest.mark.parametrize("who", [(0, 1), (0, 1, 2, 3), (1, 2, 3), (0, 1, 7), (0, 1, 1)])
def test_the_right_members_share(group: list[SumMember], who: tuple[int, ...]) -> None:
    """As many as the threshold says, this one among them, and all of them givers of keys."""
    group[0].add(encrypted(group, updates(COUNT, 4)))
    with pytest.raises(SumRefused):
        group[0].share(who)


def test_keys_are_settled_once() -> None:
    """Too few keys, keys that are not here, or a second set of them are refused."""
    few = members(4, 3, COUNT, givers=(0, 1, 2))
    assert few[0].taken == {0, 1, 2}
    with pytest.raises(SumRefused, match="settled"):
        few[0].close((0, 1, 2, 3))
    alone = SumMember(CONTEXT, 4, 3, 0, COUNT, drawing(1), SMALL)
    with pytest.raises(SumRefused, match="no key"):
        alone.encrypt(np.zeros(COUNT, np.int64))
    with pytest.raises(SumRefused, match="too few"):
        alone.meet({1: few[1].hello})
    alone.meet({1: few[1].hello, 2: few[2].hello})
    with pytest.raises(SumRefused, match="met"):
        alone.meet({1: few[1].hello, 3: few[3].hello})
    with pytest.raises(SumRefused, match="missing"):
        alone.close((0, 1, 2))
    with pytest.raises(SumRefused, match="too few"):
        alone.close((0,))


def test_nobody_shows_another_key_than_it_committed_itself_to() -> None:
    """Else the last one would choose a key whose sum with the others' is its own alone."""
    group = members(3, 2, COUNT, givers=(0, 1))
    rogue = bytearray(group[2].public)
    rogue[0] ^= 1
    with pytest.raises(BadSum, match="committed") as caught:
        group[0].take(2, bytes(rogue), group[2].sealed_for(0))
    assert caught.value.member == 2
    assert 2 not in group[0].taken


def test_a_sealed_share_is_for_one_receiver_of_one_sum() -> None:
    """What is sealed for another member, by another, or in another sum, does not open."""
    group = members(3, 2, COUNT, givers=(0, 1))
    other = SumMember(bytes(32), 3, 2, 2, COUNT, drawing(2), SMALL)
    other.meet({m: each.hello for m, each in enumerate(group[:2])})
    for sealed in (group[2].sealed_for(1), group[1].sealed_for(0), other.sealed_for(0), b""):
        with pytest.raises(BadSum, match="does not open") as caught:
            group[0].take(2, group[2].public, sealed)
        assert caught.value.member == 2


def test_what_was_taken_once_stays(group: list[SumMember]) -> None:
    """Sealed again it is the same; another share of the same member is refused."""
    group[0].take(1, group[1].public, group[1].sealed_for(0))
    group[1]._dealt[0] = group[1]._dealt[2]
    with pytest.raises(BadSum, match="two different shares") as caught:
        group[0].take(1, group[1].public, group[1].sealed_for(0))
    assert caught.value.member == 1


def mutated(data: bytes, random: Random) -> bytes:
    """Change, remove or insert some bytes."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(changed) + 1)
        changed[at : at + random.randrange(3)] = random.randbytes(random.randrange(3))
    return bytes(changed)


def judge(sender: int | None, call: Callable[[], object]) -> None:
    """Call, and accept a refusal only if it blames the sender, or nobody."""
    try:
        call()
    except BadSum as error:
        assert error.member in {sender, None}  # noqa: PT017 - it need not be raised


GROUP = members(4, 2, COUNT, givers=(0, 1, 3))
"""Members that mutated bytes are shown to; these change nothing, so one group does."""
GIVEN = encrypted(GROUP, {m: each for m, each in updates(COUNT, 4).items() if m != 2})


def fuzz(random: Random, times: int) -> None:
    """Show mutated messages of every kind to a member, and rubbish of the right sizes."""
    me, hello = GROUP[0], GROUP[2].hello
    public, sealed = GROUP[2].public, GROUP[2].sealed_for(0)
    for _ in range(times):
        noise = random.randbytes
        for bad in (mutated(hello, random), noise(HELLO_BYTES)):
            fresh = SumMember(CONTEXT, 3, 2, 0, COUNT, drawing(5), SMALL)
            judge(1, partial(fresh.meet, {1: bad}))
            if 1 in fresh._hellos:  # another key, but a key
                fresh.sealed_for(1)
        for bad in (mutated(public, random), noise(len(public))):
            judge(2, partial(me.take, 2, bad, sealed))
        for bad in (mutated(sealed, random), noise(len(sealed))):
            judge(2, partial(me.take, 2, public, bad))
        for bad in (mutated(GIVEN[1], random), noise(len(GIVEN[1]))):
            judge(1, partial(me.add, {**GIVEN, 1: bad}))
            me._sum = None
        me.add(GIVEN)
        mine = me.share((0, 1))
        for bad in (mutated(mine, random), noise(len(mine))):
            judge(1, partial(me.open, {0: mine, 1: bad}))
        me._shares.clear()
        me._sum = None


@settings(max_examples=10)
@given(st.integers())
def test_what_is_malformed_is_blamed_on_its_sender(seed: int) -> None:
    """Mutated or random messages are refused with their sender's number, and nothing else."""
    fuzz(Random(seed), 5)


@pytest.mark.long
@settings(max_examples=100)
@given(st.integers())
def test_a_hundred_thousand_malformed_messages(seed: int) -> None:
    """The same, with ten messages a time, a hundred thousand of them."""
    fuzz(Random(seed), 100)


def test_a_sealing_key_that_seals_for_everybody_is_refused() -> None:
    """Points of low order have the same secret with every key."""
    hello = GROUP[1].hello[:-32] + bytes(32)
    fresh = SumMember(CONTEXT, 3, 2, 0, COUNT, drawing(5), SMALL)
    with pytest.raises(BadSum, match="no sealing key") as caught:
        fresh.meet({1: hello})
    assert caught.value.member == 1
    fresh.meet({2: GROUP[2].hello})  # without it


def test_members_are_numbered() -> None:
    """A number beyond the members is refused wherever one is named."""
    with pytest.raises(BadSum, match="no member 4"):
        GROUP[0].add({**GIVEN, 4: GIVEN[1]})
    fresh = SumMember(CONTEXT, 3, 2, 0, COUNT, drawing(5), SMALL)
    with pytest.raises(BadSum, match="no member -1"):
        fresh.meet({-1: GROUP[1].hello})
    with pytest.raises(BadSum, match="not met"):
        fresh.take(1, GROUP[1].public, b"")


def test_a_sum_of_two_is_refused() -> None:
    """Of a group of three or more: each of the two would see what the other added."""
    assert [least_summed(n) for n in (2, 3, 4, 5, 6, 64)] == [2, 3, 3, 3, 4, 33]
    group = members(3, 2, COUNT)
    ciphertexts = encrypted(group, updates(COUNT, 3))
    with pytest.raises(SumRefused, match="a sum of 2 members shows too much"):
        group[0].add({number: ciphertexts[number] for number in (0, 1)})
    group[0].add(ciphertexts)


def test_more_than_half_open_a_sum() -> None:
    """So that a sum has at least one member more than could be gone."""
    assert [default_threshold(n) for n in (2, 3, 4, 6, 8, 64)] == [2, 2, 3, 4, 5, 33]
    assert sums.SETS_MAX < 64
