"""``make fuzz``: throw inputs at everything that judges strangers' bytes, for as long as wanted."""

import argparse
import sys
import time
from random import Random

from tests.fuzz.targets import TARGETS, Target

FRAMES = 1_000_000
PROGRESS_S = 5.0


def case(name: str, seed: int, number: int) -> Random:
    """Return the generator of one input, independent of what ran before."""
    return Random(f"{name} {seed} {number}")


def try_one(name: str, target: Target, seed: int, number: int) -> None:
    """Make an input and judge it.

    Raises:
        AssertionError: it was judged wrongly; the text says how to repeat that.
    """
    given = target.make(case(name, seed, number))
    try:
        target.judge(given)
    except Exception as error:
        again = f"make fuzz TARGET={name} SEED={seed} CASE={number}"
        raise AssertionError(f"{error!r} of {given!r}\nAgain:  {again}") from error


def try_many(name: str, seed: int, count: int) -> None:
    """Try ``count`` inputs; raises as ``try_one``."""
    begun = told = time.monotonic()
    for number in range(count):
        try_one(name, TARGETS[name], seed, number)
        if (now := time.monotonic()) - told > PROGRESS_S:
            told = now
            sys.stderr.write(f"  {name}: {number:,} of {count:,}\n")
    sys.stderr.write(f"  {name}: {count:,} inputs hold, {time.monotonic() - begun:.0f} s\n")


def main() -> None:
    """Read what to try, and try it."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=FRAMES, help="inputs, of all targets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=TARGETS, help="one of them alone")
    parser.add_argument("--case", type=int, help="one input alone, which failed before")
    asked = parser.parse_args()
    names = [asked.target] if asked.target else list(TARGETS)
    for name in names:
        if asked.case is None:
            try_many(name, asked.seed, -(-asked.frames // len(names)))
        else:
            try_one(name, TARGETS[name], asked.seed, asked.case)


if __name__ == "__main__":
    main()
