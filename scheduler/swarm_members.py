"""The peers of a swarm that one of them counts on, itself last: for placement."""

from functools import cached_property
from typing import Self

import numpy as np
from attrs import evolve, frozen

from p2pinfer.core.advertisement import Advertisement, State
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.ways import is_behind_relays, relays_in
from scheduler.coverage_value import Cover, cover_of, worth_of
from scheduler.offer_table import (
    ROW_US_DEFAULT,
    STANDING_NEW,
    US_PER_S,
    Experience,
    Flags,
    Floats,
    OfferTable,
    Whole,
    believed_row_us,
    peer_key,
)

STANDING_MIN = 0.2
"""Peers below this are not counted on: a range that only they hold is a hole."""

JOINING_S_MAX = 900.0
"""A peer joining for longer is not counted on; gigabytes over a slow line take a while."""


@frozen
class Members:
    """A row for each peer; ranges lie within the layers that the swarm is to cover.

    Peers that are leaving, or are not to be counted on, are left out.
    """

    lo: int
    hi: int
    key: Whole
    first: Whole
    end: Whole
    speed: Floats
    """In parts of what it would take to serve a layer at its even share of the total."""
    size: Whole
    """How many layers fit into its memory."""
    serving: Flags
    joining: Flags
    fate: Whole
    """Peers of one number end together: a relay, and those that are called through it alone."""
    is_sample: bool
    """There are other peers, of which nothing is known."""

    @classmethod
    def of(cls, view: OfferTable, own: Advertisement, layers: LayerRange, seen: Experience) -> Self:
        """Take in all peers of a view, and its owner."""
        joining = view.is_state(State.JOINING)
        joining &= view.fill(seen.joining_s, 0.0) <= JOINING_S_MAX
        some = view.is_state(State.SERVING) | joining
        some &= view.fill(seen.standing, STANDING_NEW) >= STANDING_MIN
        row = view.row_of(own.peer)
        if row is not None:
            some[row] = False

        def column(name: str, last: int) -> Whole:
            return np.append(view.column(name)[some], last)

        first, end = column("first", own.first), column("end", own.end)
        size = np.maximum(column("layers_max", own.layers_max), np.maximum(end - first, 1))
        # Who begins before the layers cannot be entered at their first one: no chain has it.
        end = np.where(first < layers.first, first, end)
        first = np.clip(first, layers.first, layers.end)
        end = np.maximum(np.minimum(end, layers.end), first)
        relays = relays_in(own.addresses) if is_behind_relays(own.addresses) else ()
        lone_relay = column("lone_relay", peer_key(relays[0]) if len(relays) == 1 else 0)
        key = column("key", peer_key(own.peer))
        row_us = np.append(believed_row_us(view, seen)[some], own.row_us or ROW_US_DEFAULT)
        speed = US_PER_S / row_us
        return cls(
            layers.first,
            layers.end,
            key=key,
            first=first,
            end=end,
            speed=speed / (speed.sum() / len(layers)),
            size=np.minimum(size, len(layers)),
            serving=np.append(view.is_state(State.SERVING)[some], own.state is State.SERVING),
            joining=np.append(joining[some], own.state is State.JOINING),
            fate=np.where(lone_relay != 0, lone_relay, key),
            is_sample=seen.is_sample,
        )

    @property
    def present(self) -> LayerRange:
        """Where the view's owner is."""
        return LayerRange(int(self.first[-1]), int(self.end[-1]))

    def cover(self, some: Flags | slice) -> Cover:
        """Return the cover by some peers."""
        fate = self.fate[some] if self.share_fates else None
        return cover_of(self.lo, self.hi, self.first[some], self.end[some], self.speed[some], fate)

    @cached_property
    def share_fates(self) -> bool:
        """Whether some peers end together."""
        return len(np.unique(self.fate)) < len(self.fate)

    def beside(self, row: int) -> Flags | None:
        """Return which layers others hold that end together with a peer; None if there are none."""
        same = self.fate == self.fate[row]
        same[row] = False
        if not self.share_fates or not same.any():
            return None
        held: Flags = self.cover(same).holders > 0
        return held

    @cached_property
    def whole(self) -> Cover:
        """The cover by all peers."""
        return self.cover(slice(None))

    @cached_property
    def others(self) -> Cover:
        """The cover by all but the owner."""
        return self.cover(slice(-1))

    def worth(self, layers: LayerRange) -> float:
        """Return what the owner is worth there."""
        return worth_of(self.others, layers, float(self.speed[-1]), self.beside(-1))

    def at(self, first: Whole, end: Whole) -> Self:
        """Return the same peers in other places."""
        return evolve(self, first=first, end=end)
