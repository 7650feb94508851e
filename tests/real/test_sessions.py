"""Several sessions at once, a conversation's turns, and the reuse of a session's cells."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from p2pinfer.client.answer import ChatOptions
from p2pinfer.client.conversation import open_conversation
from p2pinfer.core.messages import Refusal
from p2pinfer.core.sampling import Sampling
from peers.steps.messaging import RefusedError
from tests.support.processes import SESSIONS, Peer, client_options, open_client
from tests.support.references import ANSWER_TOKENS, Reference

pytestmark = pytest.mark.real

ANSWERS_S_MAX = 120.0


@pytest.mark.parametrize("count", [4, 8])
async def test_concurrent_sessions_get_the_same_as_alone(
    default_model: Path, swarm: list[Peer], references: list[Reference], count: int
) -> None:
    """Prompts of all lengths, with prefills and decodes interleaved."""
    chosen = [each[-count:] for each in references]
    found: dict[int, list[int]] = {}
    with trio.fail_after(ANSWERS_S_MAX):
        async with open_client(client_options(default_model, swarm[1])) as client:
            route = await client.find_route(lambda _: None)

            async def one(number: int) -> None:
                prompt, _ = chosen[0][number]
                async with client.open_session(route) as session:
                    tokens = session.generate(prompt, Sampling(), ANSWER_TOKENS)
                    found[number] = [token.id async for token in tokens]

            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(one, number)
    answers = [found[number] for number in range(count)]
    assert answers in [[tokens for _, tokens in each] for each in chosen]


async def test_next_turn_runs_only_new_positions(default_model: Path, swarm: list[Peer]) -> None:
    """A second question keeps the first one's cells; asked again, it gets the same answer."""
    options = ChatOptions(Sampling(), max_tokens=12)
    with trio.fail_after(ANSWERS_S_MAX):
        async with (
            open_client(client_options(default_model, swarm[2])) as client,
            open_conversation(client, options, lambda _: None) as talk,
        ):
            first = await talk.ask("Name a tree.", lambda _: None)
            before = list(talk.messages)
            second = await talk.ask("Name another.", lambda _: None)
            talk.messages = before
            again = await talk.ask("Name another.", lambda _: None)
    assert first.reused_tokens == 0
    assert second.reused_tokens >= first.prompt_tokens
    assert second.prompt_tokens - second.reused_tokens < first.prompt_tokens
    assert again.text == second.text
    assert again.reused_tokens == second.prompt_tokens - 1  # the last one's logits are needed


async def test_closed_sessions_make_room_and_one_too_many_is_refused(
    default_model: Path, swarm: list[Peer]
) -> None:
    """More sessions than peers hold work one after the other, but not all at once."""
    prompt = [1, 2, 3]
    with trio.fail_after(ANSWERS_S_MAX):
        options = client_options(default_model, swarm[0], sessions=SESSIONS + 1)
        async with open_client(options) as client, AsyncExitStack() as stack:
            route = await client.find_route(lambda _: None)
            for _ in range(SESSIONS + 2):
                async with client.open_session(route) as session:
                    assert len([t async for t in session.generate(prompt, Sampling(), 1)]) == 1
            for _ in range(SESSIONS):
                await stack.enter_async_context(client.open_session(route))
            with pytest.raises(RefusedError) as refusal:
                await stack.enter_async_context(client.open_session(route))
            assert refusal.value.refused.code is Refusal.BUSY
            await stack.aclose()
            async with client.open_session(route) as session:
                assert len([t async for t in session.generate(prompt, Sampling(), 1)]) == 1
