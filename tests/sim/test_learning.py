"""Whole tasks in virtual time: poison, deaths and slow members."""

import pytest

from p2pinfer.cli.learn import LESSONS
from p2pinfer.cli.rounds import RoundFlags
from sim.learning import ATTACKS, LearningScenario, run_learning

HARM_RATIO_MAX = 1.2
"""Of the honest members' final loss, to that of the same task without the poisoner."""

QUIET_LEFT_MAX = 0.05
"""Of the loss at first, where a poisoner keeps to the permitted length."""


def test_members_die_and_are_slow() -> None:
    """Two of six are gone and one misses all deadlines: the others agree, and learn."""
    found = run_learning(LearningScenario(rounds=5, group=3, deaths=2, slow=1, seed=4))
    assert found.died == 2
    assert not found.failed
    assert len(found.heads) == 4
    assert len(found.children) == 1
    assert found.loss_after < 0.8 * found.loss_before


def test_the_settings_are_those_of_the_command() -> None:
    """What is simulated is what a person gets who names no settings."""
    task = RoundFlags()
    scenario = LearningScenario()
    assert (scenario.rounds, scenario.group) == (task.rounds, task.group)
    assert (scenario.steps, scenario.outer_percent) == (task.steps, task.outer)
    assert scenario.rate == LESSONS.rate


def test_a_run_repeats() -> None:
    """The same scenario, the same groups, the same child."""
    scenario = LearningScenario(members=5, rounds=2, group=2)
    first, second = run_learning(scenario), run_learning(scenario)
    assert first.children == second.children


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_poisoner_of_six_does_little_harm(seed: int) -> None:
    """Whether it turns its update around, sends it fiftyfold, or teaches a lie.

    All is as ``p2pinfer learn --propose`` has it. Where a poisoner keeps to the permitted length no
    sum gives it away, and it does more: but most is learned all the same.
    """
    calm = run_learning(LearningScenario(members=5, seed=seed))
    assert calm.loss_after < 0.01 * calm.loss_before
    for attack in ATTACKS:
        scenario = LearningScenario(members=6, poisoners=1, attack=attack, seed=seed)
        found = run_learning(scenario)
        assert len(found.children) == 1
        if attack.startswith("quiet"):
            assert found.loss_after <= QUIET_LEFT_MAX * calm.loss_before, attack
        else:
            assert found.loss_after <= HARM_RATIO_MAX * calm.loss_after, attack


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_whoever_dies_the_rest_agrees(seed: int) -> None:
    """Deaths in phases that the seed draws, among slow members and poisoners."""
    scenario = LearningScenario(
        members=7, rounds=4, group=2 + seed % 2, deaths=2, slow=1, poisoners=1, seed=seed
    )
    found = run_learning(scenario)
    assert found.died + len(found.heads) + len(found.failed) >= 6
    assert not found.failed
    assert len(found.children) == 1
