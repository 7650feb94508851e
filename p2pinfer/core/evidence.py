"""What a requester and a stage say of a session's evidence, on a channel beside the session's.

    Follow   →  receipts come back as they are made: Made, Made, …
    Settle   →  Settled comes back, or Denied
    AskRows  →  Opening comes back, or Denied

And what any two peers say of proofs that others cheated, which both know and either may lack:

    Cases      →  Cases comes back
    WantProof  →  ProofIs comes back, unless none is wanted; then the same the other way round;
                  nothing of it where both lists are empty
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
"""Asked for at once: as many as a step held before there were blocks, which all peers answer."""

OPENING_BYTES_MAX = OPENING_ROWS_MAX * 32_768 * 4
"""Of a residual stream twice as wide as the widest model's, in float32."""

FRAUD_ROWS_BYTES_MAX = OPENING_BYTES_MAX
"""Of the rows in a fraud proof: all positions up to the checkpoint where a stage cheated. 6 MiB are
2,730 positions of the default model, 384 of one 4,096 wide. A cheat that begins later in a session
is proven to the session's requester alone."""

CASES_MAX = 32
"""Told of at once, the newest first."""

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
    """Send me the receipts of my session, as they are made."""

    session: SessionId = field(validator=SESSION)


@frozen
class Made:
    """A checkpoint was passed."""

    signed: Signed


@frozen
class Settle:
    """Sign for the first ``position`` rows now."""

    number: int = field(validator=_NUMBER)
    """Counts the questions on a channel; an answer carries its question's."""
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
    """What is told of a fraud proof before it is sent: hints, all of which it shows by itself."""

    digest: bytes = field(validator=blob(32, 32))
    """BLAKE3 of the proof, without its signature."""
    model: ModelId = field(validator=HASH)
    author: PeerId = field(validator=PEER)
    accused: PeerId = field(validator=PEER)
    first: int = field(validator=LAYER)
    end: int = field(validator=LAYER)
    slice_end: int = field(validator=LAYER)
    """The layer behind the last that the accused served."""
    numerics: bytes = field(validator=blob(16, 16))
    """The class that it can be judged in."""
    rows: int = field(validator=whole(0, POSITIONS_MAX))
    """To be run; 0 where signatures are proof enough."""


@frozen
class Cases:
    """The cases that the sender has seen proven."""

    cases: tuple[Case, ...] = field(validator=many(Case, CASES_MAX))


@frozen
class WantProof:
    """Send me the proof of this digest; none at all if it is empty."""

    digest: bytes = field(validator=blob(32))


@frozen
class ProofIs:
    """A proof's file; empty if the sender no longer has it."""

    data: bytes = field(validator=blob(FRAUD_ROWS_BYTES_MAX + 65_536), repr=shown_size)
