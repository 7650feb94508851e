"""In the calm at the end every question is answered, if all layers are served to its asker."""

from types import SimpleNamespace
from typing import Any

import pytest
from trio.testing import MockClock

from p2pinfer.core.ids import PeerId
from sim import questions
from sim.checks import check_last
from sim.record import AskedQuestion, RunRecord

CHEAT = PeerId("cheat")


@pytest.mark.parametrize(
    ("caught", "outcome", "violations"),
    [
        (set(), "answered", 0),
        (set(), "wrong", 0),
        (set(), "nobody", 1),
        (set(), "refused", 1),
        ({CHEAT}, "nobody", 0),
    ],
)
async def test_which_last_questions_must_be_answered(
    caught: set[PeerId],
    outcome: str,
    violations: int,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only a cheat serves some layers here: a requester that has caught it may go without."""

    async def ask(_world: object, _requester: object, question: AskedQuestion) -> None:
        question.outcome = outcome

    monkeypatch.setattr(questions, "ask", ask)
    world: Any = SimpleNamespace(
        requesters=[SimpleNamespace(number=0, blamed=caught)],
        record=RunRecord(),
        is_covered=lambda but: CHEAT not in but,
    )
    for question in await questions.ask_last(world):
        check_last(question, world)
    assert len(world.record.violations) == violations
