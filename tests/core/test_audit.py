"""The verdict over several replays of a stage."""

import pytest

from p2pinfer.core.audit import THIS_MACHINE, Replayed, conclude, is_gone, is_settled
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.trust import Audited, AuditVerdict

STAGE, LAYERS = PeerId("stage"), LayerRange(4, 9)


def same(by: str) -> Replayed:
    """Return a replay that found the same bits."""
    return Replayed.same(by)


def close(by: str) -> Replayed:
    """Return another class's replay that found rows within bounds."""
    return Replayed.close(by, "1% apart at most")


def other(by: str, *, is_far: bool = True) -> Replayed:
    """Return a replay that found other rows from the 70th on."""
    return Replayed.cheated(by, STAGE, 70, "rows lie 9% apart", 96, is_far=is_far)


def unopened(by: str, blamed: PeerId | None = STAGE) -> Replayed:
    """Return a replay that did not get the rows."""
    return Replayed.not_opened(by, blamed, "it opened other rows")


@pytest.mark.parametrize(
    ("found", "settled"),
    [
        ([same("a")], True),
        ([close("a")], True),
        ([other("a")], False),
        ([other(THIS_MACHINE)], True),
        ([unopened("a")], True),
        ([other("a"), other("b")], True),
        ([other("a"), same("b")], False),
        ([other("a"), close("b")], False),
        ([other("a"), same("b"), close("c")], True),
        ([other("a"), same(THIS_MACHINE)], True),
    ],
)
def test_when_no_further_replay_is_needed(found: list[Replayed], settled: bool) -> None:
    """One that agrees is enough; one that differs is not, unless this machine ran it."""
    assert is_settled(found) is settled


@pytest.mark.parametrize(
    ("found", "verdict", "blamed"),
    [
        ([], AuditVerdict.NOT_REPLAYED, None),
        ([same("a")], AuditVerdict.SAME, None),
        ([close("a")], AuditVerdict.CLOSE, None),
        ([unopened("a")], AuditVerdict.NOT_OPENED, STAGE),
        ([unopened("a", None)], AuditVerdict.NOT_OPENED, None),
        # A single replay is not believed against the stage, whatever it found.
        ([other("a")], AuditVerdict.DISPUTED, None),
        ([other("a"), same("b")], AuditVerdict.SAME, None),
        # Two are believed, and so is this machine.
        ([other("a"), other("b")], AuditVerdict.CHEATED, STAGE),
        ([other(THIS_MACHINE)], AuditVerdict.CHEATED, STAGE),
        ([same("a"), other("b"), other("c")], AuditVerdict.CHEATED, STAGE),
        # An auditor that differs from the stage and two others, or this machine, lied.
        ([other("a"), same("b"), same("c")], AuditVerdict.SAME, "a"),
        ([other("a"), same(THIS_MACHINE)], AuditVerdict.SAME, "a"),
        ([other("a"), close("b"), close("c")], AuditVerdict.CLOSE, "a"),
        # Within bounds, only a replay with the stage's bits refutes.
        ([other("a", is_far=False), close("b"), close("c")], AuditVerdict.DISPUTED, None),
        ([other("a", is_far=False), close("b"), same("c")], AuditVerdict.SAME, "a"),
    ],
)
def test_the_verdict_over_replays(
    found: list[Replayed], verdict: AuditVerdict, blamed: str | None
) -> None:
    """It depends on which replays are believed, and names the peer to blame."""
    concluded = conclude(STAGE, LAYERS, found)
    assert (concluded.verdict, concluded.blamed) == (verdict, blamed)
    assert (concluded.peer, concluded.first, concluded.end) == (STAGE, 4, 9)
    assert concluded.by == tuple(each.by for each in found)


def test_a_cheat_is_located() -> None:
    """The first row that differs shows where."""
    concluded = conclude(STAGE, LAYERS, [other(THIS_MACHINE)])
    assert (concluded.position, concluded.text) == (70, "rows lie 9% apart")


@pytest.mark.parametrize(
    ("found", "gone"), [(unopened("a", None), True), (unopened("a"), False), (same("a"), False)]
)
def test_a_stage_that_died_is_not_blamed(found: Replayed, gone: bool) -> None:
    """It could not open its rows, and another has to take its place."""
    audited: Audited = conclude(STAGE, LAYERS, [found])
    assert is_gone(audited) is gone
