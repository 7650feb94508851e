"""A swarm too large to send messages, as columns of numbers, and how one is drawn."""

import random
from dataclasses import dataclass, field

import numpy as np

from p2pinfer.core.advertisement import Advertisement, State
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.layer_range import LayerRange
from scheduler.coverage_value import cover_of
from scheduler.offer_table import Floats, Whole

JOIN_S = 60.0
"""Time in which all join."""

LAYERS_HELD = (2, 24)
ROW_US = (1500.0, 0.6)
"""Median and spread of a layer's time for a row, lognormal."""

SESSIONS = 8

MODEL = ModelId("5c" * 32)


@dataclass
class ScaleSwarm:
    """All peers: as columns for vector operations, and as advertisements."""

    said: list[Advertisement]
    lo: int
    hi: int
    speed: Floats
    """Rows a second through one layer."""
    due_s: Floats
    """When each decides again; infinite: it is gone."""
    loading: dict[int, tuple[float, LayerRange]] = field(default_factory=dict)
    """Until when, and what they serve then."""

    def ranges(self) -> tuple[Whole, Whole]:
        """Return first layer and end of each peer's range; equal if it serves none."""
        some = [a.state is State.SERVING for a in self.said]
        first = np.array([a.first for a in self.said], np.int64)
        end = np.array([a.end for a in self.said], np.int64)
        return np.where(some, first, self.lo), np.where(some, end, self.lo)

    def rates(self) -> tuple[Floats, Whole]:
        """Return rows a second through each layer, and how many peers serve it."""
        first, end = self.ranges()
        cover = cover_of(self.lo, self.hi, first, end, self.speed)
        return cover.rate, cover.holders


def draw_swarm(peers: int, layers: int, chance: random.Random) -> ScaleSwarm:
    """Draw ``peers`` machines, none of which serves anything yet."""
    lo, hi = 1, layers - 1
    said = [
        Advertisement(
            peer=PeerId(f"12D3Koo{number:x>45}"),
            addresses=(),
            model=MODEL,
            model_name="virtual",
            layers=layers,
            first=0,
            end=0,
            context=4096,
            numerics_class="0" * 32,
            sequence=0,
            state=State.JOINING,
            layers_max=min(chance.randint(*LAYERS_HELD), hi - lo),
            row_us=max(1, round(ROW_US[0] * chance.lognormvariate(0, ROW_US[1]))),
            sessions_max=SESSIONS,
            sessions_free=SESSIONS,
        )
        for number in range(peers)
    ]
    speed = np.array([1e6 / a.row_us for a in said])
    due_s = np.array([chance.uniform(0, JOIN_S) for _ in said])
    return ScaleSwarm(said, lo, hi, speed, due_s)
