"""Fetching parts over the memory network: from several holders, some of them faulty."""

import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from p2pinfer.core.errors import RemoteProtocolError
from p2pinfer.core.manifest import CHUNK_BYTES, Part
from p2pinfer.core.messages import (
    AskChunks,
    AskHashes,
    AskHeld,
    AskManifest,
    Chunk,
    HashesAre,
    Held,
    ManifestIs,
)
from p2pinfer.core.wire import encode
from p2pinfer.engine.store.store import Store
from peers.parts.fetch import fetch_parts
from peers.parts.protocol import PARTS, in_place, pack_bits, unpack_bits
from peers.steps.messaging import receive, send
from scheduler.fetching import (
    CHUNK_S_MIN,
    FIRST_CHUNK_S_MAX,
    IN_FLIGHT_MAX,
    IN_FLIGHT_PER_HOLDER_MAX,
)
from tests.support.parts_swarm import Model, Swarm, make_model, swarm
from transports.base import Channel
from transports.memory.network import MemoryTransport

CHUNKS = 16
"""Of the small model."""

Question = AskManifest | AskHashes | AskHeld | AskChunks
Act = Callable[[Channel, Question], Awaitable[object]]


def holder(made: Swarm, act: Act) -> Callable[[MemoryTransport], None]:
    """Make a holder that claims to hold everything, unless ``act`` has answered already."""

    async def serve(channel: Channel) -> None:
        while True:
            question: Question = await receive(channel, AskManifest, AskHashes, AskHeld, AskChunks)
            if await act(channel, question):
                continue
            if isinstance(question, AskManifest):
                data = made.model.manifest.encode()
                await send(channel, ManifestIs(question.number, data))
            if isinstance(question, AskHeld):
                sizes = {part.hash: len(part.chunks) for part in made.model.manifest.parts}
                held = tuple(pack_bits(range(sizes[part])) for part in question.parts)
                await send(channel, Held(question.number, held))

    return lambda transport: transport.handle(PARTS, serve)


async def test_parts_come_from_three_holders(autojump_clock: MockClock, tmp_path: Path) -> None:
    """All parts arrive, no chunk twice, and every holder gave some."""
    async with swarm(tmp_path) as made:
        for name in "abc":
            await made.add(name)
        await made.fetch()
        assert made.is_whole()
        assert len(set(made.store.written)) == len(made.store.written) == CHUNKS
        assert all(server.chunks for server in made.servers.values())
        last = made.told[-1]
        assert last.done_bytes == last.total_bytes == made.model.manifest.size
        assert made.blamed == []


