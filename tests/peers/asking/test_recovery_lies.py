"""A session is repaired although peers that should help lie."""

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.errors import NoReplacement
from p2pinfer.core.messages import Step
from peers.asking.repair import WAIT_S_MAX
from peers.steps.outbox import Outbox
from tests.peers.asking.test_recovery import SPARES, harmed, mended
from tests.support.swarm import CHAINS, PEERS, PROMPT, answer, expected


async def test_a_peer_that_keeps_refusing_is_not_asked_for_ever(autojump_clock: MockClock) -> None:
    """It advertises layers but never serves: the answer ends as if no peer were there."""
    async with mended() as (made, spares), spares.open() as session:
        (await spares.add(10, 20)).machine.sessions = 0
        await answer(session, PROMPT, 3)
        made.leave[1]()
        with trio.fail_after(2 * WAIT_S_MAX), pytest.raises(NoReplacement, match="took over"):
            await answer(session, PROMPT)


async def test_a_step_that_was_never_sent_is_not_answered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last stage that counts ahead is replaced: otherwise its successor's steps are ignored."""
    put, lies = Outbox.put, [5]

    def put_ahead(self: Outbox, step: Step) -> None:
        if len(step.decoding_us) == 3 and step.number in lies:  # comes from the last of three
            lies.clear()
            step = evolve(step, number=1 << 61)
        put(self, step)

    monkeypatch.setattr(Outbox, "put", put_ahead)
    async with mended() as (_, spares):
        await spares.add(20, 29)
        assert await harmed(spares, 99, lambda: None) == await expected(PROMPT, 30, CHAINS[3])
        assert spares.routes[-1] == [*PEERS[:2], SPARES[0]]


async def test_a_stage_with_steps_never_sent_is_replaced(autojump_clock: MockClock) -> None:
    """A stage that got such a number from the one before, or claims it, would be sent nothing."""
    async with mended() as (made, spares):
        await spares.add(1, 10)
        await spares.add(10, 20)

        def harm() -> None:
            (served,) = made.stages[1]._sessions.values()
            served._received = 1 << 61
            made.leave[0]()

        assert await harmed(spares, 5, harm) == await expected(PROMPT, 30, CHAINS[3])
        assert spares.routes[-1] == [*SPARES[:2], PEERS[2]]
