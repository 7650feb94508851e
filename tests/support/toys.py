"""A small model with random weights, its parts, and operations on them."""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from blake3 import blake3

from p2pinfer.core.manifest import CHUNK_BYTES, Manifest, Part
from p2pinfer.engine.gguf.ggml_types import F32, GGML_TYPES
from p2pinfer.engine.gguf.values import Array, Value, ValueType
from p2pinfer.engine.gguf.writer import Extent, NewTensor, write_gguf
from p2pinfer.engine.store.store import Store

Q8_0 = GGML_TYPES[8]
WIDTH, TOKENS, LAYERS = 64, 40, 4
LAYER_NAMES = tuple(f"blk.{n}.{what}.weight" for n in range(LAYERS) for what in ("norm", "up"))
NAMES = ("token_embd.weight", *LAYER_NAMES, "output_norm.weight", "output.weight")

Metadata = dict[str, Value | Array]


def quiet(what: str, done: int, total: int) -> None:
    """Show no progress."""


def toy_metadata(**changes: Value) -> Metadata:
    """Make up metadata, with the tokenizer's in the middle."""
    return {
        "general.architecture": Value.of(ValueType.STRING, "llama"),
        "general.name": Value.of(ValueType.STRING, "Toy"),
        "general.license": Value.of(ValueType.STRING, "apache-2.0"),
        "tokenizer.ggml.model": Value.of(ValueType.STRING, "llama"),
        "tokenizer.ggml.tokens": Array.of(ValueType.STRING, ["x"] * TOKENS),
        "llama.block_count": Value.of(ValueType.UINT32, LAYERS),
        "llama.context_length": Value.of(ValueType.UINT32, 128),
        "llama.embedding_length": Value.of(ValueType.UINT32, WIDTH),
        "llama.attention.head_count": Value.of(ValueType.UINT32, 4),
        **{key.replace("__", "."): value for key, value in changes.items()},
    }


def toy_tensors(source: Path | None, names: Sequence[str], rows: int) -> list[NewTensor]:
    """Make up tensors whose bytes come from consecutive places of ``source``."""
    shapes: dict[str, tuple[int, ...]] = {"up": (WIDTH, rows), "norm": (WIDTH,)}
    shapes |= dict.fromkeys(("token_embd", "output"), (WIDTH, TOKENS)) | {"output_norm": (WIDTH,)}
    tensors = []
    at = 0
    for name in names:
        shape = shapes[name.split(".")[-2]]
        new = NewTensor(name, shape, F32 if len(shape) == 1 else Q8_0, None)
        extent = Extent(source, at, new.nbytes) if source else None
        tensors.append(NewTensor(new.name, new.shape, new.type, extent))
        at += new.nbytes
    return tensors


def write_toy(path: Path, names: Sequence[str] = NAMES, rows: int = 100, **changes: Value) -> Path:
    """Write a model with random weights; equal arguments give equal files."""
    path.parent.mkdir(exist_ok=True)
    size = sum(tensor.nbytes for tensor in toy_tensors(None, names, rows))
    weights = path.with_suffix(".weights")
    weights.write_bytes(random.Random(0).randbytes(size))
    write_gguf(path, toy_metadata(**changes), toy_tensors(weights, names, rows))
    weights.unlink()
    return path


def copy_parts(source: Store, target: Store, manifest: Manifest, names: Iterable[str]) -> None:
    """Copy the named parts of a model from one store to another, as a fetcher does."""
    target.add_manifest(manifest.encode(), manifest.id)
    for name in names:
        part = manifest.part(name)
        for index in range(len(part.chunks)):
            target.write_chunk(part, index, source.read_chunk(part, index))
        target.finish(part)


def rewrite(part: Part, data: bytes) -> Part:
    """Return a part of the same name with other bytes."""
    blocks = [data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES)]
    chunks = tuple(blake3(block).digest() for block in blocks)
    return Part(part.name, len(data), chunks)


def put(store: Store, part: Part, data: bytes) -> None:
    """Store a whole part from its bytes."""
    for index in range(len(part.chunks)):
        store.write_chunk(part, index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
    store.finish(part)
