"""What only the memory transport has: latency on trio's clock, and peers that come and go."""

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.errors import ChannelClosed, PeerUnavailable
from p2pinfer.core.ids import PeerId
from transports.base import Channel
from transports.memory.network import MemoryNetwork

A, B = PeerId("A"), PeerId("B")


async def echo(channel: Channel) -> None:
    """Send back what comes."""
    while True:
        await channel.send(await channel.receive())


async def test_a_message_takes_the_latency_of_its_link(autojump_clock: MockClock) -> None:
    """Each direction has its own latency; opening takes a round trip, talking another."""
    network = MemoryNetwork(lambda sender, _: 0.3 if sender == A else 0.1)
    async with network.join(A) as a, network.join(B) as b:
        b.handle("echo", echo)
        start = trio.current_time()
        channel = await a.open(B, "echo")
        assert trio.current_time() - start == pytest.approx(0.4)
        await channel.send(b"x")
        assert trio.current_time() - start == pytest.approx(0.4)
        await channel.receive()
        assert trio.current_time() - start == pytest.approx(0.8)


async def test_nothing_overtakes_when_a_link_gets_faster(autojump_clock: MockClock) -> None:
    """Messages keep their order even if the second would arrive before the first."""
    network = MemoryNetwork()
    async with network.join(A) as a, network.join(B) as b:
        b.handle("echo", echo)
        channel = await a.open(B, "echo")
        network.latency_s = lambda _from, _to: 1.0
        await channel.send(b"first")
        network.latency_s = lambda _from, _to: 0.0
        await channel.send(b"second")
        assert [await channel.receive(), await channel.receive()] == [b"first", b"second"]


async def test_a_peer_comes_back_under_its_name(autojump_clock: MockClock) -> None:
    """A peer that left is unavailable, and may join again."""
    network = MemoryNetwork()
    async with network.join(A) as a:
        async with network.join(B):
            pass
        with pytest.raises(PeerUnavailable):
            await a.open(B, "echo")
        async with network.join(B) as b:
            b.handle("echo", echo)
            await a.open(B, "echo")


async def test_two_peers_cannot_share_a_name() -> None:
    """A second peer of the same id is our own mistake."""
    network = MemoryNetwork()
    async with network.join(A):
        with pytest.raises(ValueError, match="joined already"):
            async with network.join(A):
                pass


async def test_a_way_that_is_cut_ends_its_channels_alone(autojump_clock: MockClock) -> None:
    """Both sides notice at once, whatever was in transit; channels to others go on."""
    network = MemoryNetwork(lambda *_: 0.5)
    async with network.join(A) as a, network.join(B) as b, network.join(PeerId("C")) as c:
        found: list[Channel] = []

        async def keep(channel: Channel) -> None:
            found.append(channel)
            await echo(channel)

        b.handle("echo", keep)
        c.handle("echo", echo)
        severed, whole = await a.open(B, "echo"), await a.open(PeerId("C"), "echo")
        await severed.send(b"lost")
        network.sever(lambda one, other: {one, other} == {A, B})
        start = trio.current_time()
        for channel in (severed, *found):
            with pytest.raises(ChannelClosed):
                await channel.receive()
            with pytest.raises(ChannelClosed):
                await channel.send(b"x")
        assert trio.current_time() == start
        await whole.send(b"x")
        assert await whole.receive() == b"x"
