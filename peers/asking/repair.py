"""Finding peers to replace stages that a session has lost."""

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
"""How long a session waits for a peer that can replace a lost one."""

LOOK_AGAIN_S = 0.5

FAILED_MAX = 16
"""Peers that failed a session and are asked only as a last resort."""

ENDING = {Refusal.IDLE, Refusal.CONTEXT_FULL, Refusal.BAD_REQUEST}
"""Refusals that any other peer would give too."""

Neighbours = tuple[PeerId | None, PeerId | None]
"""The peers before and after; None is the requester."""


@dataclass(frozen=True)
class Repair:
    """How replacements are chosen, and callbacks for what happens to the chain."""

    choose: Callable[[LayerRange, Neighbours, Collection[PeerId]], Sequence[Hop]]
    """Returns peers that run these layers, excluding some; raises LookupError if there are none."""
    on_wait: Callable[[str], None]
    """Called with the reason why the answer is paused."""
    on_lost: Callable[[PeerError], None] = lambda _: None
    """Called with each lost peer's error."""
    on_route: Callable[[Sequence[Hop]], None] = lambda _: None
    """Called with the chain's hops whenever they change."""
    better: Callable[[], tuple[int, Sequence[Hop]]] = lambda: (0, ())
    """Returns the index of a stage far slower than advertised, and better hops; usually none."""
    rows_of_others: Callable[[int], float] = lambda _: 0.0
    """Returns how many rows wait at a stage besides as many of this session, as it advertises."""
    wait_s_max: float = WAIT_S_MAX


def noted(failed: Sequence[PeerId], peer: PeerId) -> list[PeerId]:
    """Return the failed peers with one more at the end: most recent last."""
    return [*[each for each in failed if each != peer][1 - FAILED_MAX :], peer]


def is_ending(error: PeerError) -> bool:
    """Whether a session would do no better with other peers."""
    return isinstance(error, RefusedError) and error.refused.code in ENDING


async def find_others(
    repair: Repair,
    stages: Sequence[StageHandle],
    places: slice,
    failed: Sequence[PeerId],
    give_up_at: float,
) -> tuple[slice, Sequence[Hop], bool]:
    """Return which places to refill, the hops to use, and whether those have failed before.

    The places are those of the lost stages, and all before them where no peer's layers begin there.

    Raises:
        NoReplacement: none was found in time.
    """
    error = stages[places.start].lost
    assert error
    if trio.current_time() > give_up_at:
        raise _no_replacement(error, "none of its possible replacements took over") from error
    mine = {stage.hop.peer for stage in stages if not stage.lost}
    said = False
    while True:
        for forgiven in range(len(failed) + 1):  # the first to fail may be the first to come back
            others = mine.union(failed[forgiven:])
            missing = ""
            for first in dict.fromkeys((places.start, 0)):  # peers may be left after any layer
                taken = slice(first, places.stop)
                layers, between = _around(stages, taken)
                try:
                    return taken, repair.choose(layers, between, others), forgiven > 0
                except LookupError as nobody:
                    missing = missing or str(nobody)
            if trio.current_time() >= give_up_at:
                raise _no_replacement(error, missing) from error
            if not said:
                repair.on_wait(f"{error.peer} went away, and {missing}; waiting …")
                said = True
        await trio.sleep(LOOK_AGAIN_S)


def _no_replacement(error: PeerError, why: str) -> NoReplacement:
    return NoReplacement(error.peer, f"{error.peer} went away ({error}), and {why}")


def at_once(
    repair: Repair, stages: Sequence[StageHandle], index: int, without: Collection[PeerId]
) -> Sequence[Hop]:
    """Return hops that could replace a stage that still works; empty if there are none."""
    layers, between = _around(stages, slice(index, index + 1))
    try:
        return repair.choose(layers, between, {stage.hop.peer for stage in stages}.union(without))
    except LookupError:
        return ()


def _around(stages: Sequence[StageHandle], places: slice) -> tuple[LayerRange, Neighbours]:
    """Return the layers of some places, and the peers before and after them."""
    before = stages[places.start - 1].hop.peer if places.start else None
    behind = stages[places.stop].hop.peer if places.stop < len(stages) else None
    layers = LayerRange(stages[places.start].hop.first, stages[places.stop - 1].hop.end)
    return layers, (before, behind)