async def test_both_sides_count_the_same_bytes(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The fetcher those of right chunks, and each holder those that it sent, within 1 %."""
    async with swarm(tmp_path) as made:
        names = [await made.add(name) for name in "abc"]
        await made.fetch()
        assert made.had.total() == made.model.manifest.size
        for who in names:
            assert made.had[who] == pytest.approx(made.sent[who], rel=0.01)


async def test_only_named_parts_are_fetched(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A peer that serves a layer fetches that layer."""
    async with swarm(tmp_path) as made:
        await made.add("a")
        await made.fetch(["layer.1"])
        assert {name for name, _ in made.store.written} == {"layer.1"}
        assert made.store.held(made.model.manifest.part("layer.1"))


def is_third(third: int, part: Part, index: int) -> bool:
    """Whether a chunk belongs to the given third of the chunks."""
    return (len(part.name) + index) % 3 == third


async def test_three_holders_of_a_third_each_suffice(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """No holder has everything, but together they do."""
    async with swarm(tmp_path) as made:
        for n in range(3):
            await made.add(f"{n}", partial(is_third, n))
        await made.fetch()
        assert made.is_whole()


async def test_a_fetching_peer_serves_meanwhile(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Chunks come from a peer that has only just fetched them, and is still fetching."""
    async with swarm(tmp_path) as made:
        store = Store(tmp_path / "early")
        made.model.fill(store, lambda part, _: part.name != "layer.2")
        early = await made.serve("early", store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.fetch)
            await trio.sleep(5)
            assert "no peer online holds layer.2; waiting" in made.told[-1].waiting
            layer = made.model.manifest.part("layer.2")
            for index in range(len(layer.chunks)):
                store.write_chunk(layer, index, made.model.chunk(layer, index))
                await trio.sleep(3)
                assert ("layer.2", index) in made.store.written
        assert made.is_whole()
        assert made.servers[early].chunks == CHUNKS


@pytest.mark.parametrize("victim", range(CHUNKS))
async def test_a_flipped_bit_in_an_answer_is_found(
    victim: int, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Whichever chunk a holder falsifies: it is named, not asked again, and all chunks arrive."""
    async with swarm(tmp_path) as made:
        every = [(p.hash, n) for p in made.model.manifest.parts for n in range(len(p.chunks))]
        wrong = every[victim]
        asked_at: list[float] = []

        async def lie(channel: Channel, question: Question) -> None:
            if isinstance(question, AskChunks):
                asked_at.append(trio.current_time())
                part = next(p for p in made.model.manifest.parts if p.hash == question.part)
                for number, index in enumerate(question.indices, question.number):
                    data = bytearray(made.model.chunk(part, index))
                    if (question.part, index) == wrong:
                        bit = random.Random(victim).randrange(8 * len(data))
                        data[bit >> 3] ^= 1 << (bit & 7)
                    await send(channel, Chunk(number, bytes(data)))

        liar = await made.join("liar", holder(made, lie))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.fetch)
            await trio.sleep(600)  # the liar is alone for a long time
            await made.add("honest")
        assert made.is_whole()
        (error,) = made.blamed
        assert isinstance(error, RemoteProtocolError)
        assert error.peer == liar
        name = next(p.name for p in made.model.manifest.parts if p.hash == wrong[0])
        assert max(asked_at) < 1
        assert str(error).startswith(f"{liar} gave wrong bytes for chunk {wrong[1]} of {name};")


@pytest.mark.parametrize("victim", range(CHUNKS))
async def test_a_flipped_bit_on_a_disk_is_found(
    victim: int, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Whichever chunk a disk damages: its holder notices, is named, and other holders suffice."""
    async with swarm(tmp_path) as made:
        every = [(part, n) for part in made.model.manifest.parts for n in range(len(part.chunks))]
        part, index = every[victim]
        damaged = await made.add("damaged")
        path = Store(tmp_path / "damaged").path(part)
        data = bytearray(path.read_bytes())
        bit = random.Random(victim).randrange(8 * part.chunk_size(index))
        data[index * CHUNK_BYTES + (bit >> 3)] ^= 1 << (bit & 7)
        path.write_bytes(data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.fetch)
            await trio.sleep(5)
            assert made.told[-1].waiting == f"no peer online holds {part.name}; waiting"
            assert len(made.store.written) == CHUNKS - 1
            await made.add("good")
        assert made.is_whole()
        (error,) = made.blamed
        assert error.peer == damaged
        text = f"{damaged} reports that its disk damaged chunk {index} of {part.name};"
        assert str(error).startswith(text)


async def test_a_silent_holder_is_replaced(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Chunks that one holder does not deliver in time are asked of another."""
    async with swarm(tmp_path) as made:

        async def nothing(channel: Channel, question: object) -> None:
            """Send no chunk."""

        await made.join("silent", holder(made, nothing))
        await made.add("good")
        with trio.fail_after(FIRST_CHUNK_S_MAX + 5):
            await made.fetch()
        assert made.is_whole()


async def test_a_holder_that_becomes_slow_is_replaced(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Patience with a holder is measured by its own rate, not by the first limit."""
    async with swarm(tmp_path, make_model(layers=8)) as made:
        await made.add("good")
        slow = await made.add("slow")

        def latency_s(from_: str, to: str) -> float:
            given_ = made.servers[slow].chunks
            return 60.0 if given_ > 2 * IN_FLIGHT_PER_HOLDER_MAX and slow in (from_, to) else 0.001

        made.network.latency_s = latency_s
        with trio.fail_after(CHUNK_S_MIN + 5):
            await made.fetch()
        assert made.is_whole()


async def test_a_transfer_outlives_all_its_holders(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """All leave in mid-transfer: it reports what it waits for, and finishes when one appears."""
    async with swarm(tmp_path, make_model(layers=12)) as made:
        only = await made.add("only")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.fetch)
            while len(made.store.written) < 20:  # noqa: ASYNC110 -- stores do not use trio
                await trio.sleep(0.0005)
            made.leave[only]()
            await trio.sleep(600)
            before = len(made.store.written)
            assert before < CHUNKS * 3
            assert made.told[-1].waiting.startswith("no peer online holds ")
            assert made.told[-1].waiting.endswith("more parts; waiting")
            assert (made.told[-1].holders, made.told[-1].left_s) == (0, None)
            await made.add("another")
        assert made.is_whole()
        assert len(set(made.store.written)) == len(made.store.written)


@settings(max_examples=40)
@given(stops=st.lists(st.integers(0, 60), max_size=5))
def test_a_cancelled_transfer_resumes(
    stops: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whenever it is cancelled: no stored chunk is fetched again."""

    async def run() -> None:
        async with swarm(tmp_path_factory.mktemp("swarm")) as made:
            await made.add("a")
            await made.add("b")
            for stop in stops:
                with trio.move_on_after(stop / 2000):
                    await made.fetch()
            await made.fetch()
            assert made.is_whole()
            assert len(set(made.store.written)) == len(made.store.written) == CHUNKS
            given_ = sum(server.chunks for server in made.servers.values())
            assert given_ <= CHUNKS + IN_FLIGHT_MAX * len(stops)

    trio.run(run, clock=MockClock(autojump_threshold=0))


async def test_a_false_manifest_is_rejected(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A manifest that is not the model's is not accepted, and its sender is named."""
    async with swarm(tmp_path) as made:

        async def lie(channel: Channel, question: Question) -> bool:
            if isinstance(question, AskManifest):
                other = make_model(seed=2).manifest.encode()
                await send(channel, ManifestIs(question.number, other))
                return True
            return False

        liar = await made.join("liar", holder(made, lie))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.fetch)
            await trio.sleep(1)
            assert made.told[-1].waiting.startswith("no peer online has the manifest of ")
            await made.add("good")
        assert made.is_whole()
        assert [error.peer for error in made.blamed] == [liar]


@pytest.fixture
def long_model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """Provide a model whose manifest counts as too long to list its chunks."""
    monkeypatch.setattr("p2pinfer.core.manifest.LISTED_BYTES_MAX", 100)
    return make_model(seed=9)


async def test_lists_of_a_long_manifest_are_fetched_as_needed(
    autojump_clock: MockClock, tmp_path: Path, long_model: Model
) -> None:
    """A fetcher of one layer learns the chunks of that layer alone, and passes them on."""
    async with swarm(tmp_path, long_model) as made:
        first = await made.add("first")
        await made.fetch(["layer.1"])
        manifest = made.store.manifest(long_model.id)
        assert manifest
        assert [p.name for p in manifest.parts if made.store.listed(p)] == ["layer.1"]
        assert made.store.held(manifest.part("layer.1"))
        made.leave[first]()
        await made.serve("second", made.store)
        fresh = Store(tmp_path / "third")
        fresh.add_manifest(manifest.encode(), manifest.id)
        await fetch_parts(made.me, made.holders, fresh, manifest, ["layer.1"], run=in_place)
        assert fresh.held(manifest.part("layer.1"))


async def test_a_false_list_is_rejected(
    autojump_clock: MockClock, tmp_path: Path, long_model: Model
) -> None:
    """Hashes that are not the part's are not kept, and their sender is named."""
    async with swarm(tmp_path, long_model) as made:

        async def lie(channel: Channel, question: Question) -> bool:
            if isinstance(question, AskHashes):
                await send(channel, HashesAre(question.number, bytes(4 * 32)))
                return True
            return False

        liar = await made.join("liar", holder(made, lie))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.fetch)
            await trio.sleep(1)
            assert "lists the chunks of" in made.told[-1].waiting
            await made.add("good")
        assert made.is_whole()
        assert [error.peer for error in made.blamed] == [liar]


def too_long(question: AskHeld) -> Held:
    """Claim one chunk more than there is."""
    return Held(question.number, tuple(pack_bits(range(5)) for _ in question.parts))


LIES: dict[str, Callable[[AskHeld], object]] = {
    "bitmaps too long": too_long,
    "bitmaps too few": lambda question: Held(question.number, ()),
    "another number": lambda question: Chunk(question.number + 1, b"x"),
    "another kind": lambda question: Chunk(question.number, b"x"),
    "no answer at all": lambda question: question,
}


@pytest.mark.parametrize("lie", LIES)
async def test_an_invalid_answer_is_blamed(
    lie: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A holder that does not answer the question is named, and other holders suffice."""
    async with swarm(tmp_path) as made:

        async def act(channel: Channel, question: Question) -> bool:
            if isinstance(question, AskHeld):
                await channel.send(encode(LIES[lie](question)))  # type: ignore[arg-type] # any
            return True

        liar = await made.join("liar", holder(made, act))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.fetch, None)
            await trio.sleep(1)
            await made.add("good")
        assert made.is_whole()
        assert liar in {error.peer for error in made.blamed}


@given(st.sets(st.integers(0, 200)))
def test_bitmaps_round_trip(numbers: set[int]) -> None:
    """A bitmap holds the numbers put in, in as few bytes as possible, all below its count."""
    bits = pack_bits(numbers)
    assert len(bits) == max(numbers, default=-1) // 8 + 1
    assert unpack_bits(bits, 201) == numbers
    if numbers:
        with pytest.raises(ValueError, match="bitmap"):
            unpack_bits(bits, max(numbers))
