"""How the memory that a machine lends is divided among the models that it serves."""

from collections.abc import Sequence

from attrs import frozen


@frozen
class Appetite:
    """What one model can do with memory."""

    least: int
    """Bytes without which it is not served at all: a worker, and one layer with its sessions."""
    most: int
    """Bytes with which all of its layers are served; more is of no use."""


def divide(total: int, appetites: Sequence[Appetite]) -> list[int]:
    """Return the bytes of each model: as equal as what each needs and can use allows.

    What a small model leaves goes to the others. The shares add up to ``total`` at most.

    Raises:
        ValueError: not all of them get their least.
    """
    if sum(each.least for each in appetites) > total:
        raise ValueError("they need more")
    low, high = 0, total  # the level to which each is filled, where it may be
    while low < high:
        level = (low + high + 1) // 2
        if sum(_filled(each, level) for each in appetites) <= total:
            low = level
        else:
            high = level - 1
    return [_filled(each, low) for each in appetites]


def _filled(appetite: Appetite, level: int) -> int:
    return max(appetite.least, min(appetite.most, level))
