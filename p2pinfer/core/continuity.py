"""Whether the receipts of a route join up: what each stage received is what the one before sent."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from attrs import field, frozen

from p2pinfer.core.ids import PeerId
from p2pinfer.core.receipts import Receipt


@frozen
class Vouched:
    """One stage of a route and its receipts, by position."""

    peer: PeerId
    first: int
    end: int
    receipts: Mapping[int, Receipt] = field(factory=dict)
    fault: str = ""
    """Why there is no valid receipt."""


@frozen
class Break:
    """Where receipts do not join up, and which peers may be to blame."""

    peers: tuple[PeerId, ...]
    """One peer, or the two at a boundary, one of which signed something false."""
    position: int
    text: str


Roots = Callable[[int], bytes]
"""Returns the root of the first N rows."""


def find_break(
    stages: Sequence[Vouched], went_in: Roots, came_out: Roots, position: int
) -> Break | None:
    """Return the first place where the receipts for the first ``position`` rows do not join up.

    Args:
        stages: in the order of the route.
        went_in: roots over the rows that the requester sent to the first stage.
        came_out: roots over the rows that the last stage sent to it.
        position: each stage must have signed for exactly this many rows; receipts for fewer
            must join up as well.
    """
    for stage in stages:
        if stage.fault or position not in stage.receipts:
            return Break((stage.peer,), position, stage.fault or "it signed no receipt")
    first, last = stages[0], stages[-1]
    for at in _checkpoints(stages, position):
        if at in first.receipts and first.receipts[at].received != went_in(at):
            return Break((first.peer,), at, "it signed for other rows than it was sent")
        if at in last.receipts and last.receipts[at].sent != came_out(at):
            return Break((last.peer,), at, "it signed for other rows than it sent")
    return find_joint(stages, position)


def find_joint(stages: Sequence[Vouched], position: int) -> Break | None:
    """Return the first place where two neighbours signed for different rows.

    A stage that has no receipt at a checkpoint joined the session after it.
    """
    for at in _checkpoints(stages, position):
        for before, stage in pairwise(stages):
            sent, received = before.receipts.get(at), stage.receipts.get(at)
            if sent and received and sent.sent != received.received:
                text = "one signed for other rows than the other"
                return Break((before.peer, stage.peer), at, text)
    return None


def _checkpoints(stages: Sequence[Vouched], position: int) -> list[int]:
    return sorted({at for stage in stages for at in stage.receipts if at <= position})
