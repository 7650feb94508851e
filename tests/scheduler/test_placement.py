"""Placement: a swarm in which each peer decides for itself becomes whole and level, and settles."""

import random

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core.advertisement import Advertisement, State
from p2pinfer.core.layer_range import LayerRange
from scheduler.offer_table import Experience, OfferTable
from scheduler.placement import choose
from scheduler.routing import find_route
from scheduler.swarm_members import JOINING_S_MAX
from tests.support.adverts import advert, peer_id
from tests.support.settling import play, rates

FIRST = 1
ROUNDS_MAX = 150
"""Within which every swarm of these tests settles."""


@st.composite
def swarms(draw: st.DrawFn, *, join: bool = False) -> tuple[list[Advertisement], LayerRange]:
    """Draw up to twelve peers of any size and speed, which serve anything or join, and a model."""
    count = draw(st.integers(2, 24))
    layers = LayerRange(FIRST, FIRST + count)
    swarm = []
    for n in range(draw(st.integers(1, 12))):
        size = draw(st.integers(1, count))
        held = draw(st.integers(1, size))
        first = draw(st.integers(FIRST, layers.end - held))
        fields = {"layers_max": size, "row_us": draw(st.integers(100, 1500))}
        if join:
            swarm.append(advert(f"p{n}", 0, 0, state=State.JOINING, **fields))
        else:
            swarm.append(advert(f"p{n}", first, first + held, **fields))
    return swarm, layers


seeds = st.integers(0, 1 << 30)


def check_settled(
    swarm: list[Advertisement], layers: LayerRange, seed: int, lag: int | None
) -> None:
    """Let a swarm settle; check that it is whole wherever possible, and at rest."""
    game = play(swarm, layers, random.Random(seed), lag)
    assert game.last_move < ROUNDS_MAX
    if sum(a.layers_max for a in swarm) >= len(layers):
        assert game.covered
        serving = list(game.swarm.values())
        assert find_route(serving, layers.first, layers.end)
    assert game.opened == 0


@settings(max_examples=30)
@given(swarms(), seeds)
def test_one_after_the_other(swarm: tuple[list[Advertisement], LayerRange], seed: int) -> None:
    """From any start a swarm becomes whole if it can, and no move ever opens a hole again."""
    check_settled(*swarm, seed, lag=None)


@settings(max_examples=30)
@given(swarms() | swarms(join=True), seeds, st.integers(0, 2))
def test_all_at_once(swarm: tuple[list[Advertisement], LayerRange], seed: int, lag: int) -> None:
    """So also when all decide at once from views that are old, each in another way."""
    check_settled(*swarm, seed, lag)


def joining(name: str, size: int = 8, **fields: int) -> Advertisement:
    """Make the advertisement of a peer that has not chosen yet."""
    return advert(name, 0, 0, state=State.JOINING, layers_max=size, row_us=100, **fields)


def pick(others: list[Advertisement], own: Advertisement, layers: LayerRange) -> Advertisement:
    """Let a peer choose with a view that is right."""
    choice = choose(others, own, layers, now_s=45.0, chance=0.0)
    return evolve(own, first=choice.layers.first, end=choice.layers.end)


def test_simultaneous_joins_share_the_layers() -> None:
    """Four peers that choose at once, from the same view, choose four different ranges."""
    swarm = [joining(name) for name in "abcd"]
    chosen = [pick([a for a in swarm if a is not own], own, LayerRange(1, 33)) for own in swarm]
    assert sorted((a.first, a.end) for a in chosen) == [(1, 9), (9, 17), (17, 25), (25, 33)]


def test_of_two_that_announced_the_same_one_yields() -> None:
    """Where views crossed, one of two keeps what it announced, and the other takes the rest."""
    swarm = [evolve(joining(name), first=1, end=9) for name in "ab"]
    chosen = [pick([a for a in swarm if a is not own], own, LayerRange(1, 17)) for own in swarm]
    assert sorted((a.first, a.end) for a in chosen) == [(1, 9), (9, 17)]


def test_a_newcomer_takes_what_helps_most() -> None:
    """It fills a hole first, then the weakest layers, then those with one holder."""
    held = [advert("a", 1, 9, row_us=100), advert("b", 13, 25, row_us=100)]
    chosen = pick(held, joining("new", 4), LayerRange(1, 25))
    assert (chosen.first, chosen.end) == (9, 13)
    held.append(advert("c", 9, 13, row_us=3000))
    chosen = pick(held, joining("new", 4), LayerRange(1, 25))
    assert (chosen.first, chosen.end) == (9, 13)


def test_layers_of_a_draining_peer_are_taken_over() -> None:
    """Layers whose only holder is about to leave count as missing, and are taken at once."""
    held = [advert("a", 1, 9), advert("b", 1, 9), advert("c", 9, 17, state=State.DRAINING)]
    held = [evolve(a, row_us=100, layers_max=16) for a in held]
    choice = choose(held[:1] + held[2:], held[1], LayerRange(1, 17), now_s=0.0, chance=0.5)
    assert choice.urgent
    ranges = [choose(held, own, LayerRange(1, 17), now_s=0.0, chance=0.5) for own in held[:2]]
    assert min(c.layers.first for c in ranges) == 1
    assert max(c.layers.end for c in ranges) == 17


