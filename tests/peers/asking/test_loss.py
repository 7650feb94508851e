"""Peers and engines that go away or fall silent: the lost one is named, and no cells leak."""

from contextlib import aclosing

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.errors import EngineDied, PeerError, PeerUnavailable
from p2pinfer.core.messages import Open, Refusal, Refused
from peers.serving.stage_session import IDLE_S_MAX, LINKED_S_MAX
from peers.steps.limits import OPEN_S_MAX
from peers.steps.messaging import SESSION, RefusedError, receive, send
from tests.support.swarm import (
    CHAINS,
    GOOD_ROW,
    GREEDY,
    PEERS,
    PROMPT,
    Talk,
    answer,
    expected,
    open_by_hand,
    peer,
    swarm,
)
from transports.base import Channel


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_a_stage_that_leaves_is_named(lost: int, autojump_clock: MockClock) -> None:
    """The answer ends with an error that names the lost peer, and the others free their cells."""
    async with swarm() as made:
        made.network.latency_s = lambda a, b: 0.01
        async with made.open() as session, aclosing(session.generate(PROMPT, GREEDY, 99)) as tokens:
            for _ in range(3):
                await anext(tokens)
            made.leave[lost]()
            with pytest.raises((PeerUnavailable, RefusedError)) as caught:
                async for _ in tokens:
                    pass
            assert caught.value.peer == PEERS[lost]
            await trio.sleep(3)
            assert not any(s.sessions for n, s in enumerate(made.stages) if n != lost)


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_an_engine_that_dies_is_reported(lost: int, autojump_clock: MockClock) -> None:
    """The session ends with the name of the stage; a new one works."""
    async with swarm() as made:
        async with made.open() as session, aclosing(session.generate(PROMPT, GREEDY, 99)) as tokens:
            await anext(tokens)
            made.engines[lost].machine.die()
            with pytest.raises(RefusedError, match=r"engine-failed: .*died") as caught:
                async for _ in tokens:
                    pass
            assert caught.value.refused.peer == PEERS[lost]
        async with made.open(2) as session:
            assert await answer(session, PROMPT, 3) == await expected(PROMPT, 3, CHAINS[3])


async def test_death_of_the_requesters_own_engine_blames_no_peer(autojump_clock: MockClock) -> None:
    """The error is the engine's."""
    async with swarm() as made, made.open() as session:
        tokens = session.generate(PROMPT, GREEDY, 99)
        await anext(tokens)
        made.ends.machine.die()
        with pytest.raises(EngineDied):
            await anext(tokens)


async def test_an_idle_session_is_ended(autojump_clock: MockClock) -> None:
    """A requester that falls silent loses its cells after a while, and is told why."""
    async with swarm() as made, made.open() as session:
        await answer(session, PROMPT, 3)
        await trio.sleep(IDLE_S_MAX - 1)
        assert made.stages[0].sessions == 1
        await trio.sleep(2)
        assert [stage.sessions for stage in made.stages] == [0, 0, 0]
        with pytest.raises(RefusedError, match="idle"):
            await answer(session, PROMPT, 3)


async def test_a_requester_that_never_collects_loses_its_cells(autojump_clock: MockClock) -> None:
    """The last stage gives up, and with it the chain."""
    async with swarm() as made:
        controls = await open_by_hand(made)
        with trio.fail_after(LINKED_S_MAX + 1):
            for control in controls:
                with pytest.raises(RefusedError, match="too-slow"):
                    await receive(control)
        assert [stage.sessions for stage in made.stages] == [0, 0, 0]


async def test_a_silent_requester_is_refused(autojump_clock: MockClock) -> None:
    """A channel on which nothing arrives is closed with the reason."""
    async with swarm() as made:
        channel = await made.me.open(PEERS[0], SESSION)
        with trio.fail_after(OPEN_S_MAX + 1), pytest.raises(RefusedError, match="too-slow"):
            await receive(channel)


@pytest.mark.parametrize("deaf", [0, 1, 2])
async def test_a_stage_that_never_answers_is_named(deaf: int, autojump_clock: MockClock) -> None:
    """The requester learns which stage is silent, wherever it is in the chain."""

    async def ignore(_: Channel) -> None:
        await trio.sleep_forever()

    async with swarm() as made:
        made.network.peers[PEERS[deaf]].handle(SESSION, ignore)
        with trio.fail_after(2 * OPEN_S_MAX), pytest.raises(PeerError) as caught:
            await made.open().__aenter__()
        assert caught.value.peer == PEERS[deaf]


async def test_a_refusal_in_anothers_name_is_blamed_on_its_sender(
    autojump_clock: MockClock,
) -> None:
    """A peer that refuses cannot have another peer blamed for it."""
    no = Refused(Refusal.BUSY, "not today", peer("somebody"))

    async def refuse(channel: Channel) -> None:
        await receive(channel, Open)
        await send(channel, no)

    async with swarm() as made:
        made.network.peers[PEERS[2]].handle(SESSION, refuse)
        with pytest.raises(RefusedError) as caught:
            await made.open().__aenter__()
        assert caught.value.refused == evolve(no, peer=PEERS[2])


async def test_a_requester_that_vanishes_frees_all_stages(autojump_clock: MockClock) -> None:
    """Without a goodbye, in the middle of a prompt."""
    async with swarm() as made:
        async with made.network.join(peer("fickle")) as made.me:
            talk = await Talk.open(made)
            for number in range(3):
                await talk.send_step(48 * number, 48 * GOOD_ROW, 48)
        await trio.sleep(1)
        assert [stage.sessions for stage in made.stages] == [0, 0, 0]


async def test_leaving_under_load_is_clean(autojump_clock: MockClock) -> None:
    """A node that is stopped while its neighbours vanish too ends without an error."""
    async with swarm() as made:
        talk = await Talk.open(made)
        await talk.send_step(0, GOOD_ROW, 1)
        for leave in made.leave:
            leave()
