"""Who takes the places of stages that a session has lost."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import trio

from p2pinfer.core.errors import NoReplacement, PeerError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.messages import Hop, Refusal
from peers.asking.stage_handle import StageHandle
from peers.steps.messaging import RefusedError

WAIT_S_MAX = 60.0
"""How long a session waits for a peer that can take a lost one's place."""

LOOK_AGAIN_S = 0.5

FAILED_MAX = 16
"""Peers that failed a session and are asked only where nobody else is left."""

ENDING = {Refusal.IDLE, Refusal.CONTEXT_FULL, Refusal.BAD_REQUEST}
"""Refusals that no other peer would do without."""

Neighbours = tuple[PeerId | None, PeerId | None]
"""The peers before and behind; None is the requester."""


@dataclass(frozen=True)
class Repair:
    """Who may take a lost peer's place, and who wants to hear of it."""

    choose: Callable[[LayerRange, Neighbours, Collection[PeerId]], Sequence[Hop]]
    """Returns peers that run these layers, without some; raises LookupError if nobody does."""
    on_wait: Callable[[str], None]
    """Told why the answer does not go on for now."""
    on_lost: Callable[[PeerError], None] = lambda _: None
    """Told of each peer that is lost, and why."""
    on_route: Callable[[Sequence[Hop]], None] = lambda _: None
    """Told who makes up the chain from now on."""
    better: Callable[[], tuple[int, Sequence[Hop]]] = lambda: (0, ())
    """Returns which stage is far slower than it said, and who would do better; mostly nobody."""
    wait_s_max: float = WAIT_S_MAX


def noted(failed: Sequence[PeerId], peer: PeerId) -> list[PeerId]:
    """Return who failed, one more among them, whoever failed last behind the others."""
    return [*[each for each in failed if each != peer][1 - FAILED_MAX :], peer]


def is_ending(error: PeerError) -> bool:
    """Whether a session would fare no better with other peers."""
    return isinstance(error, RefusedError) and error.refused.code in ENDING


async def find_others(
    repair: Repair,
    stages: Sequence[StageHandle],
    places: slice,
    failed: Sequence[PeerId],
    give_up_at: float,
) -> tuple[slice, Sequence[Hop], bool]:
    """Return which places others are to take, who they are, and whether they have failed before.

    The places are those of the lost stages, and all before them where nobody's layers begin there.

    Raises:
        NoReplacement: nobody came forward in time.
    """
    error = stages[places.start].lost
    assert error
    if trio.current_time() > give_up_at:
        raise _nobody(error, "who could take its place does not") from error
    mine = {stage.hop.peer for stage in stages if not stage.lost}
    said = False
    while True:
        for forgiven in range(len(failed) + 1):  # who failed first may have come back first
            others = mine.union(failed[forgiven:])
            missing = ""
            for first in dict.fromkeys((places.start, 0)):  # peers may be left behind any layer
                taken = slice(first, places.stop)
                layers, between = _around(stages, taken)
                try:
                    return taken, repair.choose(layers, between, others), forgiven > 0
                except LookupError as nobody:
                    missing = missing or str(nobody)
            if trio.current_time() >= give_up_at:
                raise _nobody(error, missing) from error
            if not said:
                repair.on_wait(f"{error.peer} went away, and {missing}; waiting …")
                said = True
        await trio.sleep(LOOK_AGAIN_S)


def _nobody(error: PeerError, why: str) -> NoReplacement:
    return NoReplacement(error.peer, f"{error.peer} went away ({error}), and {why}")


def at_once(
    repair: Repair, stages: Sequence[StageHandle], index: int, without: Collection[PeerId]
) -> Sequence[Hop]:
    """Return who could take the place of a stage that still works; nobody if there is none."""
    layers, between = _around(stages, slice(index, index + 1))
    try:
        return repair.choose(layers, between, {stage.hop.peer for stage in stages}.union(without))
    except LookupError:
        return ()


def _around(stages: Sequence[StageHandle], places: slice) -> tuple[LayerRange, Neighbours]:
    """Return the layers of some places, and who is before and behind them."""
    before = stages[places.start - 1].hop.peer if places.start else None
    behind = stages[places.stop].hop.peer if places.stop < len(stages) else None
    layers = LayerRange(stages[places.start].hop.first, stages[places.stop - 1].hop.end)
    return layers, (before, behind)
