"""A model with an adapter in a real swarm: the tokens of llama.cpp alone with that adapter."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pinfer.core.manifest import Manifest
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.gguf.model_header import split_layer
from p2pinfer.engine.gguf.reader import Tensor
from p2pinfer.engine.store.adapters import add_adapter
from p2pinfer.engine.store.split import add_model
from p2pinfer.node.model_supply import open_store
from tests.support.adapters import is_matrix_of_a_layer, write_adapter
from tests.support.processes import Peer, client_options, open_client, start_peers
from tests.support.references import Reference
from tests.support.tiny_models import TINY, quantise, write_tiny
from tests.support.toys import quiet

pytestmark = pytest.mark.real

PROMPT_TOKENS, ANSWER_TOKENS = (2, 40, 100), 24
ANSWERS_S_MAX = 120.0

# llama_cpp.Llama makes its context before it loads an adapter, and the first decode then crashes.
_REFERENCE = """
import ctypes, json, sys
import numpy as np
from llama_cpp import llama_cpp as api
path, adapter, lengths, count, is_flash = json.loads(sys.argv[1])
model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
lora = api.llama_adapter_lora_init(model, adapter.encode())
params = api.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch = 512, 64, 64
params.n_threads = params.n_threads_batch = 1
params.flash_attn_type = int(is_flash)
context = api.llama_init_from_model(model, params)
assert not api.llama_set_adapters_lora(
    context, (api.llama_adapter_lora_p_ctypes * 1)(lora), 1, (ctypes.c_float * 1)(1.0))
vocab = api.llama_model_get_vocab(model)
text = b"Why do the leaves of trees turn red in autumn, and what has the sun to do with it? " * 9
space = (ctypes.c_int32 * 999)()
tokens = space[:api.llama_tokenize(vocab, text, len(text), space, 999, False, False)]
answers = []
for length in lengths:
    api.llama_memory_clear(api.llama_get_memory(context), True)
    prompt, said = tokens[:length], []
    left = prompt
    while len(said) < count:
        chunk, left = left[:64], left[64:]
        held = (ctypes.c_int32 * len(chunk))(*chunk)
        batch = api.llama_batch_get_one(held, len(chunk))
        assert not api.llama_decode(context, batch)
        if not left:
            logits = api.llama_get_logits_ith(context, -1)
            row = np.ctypeslib.as_array(logits, (api.llama_vocab_n_tokens(vocab),))
            said.append(int(row.argmax()))
            left = [said[-1]]
            if api.llama_vocab_is_eog(vocab, said[-1]):
                break
    answers.append([prompt, said])
print(json.dumps(answers))
"""


def with_adapter(model: Path, path: Path, changes: Callable[[Tensor], bool]) -> Manifest:
    """Write an adapter, and add it and its model to the store of this folder's tests."""
    write_adapter(model, path, changes, strength=0.2)
    store = open_store()
    return add_adapter(store, path, add_model(store, model, quiet), path.stem)


def alone(model: Path, adapter: Path, *, is_flash: bool) -> Reference:
    """Return prompts, and what llama.cpp alone says to them."""
    question = json.dumps([str(model), str(adapter), PROMPT_TOKENS, ANSWER_TOKENS, is_flash])
    result = subprocess.run(
        [sys.executable, "-c", _REFERENCE, question], capture_output=True, check=True
    )
    return [(prompt, said) for prompt, said in json.loads(result.stdout)]


async def check_answers(
    peers: Sequence[Peer], model: Path, child: Manifest, adapter: Path, keep: int
) -> None:
    """Ask through the swarm, and audit every stage of each answer."""
    options = replace(
        client_options(model, *peers), model=child.id, keep=keep, audit_rate=1.0, proof_rate=1.0
    )
    ways = [alone(model, adapter, is_flash=is_flash) for is_flash in (True, False)]
    found = []
    with trio.fail_after(ANSWERS_S_MAX):
        async with open_client(options) as client:
            assert client.model.info.name == child.name
            for prompt, said in ways[0]:
                route = await client.find_route(lambda _: None)
                async with client.open_session(route) as session:
                    tokens = session.generate(prompt, Sampling(temperature=0), len(said))
                    found.append((prompt, [token.id async for token in tokens]))
                    trust = await client.examine(session)
                assert trust
                assert trust.held
                assert len(trust.audits) >= len(peers)
    assert found in ways  # as this machine computes attention


async def serve_and_check(
    home: Path,
    ranges: Sequence[str],
    served: str,
    model: Path,
    child: Manifest,
    adapter: Path,
) -> None:
    """Start peers of a model, and check what a client of the child gets."""
    start = lambda: start_peers(home, ranges, "--model", served)  # noqa: E731
    peers = await trio.to_thread.run_sync(start)
    try:
        await check_answers(peers, model, child, adapter, keep=1)
    finally:
        for peer in peers:
            await trio.to_thread.run_sync(peer.stop)


async def test_three_peers_serve_a_model_with_an_adapter(home: Path, tmp_path: Path) -> None:
    """Its adapter changes every layer; probes, receipts and audits are those of any model."""
    write_tiny(TINY["llama"], tmp_path / "full.gguf")
    tiny, adapter = tmp_path / "tiny.gguf", tmp_path / "adapter.gguf"
    quantise(tmp_path / "full.gguf", tiny, "Q4_1")
    child = with_adapter(tiny, adapter, is_matrix_of_a_layer)
    await serve_and_check(home, ["1:3", "3:5", "5:6"], child.id, tiny, child, adapter)


@pytest.mark.long
async def test_three_peers_serve_the_default_model_with_an_adapter(
    default_model: Path, home: Path, tmp_path: Path
) -> None:
    """As above, with real weights."""
    adapter = tmp_path / "everywhere.gguf"
    child = with_adapter(default_model, adapter, is_matrix_of_a_layer)
    ranges = ["1:10", "10:19", "19:29"]
    await serve_and_check(home, ranges, child.id, default_model, child, adapter)


def _in_the_last_two(tensor: Tensor) -> bool:
    place = split_layer(tensor.name)
    return is_matrix_of_a_layer(tensor) and place is not None and place[0] >= 28


@pytest.mark.long
async def test_peers_of_the_base_serve_an_adapter_of_the_last_layers(
    default_model: Path, home: Path, tmp_path: Path
) -> None:
    """As they do for others; the requester alone has it, and keeps as many layers as it needs."""
    adapter = tmp_path / "at-home.gguf"
    child = with_adapter(default_model, adapter, _in_the_last_two)
    assert child.base
    await serve_and_check(home, ["1:15", "15:29"], child.base.id, default_model, child, adapter)
