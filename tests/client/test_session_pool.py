"""The pool of sessions: who gets one, which one, and what becomes of it."""

from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from p2pinfer.client import session_pool
from p2pinfer.client.answer import Answer, ChatOptions
from p2pinfer.client.library import Swarm
from p2pinfer.client.session_pool import IDLE_S_MAX, WAIT_S_MAX, WAITING_MAX, TooBusy
from p2pinfer.core.errors import EngineError, NobodyServes, PeerError, PromptTooLong
from p2pinfer.core.sampling import Sampling
from tests.peers.asking.test_recovery import SPARES, Spares
from tests.support.fake_gateway import FakeClient, fake_swarm
from tests.support.swarm import CONTEXT

SHORT = ChatOptions(Sampling(), max_tokens=4)


async def ask(swarm: Swarm, prompt: list[int]) -> Answer:
    """Return a short answer."""
    answer = Answer()
    async for _ in swarm.answer(prompt, SHORT, answer):
        pass
    return answer


async def test_next_turn_gets_the_session_that_knows_the_beginning(
    autojump_clock: MockClock,
) -> None:
    """Two conversations in turns: each runs only what is new of it."""
    async with fake_swarm() as (swarm, client):
        one, other = [5, 6, 7, 8, 9, 10, 11, 12], [5, 40, 41, 42, 43, 44, 45, 46]
        assert (await ask(swarm, one)).reused_tokens == 0
        assert (await ask(swarm, other)).reused_tokens == 0
        for _ in range(2):
            assert (await ask(swarm, [*one, 13])).reused_tokens >= len(one)
            assert (await ask(swarm, [*other, 47])).reused_tokens >= len(other)
        assert client.opened == 2
        assert (swarm.pool.running, swarm.pool.idle) == (0, 2)


async def test_conversations_of_who_hides_are_kept_apart(autojump_clock: MockClock) -> None:
    """One goes on in its own session; another that begins alike has another session."""
    shared = list(range(3, 33))
    first, other = [*shared, *range(33, 39)], [*shared, *range(39, 33, -1)]
    async with fake_swarm() as (swarm, client):
        client.joins_conversations = False
        await ask(swarm, first)
        assert (await ask(swarm, [*first, 44])).reused_tokens >= len(first)
        assert client.opened == 1
        assert (await ask(swarm, other)).reused_tokens == 0
        assert client.opened == 2
    async with fake_swarm() as (swarm, client):
        await ask(swarm, first)
        assert (await ask(swarm, other)).reused_tokens == len(shared)


async def test_who_hides_gives_no_session_to_another_conversation(
    autojump_clock: MockClock,
) -> None:
    """Not even where there is room for one alone: it is closed, and another one opened."""
    async with fake_swarm(sessions=1) as (swarm, client):
        client.joins_conversations = False
        await ask(swarm, list(range(3, 43)))
        assert (await ask(swarm, list(range(43, 3, -1)))).reused_tokens == 0
        assert (client.opened, swarm.pool.idle) == (2, 1)


async def test_an_answer_goes_on_in_a_longer_session_where_one_is_full(
    autojump_clock: MockClock,
) -> None:
    """Until it has as many tokens as were asked for; the full sessions are closed."""
    prompt, long = list(range(3, 23)), ChatOptions(Sampling(temperature=0.0), max_tokens=150)
    async with fake_swarm() as (swarm, client):
        client.lengths = [24, 64, CONTEXT]
        swarm.pool.room = 0
        answer = Answer()
        said = [piece async for piece in swarm.answer(prompt, long, answer)]
        assert (answer.tokens, answer.finish) == (150, "length")
        assert "".join(said) == answer.text
        assert (client.opened, swarm.pool.idle) == (3, 1)


async def test_an_answer_ends_where_no_session_is_longer(autojump_clock: MockClock) -> None:
    """As one that was asked for no more tokens."""
    async with fake_swarm() as (swarm, client):
        client.lengths = [24]
        answer = Answer()
        async for _ in swarm.answer(list(range(3, 23)), ChatOptions(Sampling()), answer):
            pass
        assert (answer.tokens, answer.finish, client.opened) == (5, "length", 1)


