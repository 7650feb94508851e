"""What a requester and a stage say of a session's evidence, on a channel beside the session's.

Follow   →  receipts come back as they are made: Made, Made, …
Settle   →  Settled comes back, or Denied
AskRows  →  Opening comes back, or Denied
"""

from typing import Any

from attrs import field, frozen

from p2pinfer.core.checks import POSITIONS_MAX, SESSION, blob, shown_size, whole
from p2pinfer.core.ids import SessionId
from p2pinfer.core.limits import ROWS_PER_DECODE_MAX
from p2pinfer.core.receipts import Signed

OPENING_BYTES_MAX = ROWS_PER_DECODE_MAX * 32_768 * 4
"""As much as a step may carry."""

_NUMBER = whole(0, 1 << 62)
_COUNT = whole(1, ROWS_PER_DECODE_MAX)


def _regimes(_: object, attribute: Any, value: bytes) -> None:
    if type(value) is not bytes or not 1 <= len(value) <= ROWS_PER_DECODE_MAX or max(value) > 1:
        raise ValueError(f"{attribute.name} must be one byte a row, 0 narrow and 1 wide")


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
