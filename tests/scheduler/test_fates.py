"""Layers that one machine's end takes away: a relay, and the peers that are called through it."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core.advertisement import Advertisement, RoundTrip, State
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from scheduler.coverage_value import ALONE, RARE, Cover, worth_of
from scheduler.offer_table import NOTHING_SEEN, OfferTable
from scheduler.placement import choose
from scheduler.plan import PEERS_MAX
from scheduler.swarm_members import Members
from tests.support.adverts import advert, peer_id, through
from tests.support.settling import play

LAYERS = LayerRange(1, 9)
NAMES, RELAYS = "abcd", "xy"
"""Of peers; a relay may also serve layers."""
OPEN = ("/memory/0",)


def addresses(relays: Sequence[str]) -> tuple[str, ...]:
    """Return the addresses of a peer behind these relays, or of an open one."""
    return tuple(map(through, relays)) or OPEN


peers = st.builds(
    lambda relays, begin, length, row_us: {
        "addresses": addresses(relays),
        "first": begin,
        "end": min(LAYERS.end, begin + length),
        "row_us": row_us,
        "layers_max": 8,
    },
    st.lists(st.sampled_from(RELAYS + "z"), max_size=3, unique=True),
    st.integers(LAYERS.first, LAYERS.end - 1),
    st.integers(1, 8),
    st.integers(100, 1000),
)
swarms = st.dictionaries(st.sampled_from(NAMES + RELAYS), peers, min_size=1).map(
    lambda told: [
        advert(name, **(fields | ({"addresses": OPEN} if name in RELAYS else {})))
        for name, fields in told.items()
    ]
)


def members(swarm: Sequence[Advertisement]) -> Members:
    """Return a swarm as its last peer sees it."""
    return Members.of(OfferTable.of(swarm[:-1]), swarm[-1], LAYERS, NOTHING_SEEN)


def ends_with(peer: Advertisement, machine: PeerId) -> bool:
    """Whether nobody reaches a peer any more once a machine has ended."""
    if peer.addresses == OPEN:
        return peer.peer == machine
    return peer.peer == machine or all(f"/p2p/{machine}/" in each for each in peer.addresses)


def cost(cover: Cover) -> float:
    """Compute independently what all layers cost a swarm."""
    return float(sum(1 / (rate + RARE) for rate in cover.rate) + ALONE * (cover.holders == 1).sum())


@settings(max_examples=150)
@given(swarms)
def test_no_single_end_takes_away_what_two_hold(swarm: list[Advertisement]) -> None:
    """Where two holders are counted, a layer outlives any one peer or relay; where one, it may not.

    Who has several relays is not taken away by the end of one.
    """
    cover = members(swarm).whole
    machines = [peer_id(name) for name in NAMES + RELAYS + "z"]
    for layer, counted in zip(range(LAYERS.first, LAYERS.end), cover.holders, strict=True):
        held = [a for a in swarm if a.first <= layer < a.end]
        assert (counted > 0) == bool(held)
        fatal = any(all(ends_with(a, machine) for a in held) for machine in machines)
        assert (counted == 1) == (bool(held) and fatal)


@settings(max_examples=150)
@given(swarms, peers)
def test_who_depends_on_nobody_never_lowers_the_value(
    swarm: list[Advertisement], fields: dict[str, Any]
) -> None:
    """One more open peer makes no layer dearer, and is a holder of each of its layers."""
    before = members(swarm).whole
    newcomer = advert("new", **(fields | {"addresses": OPEN}))
    after = members([*swarm, newcomer]).whole
    there = np.isin(np.arange(LAYERS.first, LAYERS.end), range(newcomer.first, newcomer.end))
    assert (after.holders == before.holders + there).all()
    worth = worth_of(before, LayerRange(newcomer.first, newcomer.end), 1.0)
    assert worth >= ALONE * (before.holders[there] == 1).sum()


@settings(max_examples=150)
@given(swarms)
def test_a_place_is_worth_what_it_changes(swarm: list[Advertisement]) -> None:
    """What a peer behind a relay adds is counted as if all were counted again."""
    view = members(swarm)
    if not view.present:
        return
    speed, beside = float(view.speed[-1]), view.beside(-1)
    whole = view.others.plus(view.present, speed, beside)
    assert (whole.holders == view.whole.holders).all()
    assert np.allclose(whole.rate, view.whole.rate)
    change = cost(view.others) - cost(view.whole)
    assert view.worth(view.present) == pytest.approx(change, abs=1e-6)
    everywhere = view.others.holders > 0  # as if it ended together with every other holder
    assert worth_of(view.others, view.present, speed, everywhere) >= 0


@pytest.mark.parametrize(("relay", "joins_them"), [("r", True), ("s", False)])
def test_two_behind_one_relay_are_one(relay: str, joins_them: bool) -> None:
    """A newcomer helps layers whose two holders have one relay, and else those that are slower."""
    crowd = [advert(f"o{n}", 1, 7, addresses=OPEN, row_us=1000) for n in range(PEERS_MAX)]
    pair = [
        advert(name, 7, 9, addresses=(through(via),), row_us=100)
        for name, via in (("h", "r"), ("i", relay))
    ]
    own = advert("own", 0, 0, state=State.JOINING, row_us=1000, layers_max=2, addresses=OPEN)
    choice = choose([*crowd, *pair], own, LAYERS, now_s=0.0, chance=0.5)
    assert (choice.layers == LayerRange(7, 9)) == joins_them
    hidden = evolve(own, addresses=(through("r"),))  # which would not help against the relay's end
    choice = choose([*crowd, *pair], hidden, LAYERS, now_s=0.0, chance=0.5)
    assert choice.layers != LayerRange(7, 9)


def test_a_swarm_behind_one_relay_settles() -> None:
    """Hidden peers that all share one relay still cover every layer, and come to rest."""
    swarm = [
        advert(
            f"p{n}", 0, 0, state=State.JOINING, row_us=500, layers_max=3, addresses=(through("r"),)
        )
        for n in range(6)
    ]
    game = play(swarm, LAYERS, random.Random(1))
    assert game.covered
    assert game.last_move < 60


def test_a_hidden_peer_tells_how_near_its_relays_are() -> None:
    """The table knows the nearest one, and that a peer with two relays does not end with one."""
    told = advert(
        "h", 1, 5, addresses=(through("r"), through("s")), links=(RoundTrip(peer_id("s"), 7000),)
    )
    view = OfferTable.of([told, evolve(told, peer=peer_id("i"), addresses=(through("r"), *OPEN))])
    assert view.column("relay_us").tolist() == [7000, 0]
    assert view.column("hidden").tolist() == [1, 0]
    assert view.column("lone_relay").tolist() == [0, 0]
