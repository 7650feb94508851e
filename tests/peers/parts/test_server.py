"""How a parts server answers questions that no honest fetcher asks, or not in such numbers."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.errors import ChannelClosed
from p2pinfer.core.ids import ModelId, PartHash
from p2pinfer.core.messages import (
    QUESTIONS_PER_CHANNEL_MAX,
    AskChunks,
    AskHeld,
    AskManifest,
    Chunk,
    Denied,
    Held,
    ManifestIs,
    Refusal,
    Refused,
)
from peers.parts.protocol import PARTS
from peers.parts.server import ANSWER_S_MAX, CHANNELS_MAX, CHANNELS_PER_PEER_MAX, IDLE_S_MAX
from peers.steps.messaging import RefusedError, receive, send
from tests.support.parts_swarm import Swarm, swarm
from tests.support.swarm import peer
from transports.base import Channel
from transports.memory.network import MemoryTransport


async def ask(made: Swarm, question: AskManifest | AskHeld | AskChunks) -> object:
    """Ask the server ``a`` one question."""
    channel = await made.me.open(peer("a"), PARTS)
    await send(channel, question)
    answer: object = await receive(channel, ManifestIs, Held, Chunk, Denied)
    await channel.close()
    return answer


NO_MODEL, NOTHING = ModelId("0" * 64), PartHash("0" * 64)


async def test_what_is_not_held_is_denied(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Unknown models and parts, and chunks beyond a part's end, are refused by a code."""
    async with swarm(tmp_path) as made:
        await made.add("a", lambda part, index: index != 1)
        layer = made.model.manifest.part("layer.0")
        no = Denied(7, Refusal.NOT_HELD)
        assert await ask(made, AskManifest(7, NO_MODEL)) == no
        assert await ask(made, AskChunks(7, NO_MODEL, layer.hash, (0,))) == no
        assert await ask(made, AskChunks(7, made.model.id, NOTHING, (0,))) == no
        assert await ask(made, AskChunks(7, made.model.id, layer.hash, (1,))) == no
        assert await ask(made, AskChunks(7, made.model.id, layer.hash, (4,))) == no
        assert await ask(made, AskChunks(7, made.model.id, layer.hash, (65_535,))) == no
        held = await ask(made, AskHeld(7, made.model.id, (layer.hash, NOTHING)))
        assert held == Held(7, (bytes([0b1101]), b""))
        last = await ask(made, AskChunks(7, made.model.id, layer.hash, (3,)))
        assert last == Chunk(7, made.model.chunk(layer, 3))


async def test_a_flood_of_questions_is_cut_off(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A fetcher that asks without waiting for answers is blamed and cut off."""
    async with swarm(tmp_path) as made:
        await made.add("a")
        channel = await made.me.open(peer("a"), PARTS)
        layer = made.model.manifest.part("layer.0")

        async def flood() -> None:
            for number in range(10_000):
                await send(channel, AskChunks(number, made.model.id, layer.hash, (0,)))

        with pytest.raises(ChannelClosed):
            await flood()
        assert made.servers[peer("a")].chunks <= QUESTIONS_PER_CHANNEL_MAX
        await made.fetch()
        assert made.is_whole()


async def test_a_fetcher_that_never_reads_is_cut_off(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Few untaken answers are held, up to ``ANSWER_S_MAX``; then the channel ends."""
    async with swarm(tmp_path) as made:
        await made.add("a")
        channel = await made.me.open(peer("a"), PARTS)
        layer = made.model.manifest.part("layer.0")
        for number in range(QUESTIONS_PER_CHANNEL_MAX // 2):
            await send(channel, AskChunks(number, made.model.id, layer.hash, (0,)))
        await trio.sleep(ANSWER_S_MAX - 10)
        assert made.servers[peer("a")].chunks <= 4  # in the window, or waiting for it
        await send(channel, AskChunks(98, made.model.id, layer.hash, (0,)))  # it is not idle
        await trio.sleep(15)
        with pytest.raises(ChannelClosed):
            await send(channel, AskChunks(99, made.model.id, layer.hash, (0,)))


async def test_too_many_channels_are_refused(autojump_clock: MockClock, tmp_path: Path) -> None:
    """One channel more than a peer, or all peers, may have is refused as busy, until one ends."""
    async with swarm(tmp_path) as made, trio.open_nursery() as nursery:
        await made.add("a")
        question = AskManifest(0, made.model.id)

        async def hold(transport: MemoryTransport) -> Channel:
            channel = await transport.open(peer("a"), PARTS)
            await send(channel, question)
            await receive(channel, ManifestIs)
            return channel

        own = [await hold(made.me) for _ in range(CHANNELS_PER_PEER_MAX)]
        with pytest.raises(RefusedError, match="busy"):
            await hold(made.me)
        await own[0].close()
        await hold(made.me)
        others: list[MemoryTransport] = []
        for number in range(CHANNELS_MAX):
            await made.join(f"p{number}", others.append)
        for other in others[: CHANNELS_MAX - CHANNELS_PER_PEER_MAX]:
            nursery.start_soon(hold, other)
        await trio.sleep(1)
        with pytest.raises(RefusedError, match="busy"):
            await hold(others[-1])


async def test_an_idle_channel_ends(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A fetcher that asks nothing for long enough is told why and loses its place."""
    async with swarm(tmp_path) as made:
        await made.add("a")
        channel = await made.me.open(peer("a"), PARTS)
        with trio.fail_after(IDLE_S_MAX + 1), pytest.raises(RefusedError, match="too-slow"):
            await receive(channel, Refused)
