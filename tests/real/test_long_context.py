"""A prompt far longer than usual sessions, through peers and a requester told no context."""

import tempfile
from contextlib import aclosing, closing
from pathlib import Path

import numpy as np
import pytest
import trio

from p2pinfer.core.limits import BLOCK_ROWS, CONTEXT_DEFAULT, LONG_CONTEXT_DEFAULT
from p2pinfer.core.regimes import Regime, split
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.llama.binding import Settings, Slice, Span
from p2pinfer.node.local_swarm import local_swarm, share_layers
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import ClientOptions, Machine, open_client
from tests.support.model_factory import Recipe, write_model
from tests.support.tiny_models import quantise

pytestmark = [pytest.mark.real, pytest.mark.long]

PROMPT_TOKENS = 20_000
ANSWER_TOKENS = 8
ALL_S_MAX = 1200.0


def said_alone(model: Path, settings: Settings) -> tuple[list[int], list[int]]:
    """Return a long prompt, and what llama.cpp alone says to it, in the swarm's chunks."""
    whole = Slice(model, logits=True, settings=settings, sessions=1, context=LONG_CONTEXT_DEFAULT)
    with closing(whole):
        tokens = np.random.default_rng(5).integers(3, whole.vocabulary, PROMPT_TOKENS)
        prompt = tokens.astype(np.int32)
        for at, end, regime in split(0, PROMPT_TOKENS, blocks=True):
            pad = BLOCK_ROWS if regime is Regime.BLOCK else 0
            (logits,) = whole.decode([Span(0, at, prompt[at:end])], pad_to=pad)
        found: list[int] = []
        while True:
            found.append(int(logits.argmax()))
            if len(found) == ANSWER_TOKENS:
                return prompt.tolist(), found
            position = PROMPT_TOKENS + len(found) - 1
            (logits,) = whole.decode([Span(0, position, np.array(found[-1:], np.int32))])


async def test_an_agents_prompt_needs_no_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model was trained for 32,768 positions, and the memory is there."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / "home"))
    full, path = tmp_path / "full.gguf", tmp_path / "model.gguf"
    write_model(Recipe("seed_oss", 5, {"context_length": LONG_CONTEXT_DEFAULT}), full)
    quantise(full, path, "Q8_0")
    ways = [said_alone(path, Settings(flash_attention=flash)) for flash in (True, False)]
    prompt, _ = ways[0]
    store = open_store()
    model = open_whole(name_model(str(path), store, lambda *_: None), store)
    machine = Machine(2, CONTEXT_DEFAULT, 1, LONG_CONTEXT_DEFAULT)
    ranges = share_layers(model, 3, 1, machine)
    with trio.fail_after(ALL_S_MAX), tempfile.TemporaryDirectory(prefix="p2pinfer-"):
        async with local_swarm(model, ranges, machine=machine) as running:
            ways_in = tuple(peer.addresses[0] for peer in running)
            options = ClientOptions(model.id, ways_in, "local", machine=machine)
            async with open_client(options, store, lambda _: None) as client:
                route = await client.find_route(lambda _: None, len(prompt) + ANSWER_TOKENS)
                assert client.context_max() == LONG_CONTEXT_DEFAULT
                async with (
                    client.open_session(route, positions=len(prompt)) as session,
                    aclosing(
                        session.generate(prompt, Sampling(temperature=0.0), ANSWER_TOKENS)
                    ) as tokens,
                ):
                    assert session.context == LONG_CONTEXT_DEFAULT
                    assert (prompt, [token.id async for token in tokens]) in ways
