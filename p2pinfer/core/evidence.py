"""Messages between requester and stage about a session's evidence, on a channel of their own.

    Follow   →  receipts come back as they are made: Made, Made, …
    Settle   →  Settled comes back, or Denied
    AskRows  →  Opening comes back, or Denied

And what any two peers tell each other about fraud proofs that one has and the other may lack:

    Cases      →  Cases comes back
    WantProof  →  ProofIs comes back, unless none is wanted; then the same in the other direction;
                  all of it is skipped where both lists are empty
"""

from typing import Any

from attrs import field, frozen

from p2pinfer.core.checks import (
    HASH,
    LAYER,
    PEER,
    POSITIONS_MAX,
    SESSION,
    blob,
    many,
    shown_size,
    whole,
)
from p2pinfer.core.ids import ModelId, PeerId, SessionId
from p2pinfer.core.limits import WIDE_ROWS_MAX
from p2pinfer.core.receipts import Signed
from p2pinfer.core.regimes import Regime

OPENING_ROWS_MAX = WIDE_ROWS_MAX
"""In one request: as many as a step held before there were blocks, which all peers accept."""

OPENING_BYTES_MAX = OPENING_ROWS_MAX * 32_768 * 4
"""For a residual stream twice as wide as the widest model's, in float32."""

FRAUD_ROWS_BYTES_MAX = OPENING_BYTES_MAX
"""Rows in a fraud proof: all positions up to the checkpoint where a stage cheated. 6 MiB are
2,730 positions of the default model, 384 of one 4,096 wide. A cheat that begins later in a session
can be proven only to the session's requester."""

CASES_MAX = 32
"""Listed in one message, newest first."""

_NUMBER = whole(0, 1 << 62)
_COUNT = whole(1, OPENING_ROWS_MAX)


def _regimes(_: object, attribute: Any, value: bytes) -> None:
    if (
        type(value) is not bytes
        or not 1 <= len(value) <= OPENING_ROWS_MAX
        or max(value) >= len(Regime)
    ):
        raise ValueError(f"{attribute.name} must be one byte a row, a regime's number")


@frozen
class Follow:
    """Send me my session's receipts as they are made."""

    session: SessionId = field(validator=SESSION)


@frozen
class Made:
    """A checkpoint was passed."""

    signed: Signed


@frozen
class Settle:
    """Sign a receipt for the first ``position`` rows now."""

    number: int = field(validator=_NUMBER)
    """Counts the questions on a channel; an answer repeats its question's number."""
    position: int = field(validator=whole(1, POSITIONS_MAX))


@frozen
class Settled:
    """The receipt that was asked for."""

    number: int = field(validator=_NUMBER)
    signed: Signed


@frozen
class AskRows:
    """Open the rows that you sent at these positions."""

    number: int = field(validator=_NUMBER)
    position: int = field(validator=whole(0, POSITIONS_MAX))
    count: int = field(validator=_COUNT)


@frozen
class Opening:
    """The rows that were asked for."""

    number: int = field(validator=_NUMBER)
    regimes: bytes = field(validator=_regimes)
    rows: bytes = field(validator=blob(OPENING_BYTES_MAX, 1), repr=shown_size)


@frozen
class Case:
    """A summary of a fraud proof, sent before the proof itself, which confirms it."""

    digest: bytes = field(validator=blob(32, 32))
    """BLAKE3 hash of the proof without its signature."""
    model: ModelId = field(validator=HASH)
    author: PeerId = field(validator=PEER)
    accused: PeerId = field(validator=PEER)
    first: int = field(validator=LAYER)
    end: int = field(validator=LAYER)
    slice_end: int = field(validator=LAYER)
    """The end (exclusive) of the slice that the accused served."""
    numerics: bytes = field(validator=blob(16, 16))
    """The numerics class in which it can be judged."""
    rows: int = field(validator=whole(0, POSITIONS_MAX))
    """Rows to run; 0 where the signatures alone are the proof."""


@frozen
class Cases:
    """The cases that the sender has seen proven."""

    cases: tuple[Case, ...] = field(validator=many(Case, CASES_MAX))


@frozen
class WantProof:
    """Send me the proof with this digest; an empty digest wants none."""

    digest: bytes = field(validator=blob(32))


@frozen
class ProofIs:
    """A proof's file; empty if the sender no longer has it."""

    data: bytes = field(validator=blob(FRAUD_ROWS_BYTES_MAX + 65_536), repr=shown_size)
