"""Parts served from the model's own file: the same bytes, nothing copied, changes noticed."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from p2pinfer.core.errors import BadModelFile
from p2pinfer.core.manifest import Manifest
from p2pinfer.engine.store.assemble import open_parts
from p2pinfer.engine.store.damage import DamagedPart, MissingChunk
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from tests.support.sharded import write_shards
from tests.support.stored import flip
from tests.support.toys import quiet, write_toy


def read_all(store: Store, manifest: Manifest) -> list[bytes]:
    """Read every chunk of a model."""
    parts = manifest.parts
    return [store.read_chunk(part, index) for part in parts for index in range(part.chunk_count)]


def test_nothing_large_is_copied(tmp_path: Path) -> None:
    """The chunks and slices are those of a copy, in any process, until the model is removed."""
    whole = write_toy(tmp_path / "m.gguf", rows=20_000)
    shards = write_shards(whole, tmp_path / "shards", 5)
    copying, store = Store(tmp_path / "copying"), Store(tmp_path / "store")
    manifest = add_model(copying, whole, quiet)
    assert add_model(store, shards[1], quiet, in_place=True) == manifest
    assert store.used_bytes() < manifest.size // 20
    store = Store(tmp_path / "store")
    assert all(store.held(part) for part in manifest.parts)
    assert read_all(store, manifest) == read_all(copying, manifest)
    for each in manifest.parts:
        store.verify(each)
    copied = open_parts(copying, manifest, tmp_path / "a")
    linked = open_parts(store, manifest, tmp_path / "b")
    assert linked.stage(1, 3).read_bytes() == copied.stage(1, 3).read_bytes()
    assert store.sources(manifest.parts) == [each.resolve() for each in shards[1:]]
    store.remove(manifest.id)
    assert (store.used_bytes(), whole.exists()) == (0, True)


def test_a_file_that_changed_is_noticed(tmp_path: Path) -> None:
    """By its time at once; and by its hash where size and time are forged."""
    path = write_toy(tmp_path / "m.gguf")
    store = Store(tmp_path / "store")
    manifest = add_model(store, path, quiet, in_place=True)
    before = path.stat()
    output = manifest.part("output")
    flip(path, before.st_size - 40)
    assert not store.held(output)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.held(output)
    with pytest.raises(DamagedPart):
        store.read_chunk(output, 0)
    assert not store.held(output)
    assert store.held(manifest.part("layer.0"))
    path.unlink()
    assert store.chunks_held(manifest.part("layer.0")) == set()
    with pytest.raises(DamagedPart):
        store.verify(manifest.part("layer.0"))
    with pytest.raises(MissingChunk):
        store.verify(manifest.part("layer.0"))


def test_a_sha256_is_compared_as_the_file_is_read(tmp_path: Path) -> None:
    """A wrong one leaves nothing behind; a right one changes nothing."""
    path = write_toy(tmp_path / "m.gguf")
    store = Store(tmp_path / "store")
    with pytest.raises(BadModelFile, match="another SHA-256"):
        add_model(store, path, quiet, check={path: "0" * 64})
    assert store.models() == []
    right = sha256(path.read_bytes()).hexdigest()
    checked = add_model(store, path, quiet, check={path: right})
    assert checked == add_model(Store(tmp_path / "other"), path, quiet)


TEBIBYTE = """
import resource, sys
from pathlib import Path
from random import Random
from types import SimpleNamespace
import trio
from p2pinfer.engine.gguf.ggml_types import GGML_TYPES
from p2pinfer.engine.gguf.values import Array, Value, ValueType as T
from p2pinfer.engine.gguf.writer import NewTensor, encode_header
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from peers.parts.describe import fetch_manifest
from peers.parts.fetch import fetch_parts
from peers.parts.server import PartsServer
from transports.memory.network import MemoryNetwork
from tests.support.parts_swarm import Where
from tests.support.swarm import peer

root, width, layers, q8 = Path(sys.argv[1]), 7168, 61, GGML_TYPES[8]
numbers = {"block_count": layers, "embedding_length": width, "context_length": 4096,
    "leading_dense_block_count": 3, "attention.head_count": 64, "attention.q_lora_rank": 1536,
    "attention.kv_lora_rank": 512, "expert_count": 384, "expert_used_count": 8,
    "expert_gating_func": 2}
metadata = {"general.architecture": Value.of(T.STRING, "deepseek2")}
metadata |= {f"deepseek2.{key}": Value.of(T.UINT32, n) for key, n in numbers.items()}
metadata["tokenizer.ggml.model"] = Value.of(T.STRING, "gpt2")
shapes = {"token_embd.weight": (width, 163840), "output_norm.weight": (width,),
    "output.weight": (width, 163840)}
for layer in range(layers):
    shapes[f"blk.{layer}.attn_q_a.weight"] = (width, 1536)
    shapes[f"blk.{layer}.attn_output.weight"] = (8192, width)
    if layer < 3:
        shapes[f"blk.{layer}.ffn_up.weight"] = (width, 2048)
    else:
        for name in ("gate", "up", "down"):
            shapes[f"blk.{layer}.ffn_{name}_exps.weight"] = (width, 2048, 384 * 17 // 16)
tensors = [NewTensor(name, shape, q8, None) for name, shape in shapes.items()]
head = encode_header(metadata, tensors)
path = root / "sparse.gguf"
path.write_bytes(head)
with path.open("r+b") as file:
    file.truncate(len(head) + sum(tensor.nbytes for tensor in tensors))
assert path.stat().st_size >= 1 << 40, path.stat().st_size
store = Store(root / "store")
manifest = add_model(store, path, lambda *_: None, in_place=True)
assert manifest.is_long and manifest.size >= 1 << 40

async def main():
    network, fresh = MemoryNetwork(lambda _, __: 0.0), Store(root / "fresh")
    async with network.join(peer("holder")) as other, network.join(peer("me")) as me:
        PartsServer(other, store).listen()
        holders = lambda: [Where(other.peer_id)]
        found = await fetch_manifest(me, holders, fresh, manifest.id)
        await fetch_parts(me, holders, fresh, found, ["layer.1"])
        assert [p.name for p in found.parts if fresh.held(p)] == ["layer.1"]
        assert fresh.used_bytes() < 100 << 20

trio.run(main)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def test_a_sparse_file_of_a_tebibyte(tmp_path: Path) -> None:
    """Its manifest is made, and a peer fetches one layer, within 512 MiB of memory.

    Holes are not read: only so does this take seconds.
    """
    try:
        with (tmp_path / "probe").open("wb") as file:
            file.truncate(5 << 38)
    except OSError as error:
        pytest.skip(f"files of a tebibyte cannot be made here: {error.strerror}")
    words = [sys.executable, "-c", TEBIBYTE, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 512
