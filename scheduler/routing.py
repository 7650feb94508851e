"""Which chain of peers to take from the first layer that is needed to the last."""

from collections.abc import Iterable
from typing import Protocol, TypeVar


class Offer(Protocol):
    """A peer's word that it serves layers ``first`` up to but not including ``end``."""

    @property
    def peer(self) -> str:
        """Who offers."""
        ...

    @property
    def first(self) -> int:
        """Its first layer."""
        ...

    @property
    def end(self) -> int:
        """The layer behind its last."""
        ...


O = TypeVar("O", bound=Offer)  # noqa: E741 -- an offer


class NoRoute(LookupError):
    """No chain of offers joins up; the text says what is missing."""


def find_route(offers: Iterable[O], first: int, end: int) -> list[O]:
    """Return the chain of fewest peers whose ranges join up from ``first`` to ``end``.

    Among equals the peers' ids decide, so that the same view gives the same route.

    Raises:
        NoRoute: no offers join up.
    """
    if first == end:
        return []
    usable = sorted(
        (offer for offer in offers if first <= offer.first < offer.end <= end),
        key=lambda offer: (offer.first, -offer.end, offer.peer),
    )
    best: dict[int, list[O]] = {first: []}  # the shortest chain found that ends at a layer
    for offer in usable:
        before = best.get(offer.first)
        if before is None:
            continue
        known = best.get(offer.end)
        if known is None or len(before) + 1 < len(known):
            best[offer.end] = [*before, offer]
    if end not in best:
        raise NoRoute(_missing(usable, best, first, end))
    return best[end]


def _missing(usable: list[O], best: dict[int, list[O]], first: int, end: int) -> str:
    """Say in words why nothing joins up."""
    served = {layer for offer in usable for layer in range(offer.first, offer.end)}
    holes = [layer for layer in range(first, end) if layer not in served]
    if holes:
        ranges = ", ".join(f"{a}:{b}" for a, b in _ranges(holes))
        return f"nobody serves layers {ranges}"
    return (
        f"the ranges that peers serve do not join up: they reach layer {max(best)} of {first}:{end}"
    )


def _ranges(layers: list[int]) -> list[tuple[int, int]]:
    """Fold sorted layers into half-open ranges."""
    found: list[tuple[int, int]] = []
    for layer in layers:
        if found and found[-1][1] == layer:
            found[-1] = (found[-1][0], layer + 1)
        else:
            found.append((layer, layer + 1))
    return found