def test_no_peer_leaves_a_layer_that_only_it_holds() -> None:
    """However much more a peer would be worth elsewhere, it stays with what only it holds."""
    own = advert("own", 1, 5, row_us=100, layers_max=4)
    slow = advert("slow", 5, 9, row_us=60_000, layers_max=4)
    for now_s in range(0, 3600, 15):
        choice = choose([slow], own, LayerRange(1, 9), now_s=float(now_s), chance=0.0)
        assert not choice.moves, choice


@settings(max_examples=60)
@given(swarms(), seeds)
def test_no_layer_is_missing_while_its_only_holder_moves(
    swarm: tuple[list[Advertisement], LayerRange], seed: int
) -> None:
    """A peer that alone holds some layers keeps them, and has room for both ranges at once."""
    peers, layers = swarm
    if not (rates(peers, layers) > 0).all():
        return  # then those that can fill what is missing
    chance = random.Random(seed)
    for own in peers:
        others = [a for a in peers if a is not own]
        held = {layer for a in others for layer in range(a.first, a.end)}
        alone = set(range(own.first, own.end)) - held
        for now_s in range(0, 900, 50):
            choice = choose(others, own, layers, now_s=float(now_s), chance=chance.random())
            if choice.moves and alone:
                assert alone <= set(choice.layers.each())
                both = own.end - own.first + len(choice.layers)
                assert both <= own.layers_max


def test_unreliable_peers_count_as_holding_nothing() -> None:
    """Liars, and peers that have been joining for ever, leave holes at their claimed layers."""
    bad = advert("bad", 1, 9, row_us=100, layers_max=8)
    slow = advert("slow", 1, 9, row_us=100, layers_max=8, state=State.JOINING)
    seen = Experience(standing={bad.peer: 0.1}, joining_s={slow.peer: JOINING_S_MAX + 1})
    held = [bad, slow, advert("a", 9, 17, row_us=100)]
    own = joining("own")
    choice = choose(held, own, LayerRange(1, 17), now_s=0.0, chance=0.0, seen=seen)
    assert choice.layers == LayerRange(1, 9)


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_absurd_claims_are_harmless(chance: float) -> None:
    """Huge speeds and ranges outside the model neither raise nor keep others off weak layers."""
    hostile = [
        advert("h1", 1, 9, row_us=1, layers_max=1024),
        advert("h2", 0, 1024, row_us=1),
        advert("h3", 1000, 2),
        advert("h4", 500, 1024, row_us=60_000_000),
        advert("h5", 0, 0, state=State.JOINING, layers_max=1024, row_us=1),
    ]
    honest = [advert(f"p{n}", 1, 9, row_us=1000, layers_max=8) for n in range(4)]
    own = joining("own")
    choice = choose([*hostile, *honest], own, LayerRange(1, 17), now_s=0.0, chance=chance)
    assert choice.layers == LayerRange(9, 17)


def test_two_holders_where_there_is_room() -> None:
    """Equal peers with room for twice the layers hold each layer twice."""
    swarm = [advert(f"p{n}", 1, 2, row_us=100, layers_max=8) for n in range(6)]
    game = play(swarm, LayerRange(1, 25), random.Random(1))
    one = rates([advert("x", 1, 9, row_us=100)], LayerRange(1, 25)).max()
    assert game.worst == pytest.approx(2 * one)


@pytest.mark.parametrize(
    ("crowd", "is_sample", "least", "most"),
    [(1, True, 0, 1), (1, False, 10, 200), (3, True, 20, 200)],
)
def test_a_sample_is_not_taken_for_uneven(
    crowd: int, is_sample: bool, least: int, most: int
) -> None:
    """In a sample of a huge swarm chance makes some layers seem weak; no peer moves.

    If these were all peers, some would move; and so they do where a fifth of the layers really has
    three times as many holders.
    """
    chance, seen = random.Random(1), Experience(is_sample=is_sample)
    layers = [n for n in range(1, 81) for _ in range(crowd if n <= 16 else 1)]
    held = [chance.choice(layers) for _ in range(2000)]
    fullest = max(set(held), key=held.count)
    view = OfferTable.of([advert(f"p{n}", at, at + 1) for n, at in enumerate(held)])
    own = advert("own", fullest, fullest + 1, layers_max=1)
    dice = [chance.random() for _ in range(200)]
    choices = [
        choose(view, own, LayerRange(1, 81), now_s=45.0, chance=each, seen=seen) for each in dice
    ]
    assert least <= sum(choice.moves for choice in choices) <= most


def test_reasons_are_words() -> None:
    """A person reads what a range is needed for."""
    choice = choose(
        [advert("a", 1, 5, row_us=9)], joining("own", 4), LayerRange(1, 9), now_s=0.0, chance=0.0
    )
    assert choice.reason == "nobody else serves some of layers 5:9"
    assert peer_id("a") not in choice.reason
