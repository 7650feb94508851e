"""The cost of fetching parts: from one holder and from three, against one plain stream.

Holders are processes on this machine that serve one store of noise. In each round the same bytes go
over a plain framed stream, not read from disk, hashed or written, once with our muxer
and once with the one that libp2p ships; then from one holder, then from three. Read the ratios
before the absolute figures; three holders and a fetcher on fewer than four cores slow each other
down. ``python -m p2pinfer.bench.fetch`` prints JSON.
"""

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio
from blake3 import blake3

from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.manifest import CHUNK_BYTES, Manifest, Part, TensorRow, part_names
from p2pinfer.core.messages import Chunk
from p2pinfer.core.python_process import python_command, python_environment
from p2pinfer.core.wire import decode, encode
from p2pinfer.engine.store.store import Store
from p2pinfer.node.requester import freeze_gc
from peers.parts.fetch import fetch_parts
from peers.parts.server import PartsServer
from transports.base import Channel
from transports.libp2p.host import Muxer
from transports.libp2p.transport import Libp2pTransport, open_libp2p

HERE: Final = ("/ip4/127.0.0.1/tcp/0",)
HOLDERS: Final = (1, 3)
ECHO: Final = "echo"
PLAIN: Final = "plain"
LIBRARY: Final = "plain_library"
"""The same with libp2p's own muxer."""

LAYERS: Final = 8
LAYER_BYTES = 24 * CHUNK_BYTES
"""About 200 MB in total: half a second of a plain stream, and fits a small machine's memory."""

ROUNDS = 5
STEP_TIMES = 50
"""How often each single step is timed."""

SMALL_BYTES = 2048
"""The size of a decode step's rows on the wire."""

SMALL_TIMES = 300
"""Small messages exchanged on an idle connection; during a fetch, as many as fit into it."""

CHILD_S_MAX = 60.0
"""For another process to start, and to end."""


@dataclass(frozen=True)
class HolderProcess:
    """A process on this machine that serves a store."""

    peer: PeerId
    addresses: tuple[str, ...]


