"""What was checked of an answer, which stages to audit, and how to report it in one line."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from attrs import field, frozen
from blake3 import blake3

from p2pinfer.core.continuity import Break
from p2pinfer.core.ids import PeerId
from p2pinfer.core.receipts import CHECKPOINT_POSITIONS

_SHOWN_CHARS = 6
"""Taken from the end of a peer id: all ids begin alike."""


ROWS_PROVEN = 4
"""Opened by one stage for one answer, one of each quarter of its rows: a stage that computes every
second row falsely is caught 15 times in 16, and one whose whole second half is false every time.
Each row costs the stage one decode, and the checking machine some 20 ms."""

_NEAR = 1e-6
"""How far a share's inverse may be from a whole number and still be shown as one."""


class AuditVerdict(StrEnum):
    """What an audit of a stage found."""

    SAME = "same bits"
    CLOSE = "within bounds"
    """Computed by another numerics class, and within the bounds between classes."""
    PROVED = "proved"
    """It opened some rows, and every step of its layers holds."""
    CHEATED = "other rows"
    """It signed for rows that its layers do not give."""
    DISPUTED = "disputed"
    """One auditor found other rows, and no further replay could settle it."""
    NOT_OPENED = "not opened"
    """A stage did not open the rows that it signed for."""
    NOT_REPLAYED = "not replayed"
    """No peer could run these layers again."""


_FAILED = (AuditVerdict.CHEATED, AuditVerdict.DISPUTED, AuditVerdict.NOT_OPENED)


@frozen
class Audited:
    """One stage's audit."""

    peer: PeerId
    first: int
    end: int
    verdict: AuditVerdict
    by: tuple[str, ...] = ()
    """Peer ids of the auditors, or ``this machine``."""
    position: int | None = None
    """The first where rows differ."""
    blamed: PeerId | None = None
    """The peer at fault: the stage, the one before it, or an auditor that lied."""
    text: str = ""
    seen: float | None = None
    """In how many of the opened rows any one layer was seen, on average; None: in all of them."""

    def rows_seen(self, positions: int) -> float:
        """Return in how many opened rows any one layer was seen, of so many rows in all."""
        if self.verdict is not AuditVerdict.PROVED:
            return 0.0
        return min(ROWS_PROVEN, positions) if self.seen is None else self.seen

    @property
    def is_by_steps(self) -> bool:
        """Whether a false step was found in a row that the stage opened."""
        return self.verdict is AuditVerdict.CHEATED and self.text.startswith("layer ")

    def line(self) -> str:
        """Return a short description."""
        by = f" by {' and '.join(map(short, self.by))}" if self.by else ""
        at = "" if self.position is None else f" from position {self.position} on"
        blame = f", blaming {short(self.blamed)}" if self.blamed else ""
        layers = f"(layers {self.first}:{self.end})"
        if self.verdict is AuditVerdict.PROVED:
            return f"{short(self.peer)} {layers}, {self.text} proved{by}: every step of them holds"
        if self.is_by_steps:
            shown = f"{short(self.peer)} {layers}, opened to this machine"
            return f"{shown}: {self.text}, in the row at position {self.position}{blame}"
        return f"{short(self.peer)} {layers}, run again{by}: {self.verdict}{at}{blame}"

    def in_short(self) -> str:
        """Describe it briefly, for a person who only wants to know whether to trust the answer."""
        match self.verdict:
            case AuditVerdict.SAME | AuditVerdict.CLOSE:
                return f"{short(self.peer)} was re-run by {' and '.join(map(short, self.by))}: same"
            case AuditVerdict.PROVED:
                by = " and ".join(map(short, self.by))
                return f"{self.text} of {short(self.peer)} were proved by {by}"
            case AuditVerdict.NOT_REPLAYED:
                return f"{short(self.peer)} could not be re-run"
        return self.line()


@frozen
class Unproved:
    """A stage that was to open rows, and why nothing could be learned from it."""

    peer: PeerId
    first: int
    end: int
    why: str

    def line(self) -> str:
        """Return it as a sentence."""
        return f"{short(self.peer)} (layers {self.first}:{self.end}) was not proved: {self.why}."