async def test_a_short_session_is_not_lent_for_a_long_prompt(autojump_clock: MockClock) -> None:
    """It is closed where its cells are needed, and one that is long enough is opened."""
    async with fake_swarm(sessions=1) as (swarm, client):
        client.lengths = [24, CONTEXT]
        swarm.pool.room = 0
        await ask(swarm, list(range(3, 13)))
        await ask(swarm, list(range(3, 43)))
        assert (client.opened, swarm.pool.idle) == (2, 1)


def stage_rows(client: FakeClient) -> int:
    """Return how many rows the chain's stages have computed."""
    return sum(stage.rows for stage in client.made.stages)


async def test_another_agent_with_the_same_instructions_reads_only_its_own(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets a copy of what the first one's session holds, idle or in use, and harms nobody."""
    monkeypatch.setattr(session_pool, "LOST_TOKENS_MAX", 8)
    shared = [3 + n % 40 for n in range(100)]
    async with fake_swarm() as (swarm, client):
        stages = len(client.made.stages)
        assert (await ask(swarm, [*shared, *range(2, 30), 5])).reused_tokens == 0
        before = stage_rows(client)
        assert (await ask(swarm, [*shared, 41, 42, 43])).reused_tokens == 100
        assert stage_rows(client) - before == stages * (3 + 3)
        assert (client.opened, swarm.pool.idle) == (2, 2)
        async with swarm.pool.lend([*shared, *range(2, 30), 6]):
            before = stage_rows(client)
            assert (await ask(swarm, [*shared, 30, 31])).reused_tokens == 100
            assert stage_rows(client) - before == stages * (2 + 3)


async def test_agents_that_begin_together_read_their_instructions_once(
    autojump_clock: MockClock,
) -> None:
    """The second waits until the first one has read what both begin with."""
    shared = [3 + n % 40 for n in range(100)]
    async with fake_swarm() as (swarm, client):
        client.made.ends.machine.decode_s = 0.1
        found = []

        async def one(number: int) -> None:
            await trio.sleep(number / 100)
            found.append(await ask(swarm, [*shared, *[40 + number] * 5]))

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(one, number)
        assert sorted(each.reused_tokens for each in found) == [0, 100, 100]
        assert stage_rows(client) == len(client.made.stages) * (100 + 3 * (5 + 3))


async def test_a_long_conversation_is_not_lost_while_there_is_room(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one that shares most of it gets a copy; without room it takes its place."""
    monkeypatch.setattr(session_pool, "LOST_TOKENS_MAX", 8)
    shared = [3 + n % 40 for n in range(100)]
    one, other = [*shared, *[40] * 30], [*shared, *[41] * 30]
    for sessions, kept in ((2, len(one)), (1, len(shared))):
        async with fake_swarm(sessions=sessions) as (swarm, _):
            await ask(swarm, one)
            assert (await ask(swarm, other)).reused_tokens == len(shared)
            assert (await ask(swarm, [*one, 1, 2])).reused_tokens == kept


async def test_a_conversation_takes_the_least_ones_place_with_a_copy(
    autojump_clock: MockClock,
) -> None:
    """Without room, the idle session that is closed is not the one to begin with."""
    shared = [3 + n % 40 for n in range(100)]
    async with fake_swarm(sessions=2) as (swarm, client):
        async with swarm.pool.lend([*shared, 1]) as lent:
            async for _ in lent.session.generate([*shared, 1], SHORT.sampling, 2):
                pass
            await ask(swarm, [7, 8, 9])
            assert (await ask(swarm, [*shared, 2, 3])).reused_tokens == 100
        assert client.opened == 3


async def test_of_equal_sessions_the_one_that_others_began_with_goes_on(
    autojump_clock: MockClock,
) -> None:
    """Where a stage was lost, its copies take over what its replacement has by then."""
    shared = [3 + n % 40 for n in range(100)]
    async with fake_swarm() as (swarm, _):
        async with swarm.pool.lend([*shared, 1]) as lent:
            async for _ in lent.session.generate([*shared, 1], SHORT.sampling, 2):
                pass
            await ask(swarm, [*shared, 2, 3])  # in a copy, which is idle first
        async with swarm.pool.lend([*shared, 4]) as again:
            assert again is lent


async def test_what_cannot_be_copied_is_read(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that fails costs nobody their answer."""
    shared = [3 + n % 40 for n in range(100)]
    async with fake_swarm() as (swarm, client), swarm.pool.lend([*shared, 1]) as lent:
        async for _ in lent.session.generate([*shared, 1], SHORT.sampling, 2):
            pass
        for error in (LookupError("over"), EngineError("no cells")):

            def fail(*_: object, error: Exception = error) -> None:
                raise error

            monkeypatch.setattr(client, "open_beside", fail)
            assert (await ask(swarm, [*shared, 2, 3])).tokens == 4
            await swarm.pool.close()


async def test_copy_waits_for_a_peer_that_died_to_be_replaced(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session to begin with finds a replacement, and the copy then goes through that."""
    monkeypatch.setattr(session_pool, "LOST_TOKENS_MAX", 8)
    shared = [3 + n % 40 for n in range(100)]
    async with fake_swarm() as (swarm, client):
        made = client.made
        spares = Spares(made)
        client.repair = spares.repair()
        await ask(swarm, [*shared, *range(2, 30)])
        hop = made.route[1]
        await spares.add(hop.first, hop.end)
        made.leave[1]()
        made.route[1] = spares.hops[0]  # where other sessions go from now on
        answer = await ask(swarm, [*shared, 41, 42])
        assert answer.reused_tokens == 100
        assert [each["peer"] for each in answer.route][1] == SPARES[0]


async def test_same_answer_from_a_warm_session_as_from_a_cold_one(
    autojump_clock: MockClock,
) -> None:
    """What is reused changes nothing."""
    async with fake_swarm() as (swarm, _):
        prompt = list(range(3, 40))
        cold = await ask(swarm, prompt)
        warm = await ask(swarm, prompt)
    assert warm.reused_tokens == len(prompt) - 1
    assert warm.text == cold.text


async def test_askers_wait_in_order_and_all_are_answered(autojump_clock: MockClock) -> None:
    """Twelve askers for two sessions: nobody is passed over."""
    finished: list[int] = []
    async with fake_swarm(sessions=2) as (swarm, client):
        client.made.ends.machine.decode_s = 0.01

        async def one(number: int) -> None:
            await trio.sleep(number / 1e6)
            await ask(swarm, [number + 1] * 20)
            finished.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(one, number)
        assert swarm.pool.running == swarm.pool.waiting == 0
    assert sorted(finished) == list(range(12))
    assert all(abs(place - number) <= 1 for place, number in enumerate(finished))


async def test_swarm_with_fewer_sessions_than_hoped_makes_askers_wait(
    autojump_clock: MockClock,
) -> None:
    """A stage that says it is busy is asked again when a session is given back."""
    async with fake_swarm(sessions=4, stage_sessions=2) as (swarm, _), trio.open_nursery() as many:
        for number in range(6):
            many.start_soon(ask, swarm, [number + 1] * 20)


async def test_queue_has_an_end_in_length_and_time(autojump_clock: MockClock) -> None:
    """One asker too many is told so at once, those in the queue after a while."""
    async with fake_swarm(sessions=1) as (swarm, _):
        refused: list[str] = []

        async def wait() -> None:
            with pytest.raises(TooBusy):
                await ask(swarm, [1, 2])
            refused.append("later")

        async with swarm.pool.lend([1, 2]), trio.open_nursery() as nursery:
            for _ in range(WAITING_MAX):
                nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(TooBusy):
                await ask(swarm, [1, 2])
            assert not refused
            await trio.sleep(WAIT_S_MAX + 1)
        assert len(refused) == WAITING_MAX


async def test_asker_that_leaves_gives_the_session_back_at_once(autojump_clock: MockClock) -> None:
    """The next one gets it, and right answers from it."""
    async with fake_swarm(sessions=1) as (swarm, client):
        prompt = list(range(3, 90))
        expected = (await ask(swarm, prompt)).text
        client.made.ends.machine.decode_s = 1.0
        with trio.move_on_after(2.5) as scope:
            await ask(swarm, list(range(50, 130)))
        assert scope.cancelled_caught
        assert (swarm.pool.running, swarm.pool.idle) == (0, 1)
        assert (await ask(swarm, prompt)).text == expected


async def test_broken_chain_is_replaced(autojump_clock: MockClock) -> None:
    """A session that died while it was idle is no business of the asker."""
    async with fake_swarm() as (swarm, client):
        await ask(swarm, [1, 2, 3])
        client.made.engines[1].machine.die()
        assert (await ask(swarm, [1, 2, 3, 4])).tokens == 4
        assert client.opened == 2


async def test_answer_goes_on_from_its_tokens(autojump_clock: MockClock) -> None:
    """A session that nothing can mend ends in the middle; another one goes on, asked once."""
    prompt, how = [5, 6, 7], ChatOptions(Sampling(temperature=0.0), max_tokens=30)
    async with fake_swarm() as (swarm, client):
        answer = Answer()
        pieces: list[str] = []
        async for piece in swarm.answer(prompt, how, answer):
            pieces.append(piece)
            if len(pieces) == 9:
                client.made.engines[1].machine.die()
        assert (answer.tokens, len(answer.spoken), answer.finish) == (30, 30, "length")
        assert "".join(pieces) == answer.text
        assert client.opened == 2
        (lent,) = swarm.pool._idle
        assert lent.session.tokens == [*prompt, *answer.spoken[:-1]]
        assert answer.as_dict().keys().isdisjoint({"spoken", "stream"})


async def test_nobody_to_ask_is_said_at_once(autojump_clock: MockClock) -> None:
    """And takes no session."""
    async with fake_swarm() as (swarm, client):
        client.absent = "nobody serves layers 1:29"
        with pytest.raises(NobodyServes):
            await ask(swarm, [1, 2, 3])
        assert swarm.pool.running == 0
        client.absent = ""
        for engine in client.made.engines:
            engine.machine.sessions = 0
        client.made.engines[0].machine.sessions = 4
        with pytest.raises((PeerError, TooBusy)):
            await ask(swarm, [1, 2, 3])
        for engine in client.made.engines:
            engine.machine.sessions = 4


async def test_prompt_that_leaves_no_room_is_the_askers_fault(autojump_clock: MockClock) -> None:
    """And costs nobody a session."""
    async with fake_swarm() as (swarm, _):
        with pytest.raises(PromptTooLong):
            await ask(swarm, [1] * CONTEXT)
        assert swarm.pool.idle == 1


async def test_session_that_nobody_comes_back_to_is_closed(autojump_clock: MockClock) -> None:
    """Its cells are other people's memory."""
    async with fake_swarm() as (swarm, client), AsyncExitStack():
        await ask(swarm, [1, 2, 3])
        await trio.sleep(IDLE_S_MAX / 2)
        assert swarm.pool.idle == 1
        await trio.sleep(IDLE_S_MAX)
        assert swarm.pool.idle == 0
        assert client.made.everything_is_free()


async def test_small_question_does_not_end_a_long_conversation(autojump_clock: MockClock) -> None:
    """Where a session must go, it is the one with the least to read again."""
    async with fake_swarm(sessions=2) as (swarm, _):
        long = list(range(3, 60))
        await ask(swarm, long)
        await ask(swarm, [70, 71, 72])
        await ask(swarm, [80, 81, 82])
        assert (await ask(swarm, [*long, 61])).reused_tokens >= len(long)
