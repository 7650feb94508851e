"""What a server is given, what it holds, and what can be seen of it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

import trio

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.ids import ModelId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.engine.base import StageEngine
from peers.serving.measure import EngineSpeed
from peers.serving.metered_engine import MeteredEngine
from peers.serving.stage import SessionStatistics, Stage


class Directory(Protocol):
    """What is known of others, and said of the own peer."""

    @property
    def is_hidden(self) -> bool:
        """Whether nobody can dial the own peer, as it seems, so that nobody counts on it."""
        ...

    @property
    def is_sample(self) -> bool:
        """Whether there is room for no more peers, so that there are others, as it seems."""
        ...

    def advertise(self, advertisement: Advertisement) -> None:
        """Say this of the own peer from now on."""
        ...

    def holding(self, model: ModelId) -> list[Advertisement]:
        """Return what others say who hold something of a model."""
        ...

    def missing(self, model: ModelId, layers: LayerRange) -> list[int]:
        """Return the layers of a range that nobody holds or is about to; the own peer counts."""
        ...

    def fewest_holders(self, model: ModelId, layers: LayerRange) -> int:
        """Return how many hold the rarest layer of a range, or are about to; likewise."""
        ...


OpenEngine = Callable[[int, int], AbstractAsyncContextManager[StageEngine]]
"""Fetches what is missing of a range of layers, loads it, and runs it while the block lasts."""


@dataclass(frozen=True)
class ServingPlan:
    """What a server may do."""

    me: Advertisement
    """Who it is and what it can do, without layers yet."""
    bounds: LayerRange
    """What the swarm as a whole must serve; requesters keep the rest to themselves."""
    fixed: LayerRange | None = None
    """Served whatever others do; None chooses."""


@dataclass(frozen=True)
class ServerStatistics:
    """What a server is doing."""

    said: Advertisement
    """What it advertised last."""
    resting: str
    """Why it takes no session for now; empty if it does."""
    rows: int
    """Computed so far, by the engines that run."""
    queued_rows: int
    sessions: tuple[SessionStatistics, ...]


@dataclass(eq=False)
class HeldLayers:
    """A range of layers that is being served."""

    engine: MeteredEngine
    stage: Stage
    speed: EngineSpeed
    over: trio.Event = field(default_factory=trio.Event)
    given_up: bool = False
    """It drains to make room for other layers, and nobody may count on it any more."""

    @property
    def layers(self) -> LayerRange:
        """What is served."""
        return LayerRange(self.engine.first, self.engine.end)
