"""Ranges of layers, half-open: joined, and formatted for people."""

from collections.abc import Iterable, Sequence

from p2pinfer.core.advertisement import Advertisement

Layers = tuple[int, int]
"""First and end (exclusive)."""


def ranges(layers: Sequence[int]) -> list[Layers]:
    """Fold sorted layers into half-open ranges."""
    found: list[Layers] = []
    for layer in layers:
        if found and found[-1][1] == layer:
            found[-1] = (found[-1][0], layer + 1)
        else:
            found.append((layer, layer + 1))
    return found


def lacking(layers: Layers, said: Iterable[Advertisement]) -> list[int]:
    """Return the layers of a range that no advertisement covers."""
    named = {layer for a in said for layer in range(a.first, a.end)}
    return [layer for layer in range(*layers) if layer not in named]


def words(layers: Layers) -> str:
    """Write a range the way people type it."""
    return f"{layers[0]}:{layers[1]}"
