"""Blocks among peers: if one cannot run them, none are sent, and no other peer is blamed."""

import msgpack
import pytest
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.audit import THIS_MACHINE
from p2pinfer.core.messages import Open, Refusal, Step
from p2pinfer.core.regimes import Regime
from p2pinfer.core.trust import AuditVerdict
from p2pinfer.core.wire import decode, encode
from peers.audits.replay import EngineReplay
from peers.serving.stage_session import StageSession
from peers.steps.messaging import RefusedError, receive
from tests.peers.asking.test_recovery import harmed, mended
from tests.support.audits import FIRST, OWN, SECOND, case
from tests.support.fake_engines import FakeEnds, FakeLayers
from tests.support.swarm import (
    CHAINS,
    CONTEXT,
    GOOD_ROW,
    ME,
    MODEL,
    PROMPT,
    Talk,
    answer,
    expected,
    session_id,
    swarm,
)

OPEN = Open(session_id(), MODEL, ME, ME, 1, 10, CONTEXT)


def regimes(monkeypatch: pytest.MonkeyPatch) -> list[Regime]:
    """Record the regimes in which engines are asked to run rows."""
    found: list[Regime] = []
    run = FakeLayers.run

    def noted(layers: FakeLayers, at: int, inputs: list[bytes], *, regime: Regime) -> list[bytes]:
        found.append(regime)
        return run(layers, at, inputs, regime=regime)

    monkeypatch.setattr(FakeLayers, "run", noted)
    return found


def test_older_peers_read_messages_without_blocks() -> None:
    """An opening without blocks has the fields it had before blocks existed."""
    assert len(msgpack.unpackb(encode(OPEN))) == 1 + 10
    with_blocks = evolve(OPEN, blocks=True)
    assert len(msgpack.unpackb(encode(with_blocks))) == 1 + 11
    assert [decode(encode(each), Open) for each in (OPEN, with_blocks)] == [OPEN, with_blocks]
    steps = [Step(1, 0, 1, each, GOOD_ROW) for each in Regime]
    assert [msgpack.unpackb(encode(step))[4] for step in steps] == [False, True, 2]
    assert [decode(encode(step), Step) for step in steps] == steps


@pytest.mark.parametrize("length", [48, 49, 64, 120])
async def test_only_long_prompts_run_in_blocks(
    length: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short prompt runs as before, and each answer is what the engines give in those regimes."""
    found = regimes(monkeypatch)
    async with swarm() as made, made.open() as session:
        told = await answer(session, PROMPT[:length])
        assert (Regime.BLOCK in found) == (length > 48)
        assert told == await expected(PROMPT[:length], 20, CHAINS[3])


@pytest.mark.parametrize("lacking", [0, 2, None])
async def test_blocks_are_not_sent_if_one_side_cannot_run_them(
    lacking: int | None, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stage, or the requester's own ends, keeps blocks out of the whole session."""
    found, ends = regimes(monkeypatch), FakeEnds(context=CONTEXT)
    async with swarm(ends=ends) as made:
        if lacking is None:
            ends.blocks = False
        else:
            made.engines[lacking].blocks = False
        async with made.open() as session:
            told = await answer(session, PROMPT)
            assert Regime.BLOCK not in found
            assert told == await expected(PROMPT, 20, CHAINS[3], blocks=False)
            assert [stage.sessions for stage in made.stages] == [1, 1, 1]


async def test_a_replacement_must_run_blocks(autojump_clock: MockClock) -> None:
    """One that cannot is passed over, and the answer is the same as without the loss."""
    async with mended() as (made, spares):
        (await spares.add(10, 20)).blocks = False
        await spares.add(10, 20)
        assert await harmed(spares, 5, made.leave[1]) == await expected(PROMPT, 30, CHAINS[3])
        assert spares.routes[-1][1] == spares.hops[1].peer


async def test_a_replacement_runs_all_regimes_again(autojump_clock: MockClock) -> None:
    """Two turns, in blocks, wide and narrow: the replacement computes the same bits."""
    async with mended() as (made, spares), spares.open() as session:
        longer = [*PROMPT, *await answer(session, PROMPT), *range(1, 70)]
        right = await answer(session, longer)
        await spares.add(10, 20)
        made.leave[1]()
        assert await answer(session, longer) == right


async def test_audits_hold_with_all_regimes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are run again in their original regimes, by an auditor that runs them all."""
    monkeypatch.setattr("tests.support.audits.PROMPT", PROMPT[:100])
    replayed: list[Regime] = []
    run = EngineReplay.run

    async def noted(
        replay: EngineReplay, at: int, count: int, rows: bytes, *, regime: Regime
    ) -> bytes:
        replayed.append(regime)
        return await run(replay, at, count, rows, regime=regime)

    async def accuse(*_: object) -> None:
        pytest.fail("a peer that runs no blocks was sent one")

    monkeypatch.setattr(EngineReplay, "run", noted)
    monkeypatch.setattr(StageSession, "_accuse", accuse)
    async with case(FIRST, SECOND, OWN) as found:
        found.holders[0].blocks = False
        trust = await found.examine()
        assert trust.held
        assert [(each.verdict, each.by) for each in trust.audits] == [
            (AuditVerdict.SAME, (THIS_MACHINE,)),
            (AuditVerdict.SAME, (SECOND,)),
            (AuditVerdict.SAME, (THIS_MACHINE,)),
        ]
        assert set(replayed) == set(Regime)


@pytest.mark.parametrize(("regime", "rows"), [(Regime.WIDE, 49), (Regime.NARROW, 8)])
async def test_more_rows_than_a_regime_holds_are_refused(
    regime: Regime, rows: int, autojump_clock: MockClock
) -> None:
    """The sender is blamed: they would run in other kernels than it claims."""
    async with swarm((1, 29)) as made:
        talk = await Talk.open(made)
        await talk.send_step(0, rows * GOOD_ROW, rows, regime=regime)
        text = f"bad-request: a {regime.name.lower()} step has {rows} rows"
        with pytest.raises(RefusedError, match=text):
            await receive(talk.entry)
        await talk.close()


async def test_blocks_that_were_not_agreed_on_are_refused(autojump_clock: MockClock) -> None:
    """A requester that opens a session without them may not send any."""
    async with swarm((1, 29)) as made:
        talk = await Talk.open(made, blocks=False)
        await talk.send_step(0, GOOD_ROW, 1, regime=Regime.BLOCK)
        with pytest.raises(RefusedError, match="opened without blocks") as caught:
            await receive(talk.entry)
        assert caught.value.refused.code is Refusal.BAD_REQUEST
        await talk.close()
