"""Which groups' sums a model takes over, and where it moves: the same numbers on every machine.

Members judge each sum by their own held-out lessons. Of the changes that they report the mean of
the middle counts, without the quarter that gained most and the quarter that lost most. Where facts
of one member are of no use to the others, an honest sum helps few much and costs the rest a little:
a vote, and the median too, refuse it as often as a poisoned one; and one liar can move a mean.
A sum that is longer than honest updates can add up to is left out, and what is left of another
poisoned one is bounded by its length, which is cut to the median of the sums' lengths, of two to
the shorter (SHARE, arXiv 2110.02940, draws groups so that robust rules need no single updates).

Numbers are whole, in units of 2^-16 of a weight of the adapter.
"""

from collections.abc import Mapping, Sequence
from math import fsum, sqrt
from statistics import median_low
from typing import Final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from p2pinfer.core.learning import Digest, RoundStatement

UNIT: Final = 2.0**-16
"""A number of 24 bits is exact in float32, so it is the same number in the child's file."""

NUMBER_MAX: Final = (1 << 24) - 1
UPDATE_MAX: Final = (1 << 15) - 1
"""Of one number of one member's update: what the encrypted sums are made for."""

HARM_MAX: Final = 0.01
"""By how much a sum may raise the middle members' losses, in parts of them."""

BEST_SHARE_MIN: Final = 0.25
"""Of the gain of the sum that helps most: one that helps far less than that is as likely poisoned
as of use. Honest sums helped half as much or more while there was much to learn."""

TRIMMED: Final = 0.25
"""The share of judges left out at each end, one at least: as many may lie."""

LOSS_LEAST: Final = 50_000
"""Changes are parts of the loss before, or of this (in millionths): smaller losses are noise."""

_BLOCK: Final = 1 << 16
"""Numbers whose squares are added up at once: those of 64 members fit into 64 bits."""

Numbers = NDArray[np.int32]


@frozen
class GroupSum:
    """A group's sum."""

    numbers: Numbers
    updates: int
    """How many were added."""


def accepted(judgements: Sequence[RoundStatement]) -> list[Digest]:
    """Return the sums that more than half of the judges have judged, and that are of use.

    They do no harm, and help about as much as the one that helps most.
    """
    changes: dict[Digest, list[float]] = {}
    for said in judgements:
        before, *after = said.losses
        for digest, loss in zip(said.listed, after, strict=True):
            changes.setdefault(digest, []).append((loss - before) / max(before, LOSS_LEAST))
    middles = {
        digest: middle(found)
        for digest, found in sorted(changes.items())
        if 2 * len(found) > len(judgements)
    }
    best = min(middles.values(), default=0.0)
    limit = BEST_SHARE_MIN * best if best < 0 else HARM_MAX
    return [digest for digest, change in middles.items() if change <= limit]


def middle(changes: Sequence[float]) -> float:
    """Return the mean of the changes without the extreme ones at both ends."""
    trim = min(max(1, int(TRIMMED * len(changes))), (len(changes) - 1) // 2)
    kept = sorted(changes)[trim : len(changes) - trim]
    return fsum(kept) / len(kept)


def length(numbers: Numbers) -> float:
    """Return the Euclidean norm, in units; the squares add up exactly."""
    total = 0
    for at in range(0, len(numbers), _BLOCK):
        block = numbers[at : at + _BLOCK].astype(np.int64)
        total += int((block * block).sum())
    return sqrt(total)


def is_possible(found: GroupSum, clip: int) -> bool:
    """Whether updates of the permitted length add up to a sum; if not, somebody sent a longer one.

    Args:
        found: the sum.
        clip: the longest update of one member.
    """
    largest = int(np.abs(found.numbers).max(initial=0))
    return largest <= UPDATE_MAX * found.updates and length(found.numbers) <= clip * found.updates


def shortened(update: NDArray[np.float32], clip: int) -> Numbers:
    """Return an update in units, no longer than ``clip``, and each number within its bounds."""
    units = update.astype(np.float64) / UNIT
    norm = float(np.sqrt((units * units).sum()))
    if norm > clip:
        units *= clip / norm
    return np.clip(np.trunc(units), -UPDATE_MAX, UPDATE_MAX).astype(np.int32)


def moved(
    head: Numbers, sums: Mapping[Digest, GroupSum], take: Sequence[Digest], clip: int, percent: int
) -> Numbers:
    """Return the model's new numbers.

    Args:
        head: the numbers before.
        sums: all groups'.
        take: those that are accepted.
        clip: the longest update of one member.
        percent: how far to move along the mean.
    """
    if not take:
        return head.copy()
    means = {digest: length(each.numbers) / each.updates for digest, each in sums.items()}
    longest = min(float(clip), median_low(means.values()))
    updates = sum(sums[digest].updates for digest in take)
    change = np.zeros(len(head), np.float64)
    for digest in sorted(take):
        mean = means[digest]
        gain = percent / 100 / updates * (longest / mean if mean > longest else 1.0)
        change += sums[digest].numbers.astype(np.float64) * gain
    found = head.astype(np.float64) + np.rint(change)
    return np.clip(found, -NUMBER_MAX, NUMBER_MAX).astype(np.int32)


def as_weights(numbers: Numbers) -> NDArray[np.float32]:
    """Return the trained half of the adapter, exactly."""
    return numbers.astype(np.float32) * np.float32(UNIT)
