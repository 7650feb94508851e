"""Audits of a session that begins with what another one holds, as if it had read it itself."""

import pytest
from trio.testing import MockClock

from p2pinfer.core.errors import EngineError
from p2pinfer.core.trust import AuditVerdict, Trust
from peers.asking.session import Beginning
from peers.audits.auditor import Auditor
from tests.support.audits import OWN, Case, at_70, case, cheat
from tests.support.fake_engines import FakeLayers
from tests.support.swarm import CONTEXT, PROMPT, answer, session_id

SHARED = 96
OTHER = [*PROMPT[:SHARED], 7, 8, 9, 10, 11, 12]


async def examined(found: Case) -> tuple[Trust, list[int]]:
    """Return what an audit of a copy finds, and how many rows each stage says it computed."""
    made = found.made
    auditor = Auditor(found.find, 1.0, on_fraud=found.proofs.append)
    async with made.open() as parent:
        await answer(parent, PROMPT)
        beginning = Beginning(parent, SHARED)
        async with made.requester.open(
            made.route, session_id(1), CONTEXT, None, beginning
        ) as session:
            await answer(session, OTHER)
            assert session.evidence
            position = len(session.tokens)
            trust = await auditor.examine(session.evidence, position)
            return trust, [entry.rows for entry in session.evidence.work(position)]


async def test_honest_stages_pass(autojump_clock: MockClock) -> None:
    """Receipts cover all positions, in their regimes; only what is new counts as work."""
    async with case(OWN) as found:
        trust, work = await examined(found)
        assert trust.held
        assert trust.positions == len(OTHER) + 19
        assert [each.verdict for each in trust.audits] == [AuditVerdict.SAME] * 3
        assert work == [len(OTHER) - SHARED + 19] * 3


async def test_a_wrong_row_of_the_parent_is_found(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage answers for what it took over as for what it computes."""
    async with case(OWN) as found:
        cheat(found.made.engines[1], at_70, monkeypatch)
        trust, _ = await examined(found)
        audit, cheater = trust.audits[1], found.made.route[1].peer
        assert (audit.verdict, audit.blamed, audit.position) == (
            AuditVerdict.CHEATED,
            cheater,
            70,
        )
        assert [each.accused for each in found.proofs] == [cheater]


async def test_a_stage_that_only_claims_to_have_taken_over_is_found(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on from other cells; its first new row gives it away."""

    def pretend(layers: FakeLayers, parent: FakeLayers, length: int) -> None:
        if length >= len(parent._digests):
            raise EngineError("too few")
        layers._digests = [parent._digests[0]] * (length + 1)

    async with case(OWN) as found:
        monkeypatch.setattr(FakeLayers, "inherit", pretend)
        trust, _ = await examined(found)
        assert {each.verdict for each in trust.audits} == {AuditVerdict.CHEATED}
        assert {each.position for each in trust.audits} == {SHARED}
