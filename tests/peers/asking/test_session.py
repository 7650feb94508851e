"""Sessions through chains of stages: the same tokens as without a network.

Real stages and requesters over the memory network, fake engines, and a mock clock: nothing really
waits. Every test ends by checking that all sessions are free again.
"""

from contextlib import aclosing

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.ids import SessionId
from p2pinfer.core.limits import BLOCK_ROWS, STEPS_IN_FLIGHT_MAX
from tests.support.fake_engines import FakeEnds, FakeStage
from tests.support.swarm import (
    CHAINS,
    CONTEXT,
    GREEDY,
    PEERS,
    PROMPT,
    answer,
    expected,
    peer,
    session_id,
    swarm,
)


@pytest.mark.parametrize("stages", CHAINS)
async def test_a_chain_answers_like_one_machine(stages: int, autojump_clock: MockClock) -> None:
    """Chains of any length give the tokens that their engines give without a network."""
    async with swarm(CHAINS[stages]) as made, made.open() as session:
        assert await answer(session, PROMPT) == await expected(PROMPT, 20, CHAINS[stages])
        assert [stage.rows for stage in made.stages] == [len(PROMPT) + 19] * stages


async def test_grammar_goes_on_where_another_session_stopped(autojump_clock: MockClock) -> None:
    """It is told of the answer's tokens at the prompt's end; where there is none, nobody is."""
    async with swarm((1, 29)) as made, made.open() as session:
        for sampling, said in ((evolve(GREEDY, grammar="x"), PROMPT[-3:]), (GREEDY, [])):
            async with aclosing(session.generate(PROMPT, sampling, 2, 3)) as tokens:
                assert len([token async for token in tokens]) == 2
            assert made.ends.said[-1] == list(said)
        async with aclosing(session.generate(PROMPT, evolve(GREEDY, grammar="x"), 2)) as tokens:
            assert len([token async for token in tokens]) == 2
        assert made.ends.said[-1] == []


async def test_a_stage_may_stop_early(autojump_clock: MockClock) -> None:
    """A peer whose range overlaps the next one's runs its layers only up to there."""
    async with swarm((1, 20, 29)) as made, trio.open_nursery() as nursery:
        await nursery.start(made.add, PEERS[3], FakeStage(1, 25, context=CONTEXT))
        route = [evolve(made.route[2], end=20), made.route[1]]
        async with made.requester.open(route, SessionId(bytes(16)), CONTEXT) as session:
            assert await answer(session, PROMPT) == await expected(PROMPT, 20, (1, 29))
        nursery.cancel_scope.cancel()


async def test_sessions_at_once_do_not_mix(autojump_clock: MockClock) -> None:
    """Four concurrent sessions each get the answer that they would get alone."""
    prompts = [PROMPT[number : 40 + 20 * number] for number in range(4)]
    found: dict[int, list[int]] = {}
    async with swarm() as made:
        made.network.latency_s = lambda a, b: 0.01 + len(a + b) / 1e5
        for engine in made.engines:
            engine.machine.decode_s = 0.005

        async def talk(number: int) -> None:
            async with made.open(number) as session:
                found[number] = await answer(session, prompts[number])

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(talk, number)
    for number in range(4):
        assert found[number] == await expected(prompts[number], 20, CHAINS[3])


async def test_chunks_overlap_along_the_chain(autojump_clock: MockClock) -> None:
    """Eight chunks through three stages of a second each take ten seconds, not twenty-four."""
    context = 8 * BLOCK_ROWS + 8
    async with swarm(ends=FakeEnds(context=context)) as made:
        for engine in made.engines:
            engine.machine.context = engine.context = context
            engine.machine.decode_s = 1.0
        async with made.open(context=context) as session:
            start = trio.current_time()
            await answer(session, [1 + i % 40 for i in range(8 * BLOCK_ROWS)], 1)
            assert trio.current_time() - start == pytest.approx(10.0)


async def test_a_long_prompt_is_not_all_in_flight(autojump_clock: MockClock) -> None:
    """Of a prompt's many chunks, no more than the limit are under way at once."""
    context, most = BLOCK_ROWS * 20, 0
    async with swarm((1, 29), ends=FakeEnds(context=context)) as made:
        (engine,) = made.engines
        engine.machine.context = engine.context = context
        engine.machine.decode_s = 1.0
        async with made.open(context=context) as session, trio.open_nursery() as nursery:
            nursery.start_soon(answer, session, [1 + i % 40 for i in range(context - 1)], 1)
            for _ in range(12):
                await trio.sleep(1.0)
                # The ends ran the rows of each returned chunk twice.
                under_way = (
                    made.ends.machine.rows // BLOCK_ROWS - 2 * len(session.tokens) // BLOCK_ROWS
                )
                most = max(most, under_way)
    assert most == STEPS_IN_FLIGHT_MAX


