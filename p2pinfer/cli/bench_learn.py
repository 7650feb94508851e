"""``p2pinfer bench learn``."""

import json
from typing import Annotated

from p2pinfer.cli.options import AsJson, option
from p2pinfer.cli.sizes import check_range


def learn(
    *,
    seeds: Annotated[int, option("seeds", "Simulated tasks of each kind.")] = 3,
    rounds: Annotated[int, option("rounds", "Rounds of each task.")] = 8,
    members: Annotated[int, option("members", "Honest members of each task.")] = 5,
    numbers: Annotated[
        int, option("numbers", "Numbers of the updates whose encrypted sum is timed.")
    ] = 165_888,
    as_json: AsJson = False,
) -> None:
    """Measure learning together: what poison, deaths and slow members cost, and what hiding does.

    Tasks are simulated in virtual time, on small layers, with the code that real members run.
    """
    from p2pinfer.bench.learn import NUMBERS_MAX, learn_bench
    from sim.learning import MEMBERS_MAX, ROUNDS_MAX

    check_range("seeds", seeds, 1)
    check_range("rounds", rounds, 1, ROUNDS_MAX)
    check_range("members", members, 3, MEMBERS_MAX)
    check_range("numbers", numbers, 1, NUMBERS_MAX)
    report = learn_bench(seeds, rounds, members, numbers)
    print(json.dumps(report, indent=None if as_json else 2))
