"""How likely the model finds a prompt's tokens, told through three peers: what evaluations ask."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax

from p2pinfer.core.limits import BLOCK_ROWS
from p2pinfer.core.regimes import Regime, split
from p2pinfer.engine.llama.binding import Settings, Slice, Span, Vocabulary
from tests.support.gateways import RunningGateway, running_gateway

pytestmark = pytest.mark.real

TEXT = "The capital of France is Paris. " * 3 + "Wärme — 温かい. " + "One, two, three, four. " * 12
"""More than one block, with a rest, and characters of several tokens."""


@pytest.fixture(scope="module")
def gateway(home: Path) -> Iterator[RunningGateway]:
    """Provide a gateway with three peers of its own."""
    with running_gateway(home, "--local", "3", "--context", "1024") as running:
        yield running


@pytest.fixture(scope="module")
def wholes(default_model: Path) -> Iterator[list[Slice]]:
    """Load the whole model, for llama.cpp alone, with flash attention and without."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                closing(
                    Slice(default_model, logits=True, settings=each, sessions=1, context=1024),
                )
            )
            for each in (Settings(), Settings(flash_attention=False))
        ]


def scores_alone(whole: Slice, tokens: list[int], *, blocks: bool) -> NDArray[np.float64]:
    """Return the log-probabilities behind each token, of llama.cpp alone with a prompt's decodes.

    These say how many rows run together, on which their last bits depend.
    """
    rows = []
    for at, end, regime in split(0, len(tokens), blocks=blocks):
        span = Span(0, at, np.array(tokens[at:end], np.int32), every=True)
        (found,) = whole.decode([span], pad_to=BLOCK_ROWS if regime is Regime.BLOCK else 0)
        rows.append(found.astype(np.float64))
    return np.asarray(log_softmax(np.concatenate(rows), axis=-1))


def asked(gateway: RunningGateway, **more: Any) -> dict[str, Any]:
    """Ask as evaluation programs do."""
    body = {"model": "default", "echo": True, "max_tokens": 1, "logprobs": 1, "temperature": 0}
    reply = httpx.post(f"{gateway.url}/v1/completions", json={**body, **more}, timeout=120)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def test_scores_of_a_prompt_are_llama_cpps(gateway: RunningGateway, wholes: list[Slice]) -> None:
    """For each token, and the likeliest in its place; as text and as tokens, read or read again."""
    tokens = Vocabulary(wholes[0].vocab).tokenize(TEXT, special=False)
    assert len(tokens) > 2 * BLOCK_ROWS
    for prompt in (TEXT, tokens, tokens[:100]):
        (choice,) = asked(gateway, prompt=prompt)["choices"]
        told, count = choice["logprobs"], len(choice["logprobs"]["tokens"]) - 1
        assert count == (100 if len(prompt) == 100 else len(tokens))
        assert TEXT.startswith(choice["text"][:200])
        assert count == 100 or choice["text"].startswith(TEXT)
        assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
        found = [
            (told["token_logprobs"][at], max(told["top_logprobs"][at].values()))
            for at in range(1, count)
        ]
        ways = []
        for whole, blocks in product(wholes, (True, False)):  # as this machine computes them
            alone = scores_alone(whole, tokens[:count], blocks=blocks)
            ways.append(
                [(alone[at, token], alone[at].max()) for at, token in enumerate(tokens[1:count])]
            )
        assert any(np.allclose(found, wanted, rtol=0, atol=1e-9) for wanted in ways)
        at = told["text_offset"]
        assert at == sorted(at)
        assert all(
            choice["text"].startswith(token, start)
            for token, start in zip(told["tokens"], at, strict=True)
            if not token.startswith("bytes:")
        )


def test_prompt_is_scored_without_an_answer(gateway: RunningGateway) -> None:
    """Of several prompts each; the next answer is what it was before.

    No other test's prompt begins alike: of a session that it left, part would be taken over or not
    by how soon it was free, and rows that were read in other turns may have other last bits.
    """
    prompt = f"To count: {TEXT}"
    usual = {"echo": False, "logprobs": None, "max_tokens": 8, "prompt": prompt}
    before = asked(gateway, **usual)["choices"][0]["text"]
    reply = asked(gateway, prompt=["Paris is", prompt], max_tokens=0)
    for choice, text in zip(reply["choices"], ("Paris is", prompt), strict=True):
        assert choice["text"] == text
        assert choice["finish_reason"] == "length"
        told = choice["logprobs"]
        assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["text_offset"])
        assert all(isinstance(each, float) and each <= 0 for each in told["token_logprobs"][1:])
    assert reply["usage"]["completion_tokens"] == 0
    assert asked(gateway, **usual)["choices"][0]["text"] == before