async def fetch_bench(rounds: int = ROUNDS, layer_bytes: int = LAYER_BYTES) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench fetch`` prints.

    Returns:
        MB/s over ``plain``, ``plain_library``, ``from_1`` and ``from_3``, each the median over the
        rounds; the median ``ratio`` of the last two to the first in the same round, and
        ``ratio_to_library`` to the second; ``ms_per_chunk``, what each step
        takes by itself, and this process's processor time; ``round_trip_ms``, of small messages
        on the connection to a holder, idle and during a fetch from it; and this process's memory
        at most, in MB.
    """
    with tempfile.TemporaryDirectory(prefix="p2pinfer-") as home:
        store = Store(Path(home) / "store")
        manifest = _fill(store, layer_bytes)
        steps = _time_steps(store, manifest.parts[-2])
        rates: dict[str, list[float]] = {}
        cpu_ms: dict[str, list[float]] = {}
        async with AsyncExitStack() as stack:
            holders = [
                await stack.enter_async_context(open_holder(store.root, manifest.id))
                for _ in range(max(HOLDERS))
            ]
            me = await stack.enter_async_context(open_libp2p(None, (), "bench"))
            other = await stack.enter_async_context(open_holder(store.root, manifest.id, "library"))
            it = await stack.enter_async_context(open_libp2p(None, (), "bench", muxer="library"))
            streams = {
                PLAIN: await me.open(holders[0].peer, PLAIN, holders[0].addresses),
                LIBRARY: await it.open(other.peer, PLAIN, other.addresses),
            }
            freeze_gc()
            for number in range(-1, rounds):  # the first one warms up, and is not counted
                for name, bring in _ways(me, streams, holders, manifest, Path(home)):
                    start, cpu_start = time.perf_counter(), time.process_time()
                    await bring()
                    if number >= 0:
                        rate = manifest.size / 1e6 / (time.perf_counter() - start)
                        cpu_s = time.process_time() - cpu_start
                        rates.setdefault(name, []).append(rate)
                        cpu_ms.setdefault(name, []).append(1e3 * cpu_s / _chunks(manifest))
                    shutil.rmtree(Path(home) / "new", ignore_errors=True)
            echo = await me.open(holders[0].peer, ECHO, holders[0].addresses)
            bring = dict(_ways(me, streams, holders, manifest, Path(home)))["from_1"]
            round_trips = await _round_trips(echo, bring)
    names = [f"from_{count}" for count in HOLDERS]
    return {
        "megabytes": round(manifest.size / 1e6),
        "rounds": rounds,
        "mb_per_s": {name: round(statistics.median(rates[name]), 1) for name in rates},
        "ratio": {name: _ratio(rates[name], rates[PLAIN]) for name in names},
        "ratio_to_library": {name: _ratio(rates[name], rates[LIBRARY]) for name in names},
        "ratios": {name: [_ratio([a], [b]) for a, b in _pairs(rates, name)] for name in names},
        "ms_per_chunk": steps
        | {f"cpu_{name}": round(statistics.median(cpu_ms[name]), 3) for name in cpu_ms},
        "round_trip_ms": round_trips,
        "memory_mb_max": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


async def _round_trips(echo: Channel, bring: Callable[[], Any]) -> dict[str, float]:
    """Exchange small messages with a holder, before and during a fetch."""
    busy: list[float] = []
    fetched = trio.Event()

    async def fetch() -> None:
        await bring()
        fetched.set()

    idle = [await _round_trip(echo) for _ in range(SMALL_TIMES)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch)
        while not fetched.is_set():
            busy.append(await _round_trip(echo))
    found = {}
    for name, seconds in (("idle", idle), ("during_fetch", busy)):
        found[f"{name}_p50"] = round(1e3 * statistics.median(seconds), 2)
        found[f"{name}_p99"] = round(1e3 * statistics.quantiles(seconds, n=100)[98], 2)
    return found


async def _round_trip(echo: Channel) -> float:
    start = time.perf_counter()
    await echo.send(bytes(SMALL_BYTES))
    await echo.receive()
    return time.perf_counter() - start


def _pairs(rates: dict[str, list[float]], name: str) -> list[tuple[float, float]]:
    return list(zip(rates[name], rates[PLAIN], strict=True))


def _ratio(rates: Sequence[float], plain: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(rates, plain, strict=True)), 3)


def _chunks(manifest: Manifest) -> int:
    return sum(len(part.chunks) for part in manifest.parts)


def _ways(
    me: Libp2pTransport,
    streams: dict[str, Channel],
    holders: list[HolderProcess],
    manifest: Manifest,
    home: Path,
) -> list[tuple[str, Callable[[], Any]]]:
    """Return the ways to bring the model here, with names."""

    def stream(channel: Channel) -> Callable[[], Any]:
        async def bring() -> None:
            await channel.send(b"all of it")
            for _ in range(_chunks(manifest)):
                await channel.receive()

        return bring

    def fetch(count: int) -> Callable[[], Any]:
        async def bring() -> None:
            store = Store(home / "new")
            names = [part.name for part in manifest.parts]
            await fetch_parts(me, lambda: holders[:count], store, manifest, names)

        return bring

    plain = [(name, stream(channel)) for name, channel in streams.items()]
    return [*plain, *((f"from_{count}", fetch(count)) for count in HOLDERS)]


def _fill(store: Store, layer_bytes: int) -> Manifest:
    """Make a model of noise and put it into a store."""
    parts = []
    for number, name in enumerate(part_names(LAYERS)):
        size = layer_bytes if name.startswith("layer") else CHUNK_BYTES // 4
        data = blake3(number.to_bytes(2, "big")).digest(
            length=size
        )  # noise, and the same each time
        chunks = [data[at : at + CHUNK_BYTES] for at in range(0, size, CHUNK_BYTES)]
        hashes = tuple(blake3(chunk).digest() for chunk in chunks)
        part = Part(name, size, hashes)
        for index, chunk in enumerate(chunks):
            store.write_chunk(part, index, chunk)
        store.finish(part)
        parts.append(part)
    tensors = (TensorRow("noise", 0, (1,)),)
    manifest = Manifest("noise", None, "noise", LAYERS, 1, 1, 1, tensors, tuple(parts))
    store.add_manifest(manifest.encode(), manifest.id)
    return manifest


def _time_steps(store: Store, part: Part) -> dict[str, float]:
    """Time what a chunk goes through, each step separately, in ms."""
    data = store.read_chunk(part, 0)
    message = encode(Chunk(0, data))
    with tempfile.TemporaryDirectory(prefix="p2pinfer-") as home:
        other = Store(Path(home))
        indices = iter(range(STEP_TIMES))
        steps: dict[str, Callable[[], object]] = {
            "hash": lambda: blake3(data).digest(),
            "read_and_hash": lambda: store.read_chunk(part, 0),
            "encode": lambda: encode(Chunk(0, data)),
            "decode": lambda: decode(message, Chunk),
            "hash_and_write": lambda: other.write_chunk(
                part, n := next(indices) % len(part.chunks), store.read_chunk(part, n)
            ),
        }
        found = {name: _median_ms(step) for name, step in steps.items()}
        start = time.perf_counter()
        other.finish(part)
        found["sync"] = round(1e3 * (time.perf_counter() - start) / len(part.chunks), 3)
    found["hash_and_write"] = round(found["hash_and_write"] - found["read_and_hash"], 3)
    return found


def _median_ms(step: Callable[[], object]) -> float:
    seconds = []
    for _ in range(STEP_TIMES):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(seconds), 3)


@asynccontextmanager
async def open_holder(
    root: Path, model: ModelId, muxer: Muxer = "own"
) -> AsyncGenerator[HolderProcess, None]:
    """Run a process that serves a store."""
    command = python_command("p2pinfer.bench.fetch", "serve", str(root), model, muxer)
    child = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=python_environment()
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        line = b""
        with trio.fail_after(CHILD_S_MAX):
            while not line.endswith(b"\n"):
                line += await child.stdout.receive_some(1)
        address = line.decode().strip()
        yield HolderProcess(PeerId(address.rpartition("/")[2]), (address,))
    finally:
        with trio.move_on_after(CHILD_S_MAX, shield=True):
            await child.stdin.aclose()
            await child.wait()  # its last output fits into the pipe
            await child.stdout.aclose()


async def _serve(root: str, model: str, muxer: Muxer) -> None:
    """Be a holder until standard input ends, then print how many chunks were requested from it."""
    store = Store(Path(root))
    manifest = store.manifest(ModelId(model))
    assert manifest, "the bench has filled it"

    async def stream(channel: Channel) -> None:
        parts = [(part, index) for part in manifest.parts for index in range(len(part.chunks))]
        chunks = [store.read_chunk(part, index) for part, index in parts]
        while True:
            await channel.receive()
            for chunk in chunks:
                await channel.send(chunk)

    async def repeat(channel: Channel) -> None:
        while True:
            await channel.send(await channel.receive())

    async with open_libp2p(None, HERE, "bench", muxer=muxer) as transport:
        transport.handle(ECHO, repeat)
        transport.handle(PLAIN, stream)
        server = PartsServer(transport, store)
        server.listen()
        freeze_gc()  # as every node does
        sys.stdout.write(transport.addresses[0] + "\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read)
        sys.stdout.write(f"{server.chunks}\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", served, of, ("own" | "library") as muxer]:
            trio.run(_serve, served, of, muxer)
        case _:
            sys.stdout.write(json.dumps(trio.run(fetch_bench), indent=2) + "\n")
