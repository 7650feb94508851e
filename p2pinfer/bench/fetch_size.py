"""The cost of fetching a large model: time and memory, by size.

The model is synthetic: most of its bytes are zeros, which take no room at the holder, and some
chunks are noise. The fetcher, a separate process, writes all of it, so that much disk room is
needed for a while. ``python -m p2pinfer.bench.fetch_size GIGABYTES…`` prints JSON.
"""

import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import trio
from blake3 import blake3

from p2pinfer.bench.fetch import HolderProcess, open_holder
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.manifest import CHUNK_BYTES, Manifest, Part, TensorRow, part_names
from p2pinfer.core.python_process import python_command, python_environment
from p2pinfer.engine.store.store import Store
from peers.parts.describe import fetch_manifest
from peers.parts.fetch import fetch_parts
from transports.libp2p.transport import open_libp2p

LAYERS: Final = 8
NOISE_EVERY = 64
"""One chunk in this many is noise; the others are holes in their file."""

FETCH_S_MAX = 3600.0


async def size_bench(gigabytes: Sequence[float]) -> dict[str, Any]:
    """Fetch a model of each size, and return the seconds, the rate, and the fetcher's memory."""
    sizes = []
    for size in gigabytes:
        with tempfile.TemporaryDirectory(prefix="p2pinfer-") as home:
            store = Store(Path(home) / "store")
            manifest = fill_with_holes(store, int(size * 1e9))
            async with open_holder(store.root, manifest.id) as holder:
                found = await _fetch_elsewhere(Path(home) / "new", manifest.id, holder)
            shutil.rmtree(Path(home) / "new")
        found |= {"gigabytes": size, "seconds_per_gigabyte": round(found["seconds"] / size, 2)}
        sizes.append(found)
    return {"sizes": sizes, "memory_mb_max": max(found["memory_mb"] for found in sizes)}


def fill_with_holes(store: Store, size: int) -> Manifest:
    """Put a model of about ``size`` bytes into a store, most of them zeros that take no room."""
    chance = random.Random(size)  # noqa: S311 -- noise, and the same each time
    empty = blake3(bytes(CHUNK_BYTES)).digest()
    parts = []
    for name in part_names(LAYERS):
        count = max(1, size // LAYERS // CHUNK_BYTES) if name.startswith("layer") else 1
        noise = {i: chance.randbytes(CHUNK_BYTES) for i in range(0, count, NOISE_EVERY)}
        hashes = [blake3(noise[i]).digest() if i in noise else empty for i in range(count)]
        part = Part(name, count * CHUNK_BYTES, tuple(hashes))
        with store.path(part).open("wb") as file:
            for index, data in noise.items():
                file.seek(index * CHUNK_BYTES)
                file.write(data)
            file.truncate(part.size)
        parts.append(part)
    tensors = (TensorRow("noise", 0, (1,)),)
    manifest = Manifest("noise", None, "noise", LAYERS, 1, 1, 1, tensors, tuple(parts))
    return store.add_manifest(manifest.encode(), manifest.id)


async def _fetch_elsewhere(root: Path, model: ModelId, holder: HolderProcess) -> dict[str, Any]:
    """Fetch in a separate process, whose memory is this transfer's."""
    command = python_command("p2pinfer.bench.fetch_size", "fetch", str(root), model)
    with trio.fail_after(FETCH_S_MAX):
        command += holder.addresses
        done = await trio.run_process(command, capture_stdout=True, env=python_environment())
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def _fetch(root: str, model: str, address: str) -> None:
    """Run the fetcher."""
    store = Store(Path(root))
    holder = HolderProcess(PeerId(address.rpartition("/")[2]), (address,))
    async with open_libp2p(None, (), "bench") as transport:
        start = time.perf_counter()
        manifest = await fetch_manifest(transport, lambda: [holder], store, ModelId(model))
        names = [part.name for part in manifest.parts]
        await fetch_parts(transport, lambda: [holder], store, manifest, names)
        seconds = time.perf_counter() - start
    found = {
        "seconds": round(seconds, 2),
        "mb_per_s": round(manifest.size / 1e6 / seconds, 1),
        "memory_mb": round(_memory_bytes_max() / 2**20),
    }
    sys.stdout.write(json.dumps(found) + "\n")


def _memory_bytes_max() -> int:
    """Return this process's peak memory so far."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: in bytes
    # Linux also counts the parent process's peak into ru_maxrss.
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["fetch", target, of, where]:
            trio.run(_fetch, target, of, where)
        case sizes:
            found = trio.run(size_bench, [float(size) for size in sizes])
            sys.stdout.write(json.dumps(found, indent=2) + "\n")
