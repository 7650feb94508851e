"""A model of a tebibyte: described, served from where it is, and fetched layer by layer."""

import subprocess
import sys
from pathlib import Path

import pytest

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
# On Linux ru_maxrss begins with what the parent held when it started this process.
status = Path("/proc/self/status")
if status.exists():
    (peak,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    print(int(peak.split()[1]) >> 10)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20)  # bytes on macOS
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
