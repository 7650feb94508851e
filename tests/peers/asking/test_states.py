"""Sessions of models whose layers keep a state: positions are dropped all at once or not at all."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.errors import EngineError, PeerError
from peers.asking.session import Requester, Session
from tests.support.fake_engines import FakeEnds
from tests.support.swarm import CONTEXT, GREEDY, MODEL, Swarm, answer, session_id, swarm

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12]


@asynccontextmanager
async def opened(made: Swarm, number: int = 0, *, knows: bool = True) -> AsyncIterator[Session]:
    """Open a session whose machines keep states, and whose requester knows it."""
    for machine in (made.ends.machine, *(engine.machine for engine in made.engines)):
        machine.keeps_state = True
    requester = Requester(made.nursery, made.me, made.ends, MODEL, drafts=True, keeps_state=knows)
    async with requester.open(made.route, session_id(number), CONTEXT) as session:
        yield session


async def fresh(made: Swarm, prompt: list[int]) -> list[int]:
    """Return what a session says that knows nothing yet."""
    async with opened(made, 99) as session:
        return await answer(session, prompt)


async def test_a_turn_that_goes_on_reads_only_what_is_new(autojump_clock: MockClock) -> None:
    """As with any model, where an answer came to its end: its last token was not run."""
    ends = FakeEnds(context=CONTEXT, ends_answers=True)
    async with swarm(ends=ends) as made, opened(made) as session:
        said = await answer(session, PROMPT, 1)
        held, rows = [*session.tokens], made.engines[0].machine.rows
        assert held == PROMPT
        assert session.held_of([*PROMPT, *said, 13]) == 0  # the token is in our own layers already
        await answer(session, [*PROMPT, *said, 13], 1)
        assert made.engines[0].machine.rows - rows == len(PROMPT) + 2

        async for token in session.generate([*PROMPT, 14, 15], GREEDY, CONTEXT):
            is_over = token.is_end
        assert is_over
        rows = made.engines[0].machine.rows
        follows = [*session.tokens, 0, 3, 4]
        assert session.held_of(follows) == len(session.tokens)
        await answer(session, follows, 1)
        assert made.engines[0].machine.rows - rows == 3


async def test_what_was_said_before_is_read_again_where_it_changed(
    autojump_clock: MockClock,
) -> None:
    """Another question, the same again, and one asked while an answer is stopped half-way."""
    async with swarm() as made:
        expected = {n: await fresh(made, [*PROMPT, n]) for n in (20, 21, 22)}
        async with opened(made) as session:
            for last in (20, 21, 21, 20):
                assert await answer(session, [*PROMPT, last]) == expected[last]
            async with aclosing(session.generate([*PROMPT, 22], GREEDY, 20)) as tokens:
                found = [(await anext(tokens)).id for _ in range(4)]
            assert found == expected[22][:4]
            assert await answer(session, [*PROMPT, 22, *found, 30], 4)
            assert await answer(session, [*PROMPT, 22]) == expected[22]


async def ask_twice(made: Swarm) -> None:
    """Ask another question in a session of a requester that does not know."""
    async with opened(made, knows=False) as session:
        await answer(session, [*PROMPT, 20])
        await answer(session, [*PROMPT, 21])


async def test_without_knowing_a_session_would_end(autojump_clock: MockClock) -> None:
    """An engine refuses what it cannot do, and says so."""
    async with swarm() as made:
        with pytest.raises((PeerError, EngineError), match="cannot be dropped"):
            await ask_twice(made)


@pytest.mark.parametrize("knows", [True, False])
async def test_prompt_is_read_again_to_be_scored(knows: bool, autojump_clock: MockClock) -> None:
    """All of it, with a state or without; what follows is what followed before."""
    async with swarm() as made:
        engines = made.engines
        context = opened(made) if knows else made.open()
        async with context as session:
            said = await answer(session, PROMPT, 3)
            rows = engines[0].machine.rows
            scored = evolve(GREEDY, prompt_logprobs=0)
            async with aclosing(session.generate(PROMPT, scored, 0)) as tokens:
                assert [token async for token in tokens] == []
            assert engines[0].machine.rows - rows == len(PROMPT)
            assert [each[0].token for each in session.scores] == PROMPT[1:]
            assert session.tokens == PROMPT
            assert await answer(session, PROMPT, 3) == said
            assert session.scores == []
