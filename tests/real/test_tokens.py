"""The swarm gives, token by token, the answers of llama.cpp alone with the whole file."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from p2pinfer.core.sampling import Sampling
from p2pinfer.node.requester import ClientOptions
from tests.support.processes import Peer, client_options, open_client, start_peers
from tests.support.references import ANSWER_TOKENS, Reference

pytestmark = pytest.mark.real

ANSWERS_S_MAX = 120.0


async def answers(
    options: ClientOptions, prompts: Sequence[list[int]], count: int
) -> list[list[int]]:
    """Ask each prompt in its own session, one after the other."""
    found = []
    with trio.fail_after(ANSWERS_S_MAX):
        async with open_client(options) as client:
            route = await client.find_route(lambda _: None)
            for prompt in prompts:
                async with client.open_session(route) as session:
                    tokens = session.generate(prompt, Sampling(), count)
                    found.append([token.id async for token in tokens])
    return found


async def test_three_peers_match_llama_cpp(
    default_model: Path, swarm: list[Peer], references: list[Reference]
) -> None:
    """Ten prompts from one token to more than 1,000."""
    prompts = [prompt for prompt, _ in references[0]]
    assert len({len(prompt) for prompt in prompts}) == 10
    assert max(len(prompt) for prompt in prompts) > 1000
    expected = [[tokens for _, tokens in each] for each in references]
    found = await answers(client_options(default_model, swarm[0]), prompts, ANSWER_TOKENS)
    assert found in expected


@pytest.mark.parametrize("peers", [1, 2, 5])
async def test_other_numbers_of_peers_match_too(
    default_model: Path, home: Path, references: list[Reference], peers: int
) -> None:
    """A short prompt, one slightly longer than a chunk, and one of more than 512 tokens."""
    bounds = [1 + 28 * i // peers for i in range(peers + 1)]
    some = [[each[2], each[6], each[9]] for each in references]
    running = await trio.to_thread.run_sync(
        start_peers, home, [f"{first}:{end}" for first, end in pairwise(bounds)]
    )
    try:
        options = client_options(default_model, running[-1])
        found = await answers(options, [prompt for prompt, _ in some[0]], ANSWER_TOKENS)
    finally:
        for peer in running:
            await trio.to_thread.run_sync(peer.stop)
    assert found in [[tokens for _, tokens in each] for each in some]
