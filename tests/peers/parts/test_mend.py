"""Chunks that nobody holds are rebuilt from other shares, and liars neither stop nor spoil that."""

import random
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.errors import RemoteProtocolError
from p2pinfer.core.messages import AskChunks, AskHashes, AskHeld, AskManifest, Chunk, Held
from peers.parts.protocol import PARTS, pack_bits
from peers.steps.messaging import receive, send
from tests.support.coded import Coded, coded_model, whole_parts
from tests.support.parts_swarm import Swarm, swarm
from transports.base import Channel
from transports.memory.network import MemoryTransport

SHARES = 16


async def keepers(made: Swarm, coded: Coded, rows: list[int]) -> None:
    """Add a peer for each of these rows, which keeps it of every band."""
    for row in rows:
        await made.serve(f"keeper-{row}", coded.fill(made.root / f"keeper-{row}", {row}))


@pytest.mark.parametrize("seed", [0, 1])
async def test_any_eight_of_sixteen_give_the_model(
    autojump_clock: MockClock, tmp_path: Path, seed: int
) -> None:
    """Eight storers are gone, and a newcomer gets all of it under the same id."""
    coded = coded_model()
    left = sorted(random.Random(seed).sample(range(SHARES), 8))
    async with swarm(tmp_path, coded.model) as made:
        await keepers(made, coded, left)
        with trio.fail_after(600):
            await made.fetch()
        assert made.is_whole()
        assert made.blamed == []
        assert any("rebuilding it from other shares" in each.waiting for each in made.told)


async def test_nothing_is_decoded_while_data_is_held(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The code is systematic: all eight data rows are plainly fetched, parity is not touched."""
    coded = coded_model()
    async with swarm(tmp_path, coded.model) as made:
        await keepers(made, coded, list(range(8)))
        await made.serve("parity", coded.fill(tmp_path / "parity", {8, 9, 10}))
        await made.fetch()
        assert made.is_whole()
        assert [who for who, server in made.servers.items() if not server.chunks] == [
            who for who in made.servers if "parity" in who
        ]


async def test_too_few_shares_are_waited_for(autojump_clock: MockClock, tmp_path: Path) -> None:
    """With seven of sixteen it waits, and says so; the eighth that comes back ends that."""
    coded = coded_model()
    async with swarm(tmp_path, coded.model) as made:
        await keepers(made, coded, list(range(1, 8)))
        with trio.move_on_after(60):
            await made.fetch()
        assert len(whole_parts(coded, made.store)) < len(coded.model.manifest.parts)
        assert any(each.waiting.endswith("; waiting") for each in made.told)
        await keepers(made, coded, [12])
        with trio.fail_after(600):
            await made.fetch()
        assert made.is_whole()


async def test_a_wrong_plan_is_found_out(autojump_clock: MockClock, tmp_path: Path) -> None:
    """More peers go by a plan of nonsense than by the true one: all of them are blamed."""
    coded, spoilt = coded_model(), coded_model(spoil=True)
    async with swarm(tmp_path, coded.model) as made:
        await keepers(made, coded, list(range(2, 10)))
        liars = [
            await made.serve(f"liar-{n}", spoilt.fill(tmp_path / f"liar-{n}", {8, 9, 10, 11}))
            for n in range(9)
        ]
        with trio.fail_after(900):
            await made.fetch()
        assert made.is_whole()
        assert {error.peer for error in made.blamed} == set(liars)
        assert all("wrong storage plan" in str(error) for error in made.blamed)


class HostileStorer:
    """Claims every chunk of data and parity, and gives none of them right."""

    def __init__(self, coded: Coded, kind: str) -> None:
        self._coded, self._kind = coded, kind

    def listen(self, transport: MemoryTransport) -> None:
        """Answer others."""
        transport.handle(PARTS, self._serve)

    async def _serve(self, channel: Channel) -> None:
        sizes = {part.hash: part.chunk_count for part in self._coded.plan.parts}
        sizes |= {part.hash: part.chunk_count for part in self._coded.model.manifest.parts}
        while True:
            question: AskHeld | AskChunks | AskHashes | AskManifest = await receive(
                channel, AskHeld, AskChunks, AskHashes, AskManifest
            )
            if isinstance(question, AskHeld):
                held = tuple(pack_bits(range(sizes.get(part, 0))) for part in question.parts)
                await send(channel, Held(question.number, held))
            elif self._kind == "vanishes":
                return
            elif self._kind == "is silent":
                await trio.sleep_forever()
            elif isinstance(question, AskChunks):
                for number in range(len(question.indices)):
                    await send(channel, Chunk(question.number + number, b"wrong"))


@pytest.mark.parametrize("kind", ["lies", "vanishes", "is silent"])
async def test_hostile_storers_are_survived(
    autojump_clock: MockClock, tmp_path: Path, kind: str
) -> None:
    """Two that claim all and give nothing, beside eight honest ones; those that lie are blamed."""
    coded = coded_model()
    async with swarm(tmp_path, coded.model) as made:
        liars = [await made.join(f"bad-{n}", HostileStorer(coded, kind).listen) for n in range(2)]
        await keepers(made, coded, [0, 3, 5, 8, 9, 11, 14, 15])
        with trio.fail_after(3600):
            await made.fetch()
        assert made.is_whole()
        if kind == "lies":
            assert {error.peer for error in made.blamed} == set(liars)
            assert all(isinstance(error, RemoteProtocolError) for error in made.blamed)
