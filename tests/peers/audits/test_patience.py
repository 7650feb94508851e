"""Refusals to open rows: which cost a stage nothing, and how often."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.errors import UnsupportedModel
from p2pinfer.core.messages import Refusal
from p2pinfer.core.shown_layers import LayerBytes
from p2pinfer.core.trust import AuditVerdict, Unproved
from p2pinfer.engine.base import CannotCopy
from p2pinfer.engine.llama.tracing import check_traced
from peers.audits.patience import PUT_OFF_MAX
from peers.receipts.prover import RETRY_MS, Prover
from tests.support import fake_engines
from tests.support.fake_engines import ROW_BYTES
from tests.support.inspected import Inspected, Judge, inspected, verdicts
from tests.support.swarm import CHAINS, PROMPT, answer


async def refusing(
    it: Inspected,
    monkeypatch: pytest.MonkeyPatch,
    code: Refusal,
    retry_ms: int = 0,
    times: int = 99,
) -> None:
    """Have all stages refuse from now on, a number of times."""
    left, honest = times, Prover._show

    async def refuse(self: Prover, *given: Any, **named: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            await honest(self, *given, **named)
        else:
            raise self._no(code, "not now", retry_ms)

    monkeypatch.setattr(Prover, "_show", refuse)


async def test_a_busy_stage_is_asked_again_and_excused_some_times(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its standing, unless nothing else is ever heard of it."""
    async with inspected(bounds=CHAINS[1]) as it:
        await refusing(it, monkeypatch, Refusal.BUSY, RETRY_MS, times=1)
        begun = trio.current_time()
        assert verdicts(await it.examine(0.0, 1.0)) == [AuditVerdict.PROVED]
        assert trio.current_time() - begun == pytest.approx(RETRY_MS / 1000, abs=2)
        for code in (Refusal.BUSY, Refusal.TOO_SLOW):
            await refusing(it, monkeypatch, code, RETRY_MS)
            for _ in range(PUT_OFF_MAX):
                trust = await it.examine(0.0, 1.0)
                assert trust.unproved[0].why == "it refused: not now"
                await trio.sleep(200)
            assert not it.failed
            await it.examine(0.0, 1.0)
            assert len(it.failed) == 1
            await trio.sleep(200)
            monkeypatch.undo()
            assert verdicts(await it.examine(0.0, 1.0)) == [AuditVerdict.PROVED]
            it.failed.clear()


async def test_a_stage_that_is_always_late_is_excused_some_times(
    autojump_clock: MockClock,
) -> None:
    """Like a busy one."""
    async with inspected(bounds=CHAINS[1]) as it, it.made.open() as session:
        await answer(session, PROMPT)
        assert session.evidence
        assert await session.evidence.settle(len(session.tokens)) is None
        it.made.engines[0].machine.decode_s = 100.0
        stage = session.evidence.stages[0]
        last = stage.vouched(len(session.tokens)).receipts[len(session.tokens)]
        for tries in range(PUT_OFF_MAX + 1):
            assert len(it.failed) == 0, tries
            found = await it.inspector.prove(session.evidence, 0, last)
            assert isinstance(found, Unproved)
        assert len(it.failed) == 1


async def test_machines_that_cannot_open_lose_nothing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as none of their class did; or where sessions are too long for everybody."""
    judge = Judge(range(1, 29))
    async with inspected(judge, CHAINS[1]) as it:
        await refusing(it, monkeypatch, Refusal.CONTEXT_FULL)
        for _ in range(5):
            trust = await it.examine(0.0, 1.0)
            assert trust.unproved[0].why == "it refused: not now"
            await trio.sleep(200)
        assert not it.failed
        monkeypatch.undo()
        assert verdicts(await it.examine(0.0, 1.0)) == [AuditVerdict.PROVED]
        await refusing(it, monkeypatch, Refusal.CONTEXT_FULL)
        await it.examine(0.0, 1.0)
        assert len(it.failed) == 1, "another of its class could"
        judge.bytes = LayerBytes(ROW_BYTES, 14 * ROW_BYTES, 1 << 20)
        await it.examine(0.0, 1.0)
        assert len(it.failed) == 1


async def test_layers_with_experts_are_refused_in_plain_words_at_no_cost(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each asker hears why, every time, and the trust line says it as well."""
    with pytest.raises(UnsupportedModel) as closed:
        check_traced("llama", 8)

    async def cannot(_: object, positions: int) -> None:
        raise CannotCopy(str(closed.value))

    monkeypatch.setattr(fake_engines._FakeStageSession, "copy", cannot)
    async with inspected(bounds=CHAINS[1]) as it:
        for _ in range(PUT_OFF_MAX + 2):
            trust = await it.examine(0.0, 1.0)
            assert not trust.audits
            assert trust.held
            (line,) = {each for each in trust.details() if "was not proved" in each}
            assert line.endswith(f"it refused: {closed.value}.")
            assert "which experts run is not open" in line
            assert trust.chance(1) == 0.0
            await trio.sleep(200)
        assert not it.failed