@frozen
class Trust:
    """What the checks of an answer found."""

    stages: int
    positions: int
    """How many positions all stages signed for: prompt and answer."""
    rate: float
    """The share of stages that are audited."""
    broken: Break | None = None
    audits: tuple[Audited, ...] = field(default=())
    proof_rate: float = 0.0
    """The share of stages that open rows although others could run them again."""
    unproved: tuple[Unproved, ...] = field(default=())
    """Stages that were to open rows; no check of theirs failed."""

    @property
    def held(self) -> bool:
        """Whether no check failed."""
        return not self.broken and all(each.verdict not in _FAILED for each in self.audits)

    def chance(self, one_in: int) -> float:
        """How likely a stage that cheats at one checkpoint in ``one_in`` is caught in this answer.

        An audit replays all of a stage's work, so it finds any cheat in it: a stage that cheated
        in this answer was caught with probability ``rate``. A stage that nobody could run again
        opened rows instead, and one of these must be false; others opened rows besides. What is
        told is the chance where it is least: of a stage that could be neither run again nor proved
        it is 0.
        """
        if self._unseen:
            return 0.0
        looks = -(-self.positions // CHECKPOINT_POSITIONS)
        replayed = self.rate * (1 - (1 - 1 / one_in) ** looks)
        if not self.has_proofs:
            return replayed
        opened = caught_by(self._seen, 1 / one_in)
        alone = (1 - (1 - self.rate) * (1 - self.proof_rate)) * opened
        return min(alone, 1 - (1 - replayed) * (1 - self.proof_rate * opened))

    @property
    def _unseen(self) -> list[Audited]:
        """Stages that were to be run again, which nobody could, and that opened no rows either."""
        return [each for each in self.audits if each.verdict is AuditVerdict.NOT_REPLAYED]

    @property
    def has_proofs(self) -> bool:
        """Whether some stage opened rows."""
        return any(each.verdict is AuditVerdict.PROVED for each in self.audits)

    @property
    def _seen(self) -> float:
        """In how many opened rows any one layer was seen, of the stage where that is least."""
        found = (each.rows_seen(self.positions) for each in self.audits)
        return min((rows for rows in found if rows), default=0.0)

    def line(self) -> str:
        """Return the result in one line."""
        if self.broken:
            peers = " or ".join(map(short, self.broken.peers))
            return f"NOT TRUSTED: {peers}, at position {self.broken.position}: {self.broken.text}"
        if not self.held:
            failed = (each for each in self.audits if each.verdict in _FAILED)
            return f"NOT TRUSTED: {'; '.join(each.line() for each in failed)}"
        one = "the one peer signed for its part"
        signed = one if self.stages == 1 else f"all {self.stages} peers signed for their part"
        audits = [each.in_short() for each in self.audits] or [self._why_none()]
        if self.has_proofs:
            audits.append(
                "a peer with a tenth of its rows false in one layer is caught by that with a chance"
                f" of {100 * caught_by(self._seen, 0.1):.0f} %"
            )
        return f"checked: {'; '.join([signed, *audits])}"

    def _why_none(self) -> str:
        if not self.rate:
            return "none is ever re-run (--audit-rate 0)"
        return f"none was re-run this time ({share_text(self.rate)})"

    def details(self) -> list[str]:
        """Return all that was checked, one sentence per line."""
        if self.broken:
            return [self.line()]
        peers = "1 peer" if self.stages == 1 else f"{self.stages} peers"
        signed = (
            f"{peers} signed for {self.positions} rows, one for each token that was read or written"
            " here, and what each sent is what the next one received."
        )
        found = [signed, *(f"{each.line()}." for each in self.audits)]
        found += [each.line() for each in self.unproved]
        if self._unseen:
            names = ", ".join(short(each.peer) for each in self._unseen)
            found.append(f"Nobody could check what {names} computed: a cheat there is not noticed.")
        elif self.has_proofs:
            found.append(self._odds())
        elif self.rate:
            share = share_text(self.rate)
            whose = "All peers are" if self.rate == 1 else f"Of all peers, {share}"
            found.append(
                f"{whose} run again by another peer or by this"
                " machine, drawn after all have signed: a peer that cheated in this answer had a"
                f" chance of {100 * self.rate:.3g} % of being caught."
            )
        else:
            found.append("No peer is run again, so a peer that cheated here was not caught.")
        return found

    def _odds(self) -> str:
        every, half, tenth = (100 * caught_by(self._seen, part) for part in (1.0, 0.5, 0.1))
        if every == 100:
            return (
                "Rows are proved as a spot check: a peer whose rows are all false is caught by it,"
                f" one with half of them false with a chance of {half:.0f} %, with a tenth of them"
                f" {tenth:.0f} %."
            )
        return (
            "Rows are proved as a spot check of some layers: a peer whose rows are all false in a"
            f" single layer is caught by it with a chance of {every:.0f} %, one with half of them"
            f" false with {half:.0f} %, with a tenth of them {tenth:.0f} %."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        broken = self.broken and {
            "peers": list(self.broken.peers),
            "position": self.broken.position,
            "text": self.broken.text,
        }
        return {
            "held": self.held,
            "line": self.line(),
            "details": self.details(),
            "stages": self.stages,
            "positions": self.positions,
            "broken": broken,
            "audit_rate": self.rate,
            "proof_rate": self.proof_rate,
            "chance": {f"1 in {each}": round(self.chance(each), 4) for each in (1, 10, 100)},
            "audits": [
                {
                    "peer": each.peer,
                    "layers": f"{each.first}:{each.end}",
                    "verdict": each.verdict.value,
                    "by": list(each.by),
                    "position": each.position,
                    "blamed": each.blamed,
                    "text": each.text,
                    "rows_seen": round(each.rows_seen(self.positions), 2),
                }
                for each in self.audits
            ],
            "unproved": [
                {"peer": each.peer, "layers": f"{each.first}:{each.end}", "why": each.why}
                for each in self.unproved
            ],
        }


def choose_audits(nonce: bytes, receipts: Sequence[bytes], rate: float) -> list[int]:
    """Return which stages to audit, each with probability ``rate``.

    No peer could foresee it: the stages did not know the nonce when they signed, and its seal had
    fixed it before the requester knew what they would sign.

    Args:
        nonce: the requester's, 32 bytes.
        receipts: bodies of all stages' last receipts, in the order of the route.
        rate: from 0 to 1.
    """
    signed = blake3(b"".join(receipts), key=nonce)
    chosen = []
    for index in range(len(receipts)):
        draw = signed.copy().update(index.to_bytes(4, "little")).digest(8)
        if int.from_bytes(draw, "little") < rate * 2**64:
            chosen.append(index)
    return chosen


def caught_by(seen: float, part: float) -> float:
    """Return how likely opened rows show a peer that lies in one layer of a part of its rows.

    Args:
        seen: in how many opened rows that layer is seen, on average: as many, or one more.
        part: of the rows that are false, wherever they are.
    """
    whole = int(seen)
    missed: float = (1 - part) ** whole * (1 - (seen - whole) * part)
    return 1 - missed


def rows_text(opened: int, count: int, share: float = 1.0) -> str:
    """Return how many rows a stage opened, of how many, and what share of their layers."""
    rows = f"{opened} of {count} rows"
    return rows if share == 1 else f"{100 * share:.0f} % of the layers in {rows}"


def share_text(rate: float) -> str:
    """Return a share of peers with its verb: "1 in 10 is", "30 % are"."""
    whole = round(1 / rate)
    if rate == 1:
        return "all are"
    return f"1 in {whole} is" if abs(whole * rate - 1) < _NEAR else f"{100 * rate:.3g} % are"


def short(peer: str) -> str:
    """Return a peer id shortened for one line."""
    return f"…{peer[-_SHOWN_CHARS:]}" if len(peer) > 2 * _SHOWN_CHARS else peer
