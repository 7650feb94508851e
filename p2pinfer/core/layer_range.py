"""Ranges of layers: half-open, as ``range`` is."""

from collections.abc import Iterable
from typing import Self

from attrs import frozen


@frozen(order=True)
class LayerRange:
    """The layers from ``first`` to the one before ``end``; none of them where the two are equal.

    Raises ValueError if there is no such range.
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
        """Write it as people type it."""
        return f"{self.first}:{self.end}"

    @classmethod
    def joined(cls, layers: Iterable[int]) -> list[Self]:
        """Fold layers, in their order, into as few ranges as there can be."""
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
        """Whether another range lies within this one."""
        return self.first <= other.first and other.end <= self.end

    def within(self, bounds: "LayerRange") -> "LayerRange":
        """Return the part that lies within some bounds; an empty range if none does."""
        first = min(max(self.first, bounds.first), bounds.end)
        return LayerRange(first, max(first, min(self.end, bounds.end)))

    def lacking(self, held: Iterable["LayerRange"]) -> list[int]:
        """Return its layers that none of some other ranges holds."""
        named = {layer for other in held for layer in other.each()}
        return [layer for layer in self.each() if layer not in named]
