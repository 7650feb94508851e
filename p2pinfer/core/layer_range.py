"""Ranges of layers: half-open, like ``range``."""

from collections.abc import Iterable
from typing import Self

from attrs import frozen


@frozen(order=True)
class LayerRange:
    """The layers from ``first`` up to but not including ``end``; empty if the two are equal.

    Raises ValueError if ``first`` is negative or greater than ``end``.
    """

    first: int
    end: int

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.first <= self.end:
            raise ValueError(f"there is no range of layers {self}")

    def __len__(self) -> int:
        return self.end - self.first

    def __contains__(self, layer: int) -> bool:
        return self.first <= layer < self.end

    def __str__(self) -> str:
        """Format it the way people type it."""
        return f"{self.first}:{self.end}"

    @classmethod
    def joined(cls, layers: Iterable[int]) -> list[Self]:
        """Join layers, in the order given, into as few ranges as possible."""
        found: list[Self] = []
        for layer in layers:
            if found and found[-1].end == layer:
                found[-1] = cls(found[-1].first, layer + 1)
            else:
                found.append(cls(layer, layer + 1))
        return found

    def each(self) -> range:
        """Return its layers."""
        return range(self.first, self.end)

    def covers(self, other: "LayerRange") -> bool:
        """Whether ``other`` lies within this range."""
        return self.first <= other.first and other.end <= self.end

    def within(self, bounds: "LayerRange") -> "LayerRange":
        """Return the part that lies within ``bounds``; an empty range if none does."""
        first = min(max(self.first, bounds.first), bounds.end)
        return LayerRange(first, max(first, min(self.end, bounds.end)))

    def lacking(self, held: Iterable["LayerRange"]) -> list[int]:
        """Return its layers that none of the ``held`` ranges contains."""
        named = {layer for other in held for layer in other.each()}
        return [layer for layer in self.each() if layer not in named]
