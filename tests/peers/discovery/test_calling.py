"""Which peers are called only to learn how far they are."""

import random
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from peers.discovery.calling import CALL_S, CALLED_MAX, REACHED_MAX, call_around, neighbours
from tests.support.adverts import advert
from tests.support.swarm import MODEL, peer
from transports.memory.network import MemoryNetwork


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


def test_neighbours_are_those_that_rows_pass() -> None:
    """A stage is entered at its first layer, and left after any: no others are of use."""
    ranges = {"a": (1, 5), "b": (3, 9), "c": (5, 9), "d": (9, 12), "e": (10, 12), "f": (1, 4)}
    offers = [advert(name, *ends) for name, ends in ranges.items()]
    here = neighbours(offers, LayerRange(5, 9))
    assert [each.peer for each in here] == [offers[at].peer for at in (0, 1, 3)]
