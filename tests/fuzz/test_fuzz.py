"""One hundredth of what ``make fuzz`` throws at the same places."""

import pytest
from attrs import evolve

from p2pinfer.core.opening import BadOpening, check_roots
from tests.fuzz import openings
from tests.fuzz.__main__ import try_many, try_one
from tests.fuzz.targets import TARGETS, Target

INPUTS = 10_000
SEED = 7
"""Not that of ``make fuzz``, so that the two do not try the same inputs."""


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_judged(name: str) -> None:
    """What is accepted is what it claims to be, and anything else is properly refused."""
    try_many(name, SEED, INPUTS // len(TARGETS))


def test_a_failure_can_be_repeated() -> None:
    """It names the command, which tries the same input."""
    tried: list[int] = []
    target = Target(lambda chance: chance.randrange(1 << 30), tried.append)
    hits = Target(target.make, lambda given: tried.append(1 // (given - tried[0])))
    try_one("codec", target, SEED, 5)
    with pytest.raises(AssertionError, match=f"make fuzz TARGET=codec SEED={SEED} CASE=5"):
        try_one("codec", hits, SEED, 5)


def test_nothing_is_shown_that_nothing_binds() -> None:
    """A layer whose K and V are not shown has no hash of what lies behind them either."""
    opening = openings.honest(by_layers=True).openings[0]
    (at,) = (at for at, each in enumerate(opening.layers) if not each.keys)
    layers = list(opening.layers)
    layers[at] = evolve(layers[at], tail=b"t" * 32)
    check_roots(opening)
    with pytest.raises(BadOpening, match="a hash is shown of K and V that are not"):
        check_roots(evolve(opening, layers=tuple(layers)))