async def test_the_next_turn_runs_only_new_tokens(autojump_clock: MockClock) -> None:
    """A continued chat sends the new message, and the last token, whose rows it lacks."""
    async with swarm() as made, made.open() as session:
        told = await answer(session, PROMPT)
        before = [stage.rows for stage in made.stages]
        longer = [*PROMPT, *told, 9, 8, 7]
        assert session.held_of(longer) == len(PROMPT) + 19
        again = await answer(session, longer, 1)
        assert [stage.rows for stage in made.stages] == [rows + 1 + 3 for rows in before]
        made_of = session.tokens
        assert made_of == longer
        assert 0 < again[0] < 50


async def test_regenerating_runs_one_row(autojump_clock: MockClock) -> None:
    """The same prompt again drops the answer, and runs its last token again."""
    async with swarm() as made, made.open() as session:
        short = PROMPT[:48]
        await answer(session, short)
        first = made.stages[0].rows
        again = await answer(session, short, 1)
        assert made.stages[0].rows - first == 1
        assert session.tokens == short
        assert again[0] in range(1, 50)


async def test_another_prompt_leaves_no_trace_of_the_last(autojump_clock: MockClock) -> None:
    """A session that held something else answers like a new one."""
    async with swarm() as made, made.open() as session:
        await answer(session, PROMPT)
        other = [49 - token for token in PROMPT]
        assert await answer(session, other) == await expected(other, 20, CHAINS[3])


async def test_after_stopping_early_one_may_ask_again_at_once(autojump_clock: MockClock) -> None:
    """An answer abandoned during a wait leaves rows on their way, which are ignored."""
    async with swarm() as made, made.open() as session:
        made.network.latency_s = lambda a, b: 0.3
        for patience_s in (0.5, 1.0, 2.0, 5.0, 7.7):
            with trio.move_on_after(patience_s):
                await answer(session, [*PROMPT, int(patience_s)])
            other = [1, *PROMPT[:60]]
            assert await answer(session, other, 5) == await expected(other, 5, CHAINS[3])


async def test_leaving_between_tokens_is_clean(autojump_clock: MockClock) -> None:
    """After the generator is closed early, the session is ready again."""
    async with swarm() as made, made.open() as session:
        async with aclosing(session.generate(PROMPT, GREEDY, 20)) as tokens:
            first = [(await anext(tokens)).id for _ in range(3)]
        whole = await expected(PROMPT, 20, CHAINS[3])
        assert first == whole[:3]
        other = [1, *PROMPT]
        assert await answer(session, other) == await expected(other, 20, CHAINS[3])


async def test_an_answer_ends_where_the_model_ends_it(autojump_clock: MockClock) -> None:
    """The token that ends an answer is the last one, and is marked as such."""
    async with swarm(ends=FakeEnds(context=CONTEXT, ends_answers=True)) as made:
        async with made.open() as session:
            tokens = [token async for token in session.generate(PROMPT[:20], GREEDY, 200)]
        assert [token.is_end for token in tokens] == [False] * (len(tokens) - 1) + [True]
        assert len(tokens) < 200


async def test_an_answer_may_fill_the_context(autojump_clock: MockClock) -> None:
    """The last position is used, and then the answer ends without an error."""
    async with swarm() as made, made.open(context=50) as session:
        tokens = await answer(session, PROMPT[:40], 100)
        assert len(session.tokens) == 50
        assert tokens == await expected(PROMPT[:40], 11, CHAINS[3])


async def test_a_straggler_delays_no_other_session(autojump_clock: MockClock) -> None:
    """Two sessions share stages; one passes a peer that takes a hundred times as long."""
    async with swarm() as made:
        slow = FakeStage(1, 10, context=CONTEXT)
        await made.nursery.start(made.add, peer("slow"), slow)
        straggling = [made.route.pop(), *made.route[1:]]
        for engine in made.engines:
            engine.machine.decode_s = 0.01
        slow.machine.decode_s = 1.0

        async def seconds() -> float:
            async with made.open() as session:
                since = trio.current_time()
                await answer(session, PROMPT)
                return trio.current_time() - since

        async def straggle() -> None:
            async with made.requester.open(straggling, session_id(1), CONTEXT) as session:
                await answer(session, PROMPT, 100)

        alone = await seconds()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(straggle)
            await trio.sleep(5)
            assert await seconds() < 1.1 * alone
            nursery.cancel_scope.cancel()
