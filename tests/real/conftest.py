"""Swarms of real peers that tests share, and the answers of llama.cpp alone."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Peer, start_peers

PROMPT_TOKENS = (1, 2, 7, 8, 40, 48, 65, 100, 230, 1152)
"""Lengths of the prompts: around the limits of regimes and chunks, and past 512 cells. None needs a
padded block, which llama.cpp alone would not run."""

ANSWER_TOKENS = 24

NAME = b"Smollm2 135M 8k Lc100K Mix1 Ep2"

_REFERENCE = """
import json, sys
from itertools import islice
from llama_cpp import Llama
path, lengths, count = json.loads(sys.argv[1])
llama = Llama(path, n_ctx=1280, n_batch=64, n_ubatch=64, n_threads=1, n_threads_batch=1,
              flash_attn=True, verbose=False)  # as in llama.cpp by default, and in slices
text = ("Why do the leaves of trees turn red in autumn, and what has the sun to do with it? "
        "A forest is not one being; it is many, which share light, water and room. " * 40)
tokens = llama.tokenize(text.encode(), add_bos=False)
answers = []
for number, length in enumerate(lengths):
    prompt = tokens[number:number + length]
    llama.reset()
    llama._ctx.kv_cache_clear()
    answers.append([prompt, list(islice(llama.generate(prompt, temp=0, repeat_penalty=1), count))])
print(json.dumps(answers))
"""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide the home directory of all processes of this folder's tests."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PINFER_HOME", str(home))


@pytest.fixture(scope="session")
def reference(default_model: Path) -> list[tuple[list[int], list[int]]]:
    """Provide ten prompts, and the greedy tokens of ``llama_cpp.Llama`` in our regimes."""
    question = json.dumps([str(default_model), PROMPT_TOKENS, ANSWER_TOKENS])
    result = subprocess.run(
        [sys.executable, "-c", _REFERENCE, question], capture_output=True, check=True
    )
    return [(prompt, tokens) for prompt, tokens in json.loads(result.stdout)]


@pytest.fixture(scope="module")
def swarm(home: Path) -> Iterator[list[Peer]]:
    """Provide three peers that share the default model's layers; tests leave them unchanged.

    Each file has its own, since views would still hold peers that other files killed and started.
    """
    peers = start_peers(home, ["1:10", "10:19", "19:29"])
    yield peers
    for peer in peers:
        peer.stop()


@pytest.fixture(scope="session")
def other_model(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide the default model with another name: one byte makes it another model."""
    path = tmp_path_factory.mktemp("models") / "other.gguf"
    data = default_model.read_bytes()
    assert data.count(NAME) == 1
    path.write_bytes(data.replace(NAME, NAME.replace(b"135M", b"136M")))
    return path
