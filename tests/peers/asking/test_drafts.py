"""Drafting ahead: the same answers, whatever is drafted, and fewer trips where drafts are right."""

from contextlib import aclosing

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from peers.asking.draft_model import open_drafter
from peers.asking.drafts import DRAFTS_MAX, MATCH_TOKENS, TextDrafter
from peers.asking.governor import LOOK_TOKENS
from peers.asking.repair import Repair
from tests.support.fake_engines import VOCABULARY, FakeEnds
from tests.support.oracle import Oracle
from tests.support.swarm import (
    CHAINS,
    CONTEXT,
    GREEDY,
    PROMPT,
    answer,
    expected,
    session_id,
    swarm,
)

LENGTH = 60

TOKENS = st.lists(st.integers(0, 3), max_size=40)


@pytest.mark.parametrize("right", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("stages", CHAINS)
async def test_drafts_change_no_answer(
    stages: int, right: float, oracle: type[Oracle], autojump_clock: MockClock
) -> None:
    """Right or wrong, and through any chain, with receipts that join up behind them."""
    oracle.right, oracle.answer = right, await expected(PROMPT, LENGTH, CHAINS[stages])
    async with swarm(CHAINS[stages], drafts=True, evidence=True) as made:
        made.network.latency_s = lambda *_: 0.05
        async with made.open() as session:
            assert await answer(session, PROMPT, LENGTH) == oracle.answer
            assert session.drafts.kept if right else session.drafts.dropped
            assert (session.drafts.wrong > 0) is (right < 1.0)
            assert session.drafts.wrong <= session.drafts.dropped
            assert not (right == 1.0 and session.drafts.dropped)
            assert session.evidence
            assert await session.evidence.settle(len(session.tokens)) is None


@pytest.mark.parametrize("right", [0.5, 1.0])
async def test_an_answer_may_stop_and_go_on_differently(
    right: float, oracle: type[Oracle], autojump_clock: MockClock
) -> None:
    """Rows that were drafted behind the last token are overwritten by the next prompt."""
    oracle.right, oracle.answer = right, await expected(PROMPT, LENGTH, CHAINS[3])
    async with swarm(drafts=True, evidence=True) as made, made.open() as session:
        for stop in (1, 20, 33):
            async with aclosing(session.generate(PROMPT, GREEDY, LENGTH)) as tokens:
                found = [await anext(tokens) for _ in range(stop)]
            assert [token.id for token in found] == oracle.answer[:stop]
        assert session.evidence
        assert await session.evidence.settle(len(session.tokens)) is None


async def test_drafts_fill_no_more_than_the_session(
    oracle: type[Oracle], autojump_clock: MockClock
) -> None:
    """Nothing is sent beyond the context, nor beyond the tokens that are wanted."""
    oracle.answer = await expected(PROMPT, LENGTH, CHAINS[3])
    async with swarm(drafts=True) as made, made.open(context=len(PROMPT) + 30) as session:
        assert await answer(session, PROMPT, LENGTH) == oracle.answer[:31]
        assert [stage.rows for stage in made.stages] == [len(PROMPT) + 30] * 3


@pytest.mark.parametrize("right", [0.0, 1.0])
async def test_right_drafts_save_trips_and_wrong_ones_cost_few(
    right: float, oracle: type[Oracle], autojump_clock: MockClock
) -> None:
    """Over slow links: the time of an answer against the one without drafts."""
    oracle.right, oracle.answer = right, await expected(PROMPT, 100, CHAINS[3])
    took = {}
    for drafts in (False, True):
        async with swarm(drafts=drafts) as made:
            made.network.latency_s = lambda *_: 0.02
            for engine in made.engines:
                engine.machine.decode_s = 0.01
            async with made.open() as session:
                started = trio.current_time()
                assert await answer(session, PROMPT, 100) == oracle.answer
                took[drafts] = trio.current_time() - started
    assert took[True] < took[False] * (1.05 if right == 0.0 else 0.4)


async def test_stages_skip_rows_behind_a_wrong_draft(
    oracle: type[Oracle], autojump_clock: MockClock
) -> None:
    """A slow stage runs none that wait there for nothing; receipts join up over them."""
    oracle.right, oracle.answer = 0.5, await expected(PROMPT, 100, CHAINS[3])
    async with swarm(drafts=True, evidence=True) as made:
        made.network.latency_s = lambda *_: 0.05
        made.engines[1].machine.decode_s = 0.04
        async with made.open() as session:
            assert await answer(session, PROMPT, 100) == oracle.answer
            first, slow, last = (stage.rows for stage in made.stages)
            assert len(session.tokens) <= slow < first
            assert last == slow == made.engines[1].machine.rows
            assert session.evidence
            assert await session.evidence.settle(len(session.tokens)) is None
            assert all(each.rows <= session.evidence.rows for each in session.evidence.work(1))


@given(TOKENS, st.lists(st.integers(0, 3), max_size=DRAFTS_MAX), st.integers(1, DRAFTS_MAX))
def test_a_draft_is_what_followed_before(text: list[int], ahead: list[int], most: int) -> None:
    """It is as long as asked, or empty; the text with it repeats an earlier part of itself."""
    found = TextDrafter(text).draft(ahead, most)
    tail = [*text[-MATCH_TOKENS:], *ahead][-MATCH_TOKENS:]
    places = [
        at
        for at in range(MATCH_TOKENS, len(text))
        if len(tail) == MATCH_TOKENS and text[at - MATCH_TOKENS : at] == tail
    ]
    assert len(found) == (most if places else 0)
    if places:
        whole = [*text, *ahead, *found]
        assert any(found == whole[at : at + most] for at in places)


def test_the_longest_match_is_followed() -> None:
    """And not the most recent one: a copy goes on where it copied from."""
    text = [9, 1, 2, 3, 5, 8, 8, 1, 2, 3, 6, 8, 9, 1, 2, 3]
    assert TextDrafter(text).draft([], 1) == [5]
    assert TextDrafter([1, 2, 3, 5, 7, 1, 2, 3, 6, 4, 1, 2, 3]).draft([], 1) == [6]


@pytest.mark.parametrize("busy", [True, False])
async def test_nothing_is_drafted_while_stages_are_busy(
    busy: bool, oracle: type[Oracle], autojump_clock: MockClock
) -> None:
    """As they advertise it; an answer that meets them so is plain."""
    oracle.answer = await expected(PROMPT, LENGTH, CHAINS[3])
    async with swarm(drafts=True) as made:
        looks: list[int] = []

        def rows_of_others(own: int) -> float:
            looks.append(len(session.tokens))
            assert own >= len(PROMPT)
            return 9.0 * busy

        repair = Repair(lambda *_: [], lambda _: None, rows_of_others=rows_of_others)
        opening = made.requester.open(made.route, session_id(), CONTEXT, repair)
        async with opening as session:
            assert await answer(session, PROMPT, LENGTH) == oracle.answer
            assert (session.drafts.kept + session.drafts.dropped == 0) is busy
        assert len(looks) == -(-(LENGTH - 1) // LOOK_TOKENS)


@pytest.mark.parametrize("vocabulary", [VOCABULARY, VOCABULARY // 2])
async def test_a_draft_model_changes_no_answer(vocabulary: int, autojump_clock: MockClock) -> None:
    """It is another model, so it is always wrong here; tokens beyond the large one's are none."""
    small = FakeEnds(context=CONTEXT)
    async with swarm(drafts=True, draft_model=small) as made:
        made.ends.vocabulary = vocabulary
        made.network.latency_s = lambda *_: 0.05
        async with made.open() as session:
            assert await answer(session, PROMPT, LENGTH) == await expected(
                PROMPT, LENGTH, CHAINS[3]
            )
            assert session.drafts.dropped
            assert not session.drafts.kept
    assert small.machine.open == 0


async def test_a_session_goes_without_a_draft_model_that_is_busy(
    autojump_clock: MockClock,
) -> None:
    """It has fewer sessions than there are here, or one is just being given back."""
    small = FakeEnds(sessions=1, context=CONTEXT)
    made = swarm(drafts=True, draft_model=small)
    async with made as peers, peers.open(1) as one, peers.open(2) as other:
        for session in (one, other):
            assert await answer(session, PROMPT, 20) == await expected(PROMPT, 20, CHAINS[3])


async def test_a_draft_model_reads_along_and_runs_ahead(autojump_clock: MockClock) -> None:
    """Wherever the text goes on or turns back; what it drafted itself is not read again."""
    small = FakeEnds(context=CONTEXT)
    async with trio.open_nursery() as nursery, open_drafter(small, VOCABULARY, nursery) as drafter:
        for text in (PROMPT[:40], [*PROMPT[:40], 1, 2], PROMPT, [*PROMPT[:9], 5]):
            drafter.follow(text)
            while len(drafter.drafts()) <= DRAFTS_MAX:
                await drafter.wait_moved()
            drafts, rows = drafter.drafts(), small.machine.rows
            drafter.follow([*text, *drafts[:3]])
            assert drafter.drafts() == drafts[3:]
            while len(drafter.drafts()) <= DRAFTS_MAX:
                await drafter.wait_moved()
            assert small.machine.rows == rows + 6  # three tokens, each run and drafted
    assert small.machine.open == 0


async def test_tokens_that_only_the_draft_model_has_are_no_drafts(
    autojump_clock: MockClock,
) -> None:
    """Its list may be padded further; the large model's first layers cannot embed such a token."""
    few, made = VOCABULARY // 2, {}
    async with trio.open_nursery() as nursery:
        for vocabulary in (VOCABULARY, few):
            ends = FakeEnds(context=CONTEXT)
            async with open_drafter(ends, vocabulary, nursery) as drafter:
                drafter.follow(PROMPT)
                await trio.sleep(1)
                made[vocabulary] = drafter.drafts()
    beyond = next(at for at, token in enumerate(made[VOCABULARY]) if token >= few)
    assert made[few] == made[VOCABULARY][:beyond]


async def test_an_answer_goes_on_without_a_draft_model_that_fails(
    autojump_clock: MockClock,
) -> None:
    """Its engine's process may end at any moment."""
    small = FakeEnds(context=CONTEXT)
    async with swarm(drafts=True, draft_model=small) as made, made.open() as session:
        async with aclosing(session.generate(PROMPT, GREEDY, LENGTH)) as tokens:
            found = [(await anext(tokens)).id for _ in range(20)]
            small.machine.die()
            found += [token.id async for token in tokens]
        assert found == await expected(PROMPT, LENGTH, CHAINS[3])


@pytest.mark.parametrize("right", [0.0, 1.0])
async def test_a_requester_knows_what_is_drafted(
    right: float, oracle: type[Oracle], autojump_clock: MockClock
) -> None:
    """All of its sessions count, also an answer that is stopped."""
    oracle.right, oracle.answer = right, await expected(PROMPT, LENGTH, CHAINS[3])
    async with swarm(drafts=True) as made:
        made.network.latency_s = lambda *_: 0.05
        for number in range(4):
            async with (
                made.open(number) as session,
                aclosing(session.generate(PROMPT, GREEDY, LENGTH)) as tokens,
            ):
                for _ in range(LENGTH - 10):
                    await anext(tokens)
        value = made.requester.draft_record.share
        assert 0.5 < value < 1.0 if right else value == 0.0
