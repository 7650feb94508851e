"""Swarms without a master come close to an omniscient planner."""

import random
import statistics

from scheduler.coverage_value import STAGE_LAYERS
from tests.support.placement_oracle import compare, optimum

SWARMS = 12
ROUNDS_MAX = 60


def test_near_the_optimum() -> None:
    """Whole, settled, and at 0.9 of the optimum or more in most swarms, however they decide."""
    chance = random.Random(3)
    found = [compare(chance) for _ in range(SWARMS)]
    for column in range(4):
        games = [(best, games[column]) for best, games in found]
        assert all(game.covered and not game.opened for _, game in games)
        assert max(game.last_move for _, game in games) <= ROUNDS_MAX
        assert statistics.median(game.worst / best for best, game in games) >= 0.9
        assert all(game.worst <= best * (1 + 1e-6) for best, game in games)


def test_the_oracle_is_right() -> None:
    """It finds what can be seen by eye: two halves, and one peer that helps both."""
    half, whole = 1000 / (2 + STAGE_LAYERS), 1000 / (4 + STAGE_LAYERS)
    assert abs(optimum(4, [2, 2], [1000, 1000]) - half) < 1e-3
    assert abs(optimum(4, [2, 2, 4], [1000, 1000, 1000]) - half - whole) < 1e-3
