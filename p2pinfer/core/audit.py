"""The verdict over several replays of one stage: which are believed, and which peer is blamed."""

from collections.abc import Sequence
from typing import Self

from attrs import frozen

from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.trust import Audited, AuditVerdict

THIS_MACHINE = "this machine"
"""The name of a replay that runs here, which is always believed."""


@frozen(kw_only=True)
class Replayed:
    """What one replay of a stage found."""

    by: str
    """A peer id, or ``THIS_MACHINE``."""
    verdict: AuditVerdict
    position: int | None = None
    """Of the first row that differs, or that was not opened."""
    blamed: PeerId | None = None
    text: str = ""
    refuted: int | None = None
    """The position of the first receipt that is false."""
    is_far: bool = True
    """The rows are farther apart than those of two numerics classes may be."""

    @classmethod
    def same(cls, by: str) -> Self:
        """Return the finding that all rows have the same bits."""
        return cls(by=by, verdict=AuditVerdict.SAME)

    @classmethod
    def close(cls, by: str, text: str) -> Self:
        """Return the finding that rows differ, but within bounds."""
        return cls(by=by, verdict=AuditVerdict.CLOSE, text=text)

    @classmethod
    def cheated(
        cls, by: str, stage: PeerId, position: int, text: str, refuted: int | None, *, is_far: bool
    ) -> Self:
        """Return the finding that the stage signed for rows that its layers do not give."""
        return cls(
            by=by,
            verdict=AuditVerdict.CHEATED,
            position=position,
            blamed=stage,
            text=text,
            refuted=refuted,
            is_far=is_far,
        )

    @classmethod
    def not_opened(
        cls,
        by: str,
        blamed: PeerId | None,
        text: str,
        position: int | None = None,
        refuted: int | None = None,
    ) -> Self:
        """Return the finding that rows were not opened as signed for; a dead peer is not blamed."""
        return cls(
            by=by,
            verdict=AuditVerdict.NOT_OPENED,
            position=position,
            blamed=blamed,
            text=text,
            refuted=refuted,
        )

    @property
    def is_fine(self) -> bool:
        """Whether the stage computed correctly, as far as this replay can tell."""
        return self.verdict in (AuditVerdict.SAME, AuditVerdict.CLOSE)


def is_settled(found: Sequence[Replayed]) -> bool:
    """Whether no further replay is needed: this machine ran one, or two that matter agree."""
    last = found[-1]
    if last.by == THIS_MACHINE or last.verdict is AuditVerdict.NOT_OPENED:
        return True
    return len(_agreeing(found, last)) > 1 or (len(found) == 1 and last.is_fine)


def _agreeing(found: Sequence[Replayed], with_: Replayed) -> list[Replayed]:
    """Return the replays with the same finding; bits within bounds count as the same bits."""
    return [
        each for each in found if each.verdict is with_.verdict or (each.is_fine and with_.is_fine)
    ]


def conclude(peer: PeerId, layers: LayerRange, found: Sequence[Replayed]) -> Audited:
    """Return the verdict over several replays of a stage.

    One auditor that differs is not believed against the stage and another auditor. It is blamed if
    two others, or this machine, found the same as the stage. But a finding of different bits within
    bounds is refuted only by a replay that found the stage's own bits: other classes cannot tell.
    """
    if not found:
        return Audited(peer, layers.first, layers.end, AuditVerdict.NOT_REPLAYED)
    last, by = found[-1], tuple(each.by for each in found)
    cheated = [each for each in found if each.verdict is AuditVerdict.CHEATED]
    if not is_settled(found):
        last = next((each for each in found if each.is_fine), last)
    verdict, blamed, text = last.verdict, last.blamed, last.text
    if verdict is AuditVerdict.CHEATED and not is_settled(found):
        verdict, blamed = AuditVerdict.DISPUTED, None
    elif last.is_fine and cheated:
        text = "another auditor computed other rows"
        if not cheated[0].is_far and all(each.verdict is not AuditVerdict.SAME for each in found):
            verdict = AuditVerdict.DISPUTED
        elif is_settled(found):
            blamed = PeerId(cheated[0].by)
    return Audited(peer, layers.first, layers.end, verdict, by, last.position, blamed, text)


def is_gone(audited: Audited) -> bool:
    """Whether a stage could not open its rows because it is gone; it is not blamed."""
    return audited.verdict is AuditVerdict.NOT_OPENED and audited.blamed is None
