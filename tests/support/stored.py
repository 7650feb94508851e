"""Made-up parts for the store's tests, and operations on them."""

import random
from pathlib import Path

from blake3 import blake3

from p2pinfer.core.manifest import CHUNK_BYTES, Manifest, Part, TensorRow, part_names
from p2pinfer.engine.store.store import Store


def part_of(data: bytes, name: str = "layer.0") -> Part:
    """Describe a part of these bytes."""
    blocks = [data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES)]
    chunks = tuple(blake3(block).digest() for block in blocks)
    return Part(name, len(data), chunks)


def model_of(name: str, blobs: dict[str, bytes]) -> Manifest:
    """Describe a model of one layer; parts that are not given contain their names."""
    parts = [part_of(blobs.get(part, part.encode()), part) for part in part_names(1)]
    rows = (TensorRow("x", 0, (1,)),)
    return Manifest(name, None, "llama", 1, 64, 40, 128, rows, tuple(parts))


DATA = random.Random(1).randbytes(3 * CHUNK_BYTES + 7)
PART = part_of(DATA)


def chunk(index: int, data: bytes = DATA) -> bytes:
    """Cut a chunk out of a part's bytes."""
    return data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


def put(store: Store, part: Part = PART, data: bytes = DATA) -> None:
    """Keep a whole part."""
    for index in range(len(part.chunks)):
        store.write_chunk(part, index, chunk(index, data))
    store.finish(part)


def flip(path: Path, at: int) -> None:
    """Flip a bit on disk."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def files(store: Store) -> list[str]:
    """Name every file with anything in it."""
    found = (p for p in store.root.rglob("*") if p.is_file() and p.stat().st_size)
    return sorted(str(path.relative_to(store.root)) for path in found)
