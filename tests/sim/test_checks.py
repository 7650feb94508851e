"""How a run is judged: peers of two numerics classes, cheats, and ledgers."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from attrs import evolve

from p2pinfer.core.ids import PeerId
from p2pinfer.core.ledger import LedgerEntry
from p2pinfer.core.trust import Audited, AuditVerdict
from sim.checks import check_ledger
from sim.clock import run_virtual
from sim.questions import judge_audit
from sim.record import RunRecord
from sim.run import Outcome, run_scenario
from sim.scenario import LiarsTable, ModelTable, PeersTable, RequestsTable, Scenario
from sim.toml_schema import Spread
from sim.world import World

PAIR = Scenario(
    about="holders of the same layers, of two kinds of machines; all is audited",
    duration_s=30.0,
    settle_s=20.0,
    calm_s=5.0,
    model=ModelTable(layers=6, layer_mb=0.1, context=128),
    peers=tuple(
        PeersTable(count=2, serves=(1, 5), layers=Spread(4, 4), numerics=number)
        for number in (0, 1)
    ),
    requests=RequestsTable(
        requesters=1,
        per_minute=24.0,
        prompt=Spread(4, 20),
        answer=Spread(2, 8),
        audit_rate=1.0,
    ),
)


STAGE, AUDITOR, OTHER, THIRD = (PeerId(name) for name in ("stage", "auditor", "other", "third"))


@pytest.mark.parametrize(
    ("by", "blamed", "liars", "framed"),
    [
        ((AUDITOR, OTHER), STAGE, {AUDITOR, OTHER}, True),
        ((AUDITOR, OTHER), STAGE, {AUDITOR}, False),
        ((AUDITOR, OTHER, THIRD), STAGE, {AUDITOR, THIRD}, True),
        ((AUDITOR, OTHER, THIRD), STAGE, {AUDITOR}, False),
        ((AUDITOR, OTHER), AUDITOR, {STAGE, OTHER}, True),
        ((AUDITOR, OTHER), AUDITOR, {STAGE}, False),
        ((AUDITOR,), AUDITOR, {STAGE}, False),
    ],
)
def test_a_peer_outvoted_by_cheats_is_framed(
    by: tuple[PeerId, ...], blamed: PeerId, liars: set[PeerId], framed: bool
) -> None:
    """A stage, or an honest auditor: a limit of voting, not a fault; it is not asked again."""
    audited = Audited(STAGE, 1, 5, AuditVerdict.CHEATED, by, blamed=blamed)
    world: Any = SimpleNamespace(liars=liars, record=RunRecord(), always_lies=lambda _: False)
    requester: Any = SimpleNamespace(blamed=set())
    judge_audit(world, requester, audited, 0.0)
    assert world.record.events["framed"] == framed
    assert len(world.record.violations) == (not framed)
    assert requester.blamed == {blamed}


def verdicts(outcome: Outcome) -> set[str]:
    """Return the outcomes of audits."""
    return {name for name in outcome.record.events if name.startswith("audit: ")}


def test_another_numerics_class_is_close_and_no_peer_is_blamed() -> None:
    """Peers that round differently send other bits, within the bounds; answers are right."""
    outcome = run_scenario(PAIR)
    assert outcome.is_good, outcome.record.violations
    assert any("bounds" in name or "apart" in name for name in verdicts(outcome)), verdicts(outcome)
    assert outcome.record.events["answered"] > 3


@pytest.mark.parametrize("kind", ["copies", "skips", "garbles"])
def test_a_cheat_is_caught_across_numerics_classes(kind: str) -> None:
    """One liar among four is caught by the others, whatever their class, and they are not."""
    outcome = run_scenario(evolve(PAIR, liars=(LiarsTable(kind=kind, share=0.25),)))
    assert outcome.is_good, outcome.record.violations
    assert outcome.record.events["caught"] > 0


def entry(**changes: Any) -> LedgerEntry:
    """Make an entry of 9 rows that one peer ran for another."""
    return evolve(LedgerEntry(PeerId("s"), PeerId("u"), b"terms", 1, 5, 9), **changes)


@pytest.mark.parametrize("served", [[], [entry(rows=8)], [entry(terms=b"other")]])
def test_unrecorded_work_is_a_violation(served: list[LedgerEntry]) -> None:
    """What was used must be recorded as served: all rows, of that session."""

    async def judge() -> RunRecord:
        world = World(PAIR, RunRecord())
        world.used, world.served = [entry()], served
        check_ledger(world)
        before = len(world.record.violations)
        world.served = [entry()]
        check_ledger(world)
        assert len(world.record.violations) == before
        return world.record

    assert [each.check for each in run_virtual(judge, 1).violations] == ["ledger"]


def test_random_is_not_touched() -> None:
    """A run leaves Python's shared generator as it was, and trio's, too."""
    run: Any = trio._core._run
    before = random.getstate(), run._r.getstate()
    run_scenario(evolve(PAIR, duration_s=1.0))
    assert (random.getstate(), run._r.getstate()) == before
