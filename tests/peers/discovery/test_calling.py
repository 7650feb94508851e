"""Which peers are called only to learn how far they are."""

import math
import random
from contextlib import AsyncExitStack

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.advertisement import Advertisement, RoundTrip
from p2pinfer.core.errors import PeerUnavailable
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from peers.discovery.calling import (
    CALL_S,
    CALLED_MAX,
    REACHED_MAX,
    call_around,
    farthest_s,
    layer_s,
    neighbours,
)
from scheduler.route_cost import HOP_S, ROUND_TRIP_S_DEFAULT
from tests.support.adverts import advert
from tests.support.swarm import MODEL, peer
from transports.memory.network import MemoryNetwork
from transports.vain_dials import VAIN_PER_HOST_MAX


def offer(name: PeerId) -> Advertisement:
    """Advertise a peer that serves everything."""
    return Advertisement(
        peer=name, addresses=(f"/memory/0/p2p/{name}",), model=MODEL, model_name="toy", layers=30,
        first=1, end=29, context=256, numerics_class="0" * 32, sequence=1,
    )  # fmt: skip


@pytest.mark.parametrize(("silent", "count"), [(0.0, REACHED_MAX), (1.0, CALLED_MAX)])
async def test_some_are_called_and_no_more(
    silent: float, count: int, autojump_clock: MockClock
) -> None:
    """Each once, until enough have answered; not all of them even if none does."""
    network = MemoryNetwork()
    names = [peer(f"p{number}") for number in range(2 * CALLED_MAX)]
    calls: list[str] = []
    async with AsyncExitStack() as stack:
        me = await stack.enter_async_context(network.join(peer("me")))
        for name in names[: round((1 - silent) * len(names))]:
            await stack.enter_async_context(network.join(name))
        nursery = await stack.enter_async_context(trio.open_nursery())
        connect = me.connect

        async def count_it(address: str) -> PeerId:
            calls.append(address)
            return await connect(address)

        me.connect = count_it  # type: ignore[method-assign]
        nursery.start_soon(
            call_around, me, lambda: [offer(name) for name in names], random.Random(1)
        )
        await trio.sleep(40 * CALL_S)
        nursery.cancel_scope.cancel()
    assert len(calls) == len(set(calls)) == count


async def called_of(offers: list[Advertisement], known: dict[PeerId, float]) -> set[PeerId]:
    """Return which of these are called, where all answer and some round trips were measured."""
    called: list[PeerId] = []
    async with MemoryNetwork().join(peer("me")) as me, trio.open_nursery() as nursery:

        async def connect(address: str) -> PeerId:
            called.append(PeerId(address.rpartition("/")[2]))
            return called[-1]

        me.connect = connect  # type: ignore[method-assign]
        nursery.start_soon(call_around, me, lambda: offers, random.Random(1), known.get)
        await trio.sleep(CALL_S)
        nursery.cancel_scope.cancel()
    return set(called)


def crowd(name: str, relay: str = "near", row_us: int = 1000) -> list[Advertisement]:
    """Return offers of as many peers as are called, 10 ms from their relay."""
    links = (RoundTrip(peer(relay), 10_000),)
    names = [peer(f"{name}{n}") for n in range(REACHED_MAX)]
    return [evolve(offer(each), links=links, row_us=row_us) for each in names]


async def test_those_that_cannot_be_far_are_called_first(autojump_clock: MockClock) -> None:
    """A hidden peer tells how far its relay is; who knows that relay knows about how far it is."""
    known = {peer("near"): 0.01, peer("far"): 0.2}
    far, near = crowd("far", relay="far"), crowd("near")
    assert await called_of([*far, *near], known) == {each.peer for each in near}


async def test_of_near_ones_the_quick_are_called_first(autojump_clock: MockClock) -> None:
    """Routes pass the slow ones of a town by, however near they are; a far quick one is dearer."""
    known = {peer("near"): 0.01, peer("far"): 0.2}
    slow, quick = crowd("slow", row_us=3000), crowd("quick", row_us=500)
    far = crowd("far", relay="far", row_us=500)
    assert await called_of([*slow, *far, *quick], known) == {each.peer for each in quick}


async def test_whose_distance_is_known_is_not_called(autojump_clock: MockClock) -> None:
    """Its place is another's: a hidden peer has looked at some as relays before."""
    looked_at, others = crowd("relay"), crowd("other", row_us=3000)
    known = {each.peer: 0.01 for each in looked_at}
    assert await called_of([*looked_at, *others], known) == {each.peer for each in others}


def test_what_a_layer_costs() -> None:
    """The way to a peer is shared by its layers; one of which nothing is known may be far away."""
    known = {peer("a"): 0.02}
    near = evolve(offer(peer("x")), row_us=700, links=(RoundTrip(peer("a"), 8000),))
    assert layer_s(near, known.get) == pytest.approx(0.0007 + (0.028 + HOP_S) / 28)
    assert layer_s(evolve(near, end=3), known.get) == pytest.approx(0.0007 + (0.028 + HOP_S) / 2)
    unknown_s = 0.001 + (ROUND_TRIP_S_DEFAULT + HOP_S) / 28
    assert layer_s(offer(peer("x")), known.get) == pytest.approx(unknown_s)


def test_how_far_a_peer_can_be() -> None:
    """At most the least of the ways over those that both know."""
    known = {peer("a"): 0.1, peer("b"): 0.02}
    links = (RoundTrip(peer("a"), 1000), RoundTrip(peer("b"), 30_000), RoundTrip(peer("c"), 1))
    assert farthest_s(evolve(offer(peer("x")), links=links), known.get) == pytest.approx(0.05)
    assert farthest_s(offer(peer("x")), known.get) == math.inf


def test_neighbours_are_those_that_rows_pass() -> None:
    """A stage is entered at its first layer, and left after any: no others are of use."""
    ranges = {"a": (1, 5), "b": (3, 9), "c": (5, 9), "d": (9, 12), "e": (10, 12), "f": (1, 4)}
    offers = [advert(name, *ends) for name, ends in ranges.items()]
    here = neighbours(offers, LayerRange(5, 9))
    assert [each.peer for each in here] == [offers[at].peer for at in (0, 1, 3)]


async def test_made_up_peers_send_nobody_to_a_stranger(autojump_clock: MockClock) -> None:
    """Nor about a private network: a few dials, however many of them there are."""
    network, dialled = MemoryNetwork(), list[str]()
    places = [f"/ip4/5.6.7.8/tcp/{n}" for n in range(40)]
    places += [f"/ip4/192.168.1.{n}/tcp/80" for n in range(40)]
    made_up = [advert(f"v{n}", 1, 29, addresses=(place,)) for n, place in enumerate(places)]
    async with network.join(peer("me")) as me, trio.open_nursery() as nursery:

        async def refuse(address: str) -> PeerId:
            dialled.append(address)
            raise PeerUnavailable(peer("v"), "nobody is there")

        me.connect = refuse  # type: ignore[method-assign]
        nursery.start_soon(call_around, me, lambda: made_up, random.Random(1))
        await trio.sleep(40 * CALL_S)
        nursery.cancel_scope.cancel()
    assert len(dialled) == 2 * VAIN_PER_HOST_MAX
