"""Parts between processes over libp2p: holders and fetchers are killed, bytes stay correct."""

import random
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE

import pytest
import trio

from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.manifest import Part
from p2pinfer.core.python_process import python_command, python_environment
from p2pinfer.engine.store.store import Store
from peers.parts.describe import fetch_manifest
from peers.parts.fetch import fetch_parts
from scheduler.fetching import IN_FLIGHT_PER_HOLDER_MAX
from tests.support.commands import bench
from tests.support.parts_swarm import Model, Where, make_model
from transports.libp2p.transport import open_libp2p

pytestmark = pytest.mark.real

WAIT_S_MAX = 120.0
KILLS = 20


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[trio.Process]:
    """Run Python until the block ends, then kill it if it still runs."""
    child = await trio.lowlevel.open_process(
        python_command(*arguments), stdin=PIPE, stdout=PIPE, env=python_environment()
    )
    try:
        yield child
    finally:
        with trio.CancelScope(shield=True):
            child.kill()
            await child.wait()
            for stream in (child.stdin, child.stdout):
                assert stream
                await stream.aclose()


@asynccontextmanager
async def holder(root: Path, model: Model) -> AsyncIterator[tuple[trio.Process, str]]:
    """Run a process that serves a store; yield it and its address."""
    serve = ("p2pinfer.bench.fetch", "serve", str(root), model.id, "own")
    async with process(*serve) as child:
        yield child, await read_line(child)


async def read_line(child: trio.Process) -> str:
    """Return the next line that a process prints, empty if it has ended."""
    assert child.stdout
    line = b""
    while not line.endswith(b"\n") and (byte := await child.stdout.receive_some(1)):
        line += byte
    return line.decode().strip()


def fetcher(root: Path, model: Model, addresses: Path) -> tuple[str, ...]:
    """Return the arguments of a process that fetches a model; see `main`."""
    return ("tests.real.test_parts", str(root), model.id, str(addresses))


def held(store: Store, model: Model) -> set[tuple[str, int]]:
    """Return all chunks that a store holds, by hashing them."""
    return {(p.name, n) for p in model.manifest.parts for n in store.chunks_held(p)}


async def test_fetching_survives_kills_of_the_fetcher(tmp_path: Path) -> None:
    """Killed 20 times it continues each time, and ends with the same bytes.

    Its holder sends twice at most the chunks in flight at the kills.
    """
    chance = random.Random(5)
    model = make_model(layers=10, layer_bytes=12 << 20)
    model.fill(Store(tmp_path / "holder"))
    addresses = tmp_path / "addresses"
    chunks = sum(len(part.chunks) for part in model.manifest.parts)
    written = 0
    with trio.fail_after(WAIT_S_MAX):
        async with holder(tmp_path / "holder", model) as (child_holder, address):
            addresses.write_text(address)
            for kill in range(KILLS + 1):
                before = held(Store(tmp_path / "fetcher"), model)
                limit = chance.randint(1, 2 * chunks // KILLS) if kill < KILLS else chunks + 1
                brought = 0
                async with process(*fetcher(tmp_path / "fetcher", model, addresses)) as child:
                    while brought < limit and (await read_line(child)) == "chunk":
                        brought += 1
                    child.kill()
                    while await read_line(child) == "chunk":  # the lines it printed before it died
                        brought += 1
                after = held(Store(tmp_path / "fetcher"), model)
                assert before <= after
                assert len(after) - len(before) >= brought
                written += brought
            assert child_holder.stdin
            await child_holder.stdin.aclose()
            given = int(await read_line(child_holder))
    store = Store(tmp_path / "fetcher")
    assert all(store.path(p).read_bytes() == model.data[p.hash] for p in model.manifest.parts)
    assert written <= chunks <= given <= chunks + KILLS * IN_FLIGHT_PER_HOLDER_MAX


async def test_fetching_waits_for_another_holder(tmp_path: Path) -> None:
    """If the only holder dies during a transfer, the fetcher says what it waits for."""
    model = make_model(layers=10, layer_bytes=12 << 20)
    model.fill(Store(tmp_path / "holder"))
    addresses = tmp_path / "addresses"
    with trio.fail_after(WAIT_S_MAX):
        async with holder(tmp_path / "holder", model) as (only, address):
            addresses.write_text(address)
            async with process(*fetcher(tmp_path / "fetcher", model, addresses)) as child:
                for _ in range(10):
                    assert await read_line(child) == "chunk"
                only.kill()
                while (line := await read_line(child)) == "chunk":
                    pass
                assert line.startswith("no peer online holds layer.")
                async with holder(tmp_path / "holder", model) as (_, other):
                    addresses.write_text(other)
                    while (line := await read_line(child)) != "whole":
                        assert line == "chunk" or line.startswith("no peer online holds ")
    store = Store(tmp_path / "fetcher")
    assert all(store.path(p).read_bytes() == model.data[p.hash] for p in model.manifest.parts)


def test_the_bench_measures(home: Path) -> None:
    """One round gives a rate for each way, and each step's time."""
    found = bench(home, "fetch", "--rounds", "1", "--megabytes", "25")
    assert set(found["mb_per_s"]) == {"plain", "plain_library", "from_1", "from_3"}
    for ratio in ("ratio", "ratio_to_library"):
        assert all(each > 0 for each in found[ratio].values())
    assert found["round_trip_ms"]["during_fetch_p99"] > found["round_trip_ms"]["idle_p50"] > 0
    assert found["ms_per_chunk"].keys() >= {"hash", "encode", "decode", "sync"}


def test_memory_does_not_grow_with_the_model(home: Path) -> None:
    """Four times the bytes take about the same memory, far less than the model."""
    found = bench(home, "fetch", "--gigabytes", "0.05", "0.2")
    small, large = found["sizes"]
    assert large["memory_mb"] < small["memory_mb"] + 30
    assert found["memory_mb_max"] < 200
    assert large["seconds"] > small["seconds"]


class TellingStore(Store):
    """Prints a line for every chunk on disk."""

    def write_chunks(self, part: Part, chunks: Mapping[int, bytes]) -> set[int]:
        """Write, then print."""
        wrong = super().write_chunks(part, chunks)
        sys.stdout.write("chunk\n" * (len(chunks) - len(wrong)))
        sys.stdout.flush()
        return wrong


async def main(*arguments: str) -> None:
    """Fetch a whole model into a store from the peers whose addresses are in a file."""
    root, model, addresses = arguments
    told = ""

    def holders() -> list[Where]:
        lines = Path(addresses).read_text().split()
        return [Where(PeerId(line.rpartition("/")[2]), [line]) for line in lines]

    def tell(waiting: str) -> None:
        nonlocal told
        if waiting and waiting != told:
            sys.stdout.write(waiting + "\n")
            sys.stdout.flush()
        told = waiting

    store = TellingStore(Path(root))
    async with open_libp2p(None, (), "bench") as transport:
        manifest = await fetch_manifest(transport, holders, store, ModelId(model))
        names = [part.name for part in manifest.parts]
        await fetch_parts(
            transport, holders, store, manifest, names, lambda progress: tell(progress.waiting)
        )
    sys.stdout.write("whole\n")


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
