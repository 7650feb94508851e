"""Ranges of layers, half-open: joined, and written for people."""

from collections.abc import Sequence

Layers = tuple[int, int]
"""The first, and the one behind the last."""


def ranges(layers: Sequence[int]) -> list[Layers]:
    """Fold sorted layers into half-open ranges."""
    found: list[Layers] = []
    for layer in layers:
        if found and found[-1][1] == layer:
            found[-1] = (found[-1][0], layer + 1)
        else:
            found.append((layer, layer + 1))
    return found


def words(layers: Layers) -> str:
    """Write a range as people type it."""
    return f"{layers[0]}:{layers[1]}"
