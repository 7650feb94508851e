"""Optimal placement for the weakest layer, by linear programming.

``python -m tests.support.placement_oracle SWARMS`` compares many more swarms than the tests do.
"""

import random
import statistics
import sys

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from p2pinfer.core.advertisement import Advertisement, State
from p2pinfer.core.layer_range import LayerRange
from scheduler.coverage_value import STAGE_LAYERS
from tests.support.adverts import advert
from tests.support.settling import Game, play

SOLVER_GAP = 0.02
"""Within which the solver stops; its upper bound is used, so a slightly too strict yardstick.
No time limit: the yardstick is the same on a busy machine."""

FIRST = 1


def optimum(count: int, sizes: list[int], row_us: list[int]) -> float:
    """Return the best rate that the weakest layer can have, or a little more.

    One variable is that rate; the others are, for each peer and range, whether it is there.
    """
    places = [
        (peer, first, first + length)
        for peer, size in enumerate(sizes)
        for length in range(1, min(size, count) + 1)
        for first in range(count - length + 1)
    ]
    entries = [(layer, 0, -1.0) for layer in range(count)]
    for column, (peer, first, end) in enumerate(places, start=1):
        rate = 1e6 / (row_us[peer] * (end - first + STAGE_LAYERS))
        entries += [(layer, column, rate) for layer in range(first, end)]
        entries.append((count + peer, column, 1.0))
    rows, columns, values = (np.array(each) for each in zip(*entries, strict=True))
    shape = (count + len(sizes), len(places) + 1)
    low = np.zeros(shape[0])
    high = np.concatenate([np.full(count, np.inf), np.ones(len(sizes))])
    most = np.append(np.inf, np.ones(len(places)))
    found = milp(
        -np.eye(1, shape[1])[0],
        constraints=LinearConstraint(coo_array((values, (rows, columns)), shape), low, high),
        integrality=np.append(0, np.ones(len(places))),
        bounds=Bounds(0, most),
        options={"mip_rel_gap": SOLVER_GAP},
    )
    return -float(found.mip_dual_bound)


def draw(chance: random.Random) -> tuple[int, list[int], list[int]]:
    """Draw a model's layers and up to twelve peers' sizes and speeds that can hold them."""
    while True:
        count = chance.randint(4, 8)
        peers = chance.randint(2, 12)
        sizes = [chance.randint(1, count) for _ in range(peers)]
        row_us = [round(100 * 15 ** chance.random()) for _ in range(peers)]
        if sum(sizes) >= count:
            return count, sizes, row_us


def start(
    count: int, sizes: list[int], row_us: list[int], chance: random.Random, *, join: bool
) -> list[Advertisement]:
    """Let all join at once, or begin in any places."""
    swarm = []
    for n, (size, us) in enumerate(zip(sizes, row_us, strict=True)):
        if join:
            state, first, end = State.JOINING, 0, 0
        else:
            held = chance.randint(1, size)
            first = FIRST + chance.randint(0, count - held)
            state, end = State.SERVING, first + held
        swarm.append(advert(f"p{n}", first, end, state=state, layers_max=size, row_us=us))
    return swarm


def compare(chance: random.Random) -> tuple[float, list[Game]]:
    """Draw a swarm; return its optimum, and games from two starts with two ways to decide."""
    count, sizes, row_us = draw(chance)
    layers = LayerRange(FIRST, FIRST + count)
    games = [
        play(start(count, sizes, row_us, chance, join=join), layers, chance, lag)
        for join in (False, True)
        for lag in (None, 1)
    ]
    return optimum(count, sizes, row_us), games


def main() -> None:
    """Print, for each way to start and to decide, how close to the optimum swarms settle."""
    chance = random.Random(0)
    found = [compare(chance) for _ in range(int(sys.argv[1]))]
    for column, name in enumerate(("in turn", "at once, stale", "joining", "joining, stale")):
        games = [games[column] for _, games in found]
        ratios = sorted(game.worst / best for (best, _), game in zip(found, games, strict=True))
        print(  # noqa: T201
            f"{name:15} of the optimum: median {statistics.median(ratios):.3f}, a tenth below "
            f"{ratios[len(ratios) // 10]:.3f}; rounds at most {max(g.last_move for g in games)}; "
            f"moves per peer {statistics.mean(g.moves / len(g.swarm) for g in games):.2f}; "
            f"holes opened {sum(g.opened for g in games)}, left {sum(not g.covered for g in games)}"
        )


if __name__ == "__main__":
    main()
