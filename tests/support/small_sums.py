"""Encrypted sums in a small ring: the same arithmetic, too small to hide anything."""

from collections.abc import Callable, Collection, Iterable
from random import Random

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.sums.member import SumMember
from p2pinfer.core.sums.parameters import STANDARD, SumParameters

SMALL = SumParameters(16, STANDARD.payload[:2], STANDARD.margin, STANDARD.modulus_bits_max)
"""32 numbers in a ciphertext of 576 bytes."""
CONTEXT = bytes(range(32))


def drawing(seed: int) -> Callable[[int], bytes]:
    """Return what draws the same bytes each time."""
    return Random(seed).randbytes


def members(
    count: int,
    threshold: int,
    numbers: int,
    parameters: SumParameters = SMALL,
    givers: Collection[int] | None = None,
    seed: int = 0,
) -> list[SumMember]:
    """Return members that have met and have settled whose keys count: all, or ``givers``."""
    found = [
        SumMember(CONTEXT, count, threshold, me, numbers, drawing(100 * seed + me), parameters)
        for me in range(count)
    ]
    hellos = {number: member.hello for number, member in enumerate(found)}
    for member in found:
        member.meet(hellos)
    chosen = range(count) if givers is None else givers
    for giver in chosen:
        for number, member in enumerate(found):
            if number != giver:
                member.take(giver, found[giver].public, found[giver].sealed_for(number))
    for member in found:
        if givers is None or member.taken >= set(chosen):
            member.close(chosen)
    return found


def encrypted(of: list[SumMember], numbers: dict[int, NDArray[np.int64]]) -> dict[int, bytes]:
    """Return what some members give."""
    return {number: of[number].encrypt(values) for number, values in numbers.items()}


def shares(of: list[SumMember], who: Iterable[int]) -> dict[int, bytes]:
    """Return the shares of some members among themselves."""
    sharers = list(who)
    return {number: of[number].share(sharers) for number in sharers}
