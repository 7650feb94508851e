"""Messages between requester and stage about openings, on a channel of their own.

The stage signs for its K and V rows before it hears which of its rows will be opened, and for the
steps of those before it shows any. All answers may also be Refused, with a time to come back at.

    AskCells   →  CellsAre comes back
    AskSteps   →  for each position PledgeIs comes back
    AskLayers  →  then for each position, and each layer, CellRows as many as are missing up to
                  there, and StepsAre

AskLayers is a word of the second kind of such channels. On the first kind all layers come without
it.
"""

from typing import Any, Final

from attrs import field, frozen
from attrs import validators as v

from p2pinfer.core.checks import LAYERS_MAX, POSITIONS_MAX, SESSION, blob, many, shown_size, whole
from p2pinfer.core.evidence import OPENING_BYTES_MAX, OPENING_ROWS_MAX
from p2pinfer.core.ids import SessionId
from p2pinfer.core.kv_root import SignedKv
from p2pinfer.core.merkle import HASH_BYTES
from p2pinfer.core.receipts import SIGNATURE_BYTES, Signed
from p2pinfer.core.shown_layers import ShownLayers
from p2pinfer.core.traced import Traced

PROVEN_ROWS_MAX: Final = 8
"""Opened on one channel: twice as many as a requester names, and each costs a decode."""

CELLS_BYTES_MAX: Final = 1 << 20
"""Of K, and of V, in one message: other channels of the connection get their turn between two."""

PLEDGE_BYTES_MAX: Final = 2048
"""Terms, a receipt, a statement, hashes, and a few short fields: about 900."""

ROW_BYTES_MAX: Final = OPENING_BYTES_MAX // OPENING_ROWS_MAX
"""As for every row that is opened."""

STEP_BYTES_MAX: Final = 1 << 20
"""A feed-forward step eight times as wide as that row."""

STEPS_BYTES_MAX: Final = 8 * ROW_BYTES_MAX + 3 * STEP_BYTES_MAX
"""Of all steps of a layer: less than a message may hold."""

_NUMBER = whole(0, 1 << 62)
_POSITIONS: Any = v.deep_iterable(whole(0, POSITIONS_MAX - 1), many(int, PROVEN_ROWS_MAX, 1))
_HASHES_OF_LAYERS: Any = v.deep_iterable(blob(HASH_BYTES, HASH_BYTES), many(bytes, LAYERS_MAX, 1))
_PATH: Any = v.deep_iterable(
    blob(HASH_BYTES, HASH_BYTES), many(bytes, 2 * POSITIONS_MAX.bit_length())
)
_STEPS: Any = v.deep_iterable(blob(STEP_BYTES_MAX, 4), many(bytes, len(Traced), len(Traced)))


def _ascending(_: object, attribute: Any, value: tuple[int, ...]) -> None:
    if list(value) != sorted(set(value)):
        raise ValueError(f"{attribute.name} must ascend")


def _bounded(_: object, attribute: Any, value: tuple[bytes, ...]) -> None:
    if sum(map(len, value)) > STEPS_BYTES_MAX:
        raise ValueError(f"{attribute.name} must be of {STEPS_BYTES_MAX} bytes at most")


@frozen
class AskCells:
    """Sign for your K and V rows of the positions that a receipt of yours covers."""

    session: SessionId = field(validator=SESSION)
    receipt: Signed


@frozen
class CellsAre:
    """The statement, and what its root is made of."""

    signed: SignedKv
    layers: tuple[bytes, ...] = field(validator=_HASHES_OF_LAYERS, repr=False)
    """The first hash of each layer's chain."""


@frozen
class AskSteps:
    """Open the rows at these positions, once on a channel."""

    positions: tuple[int, ...] = field(validator=[_POSITIONS, _ascending])
    rows: bytes = field(validator=blob(PROVEN_ROWS_MAX * ROW_BYTES_MAX, 2), repr=shown_size)
    """Those that came in, as on the wire: a stage keeps no more than their hashes."""


@frozen
class AskLayers:
    """Show these layers of the rows that you pledged yourself to."""

    shown: tuple[ShownLayers, ...] = field(validator=many(ShownLayers, PROVEN_ROWS_MAX, 1))
    """One for each position."""


@frozen
class PledgeIs:
    """What a stage signs before it opens a row; see ``opening``."""

    position: int = field(validator=whole(0, POSITIONS_MAX - 1))
    body: bytes = field(validator=blob(PLEDGE_BYTES_MAX, 1), repr=shown_size)
    signature: bytes = field(validator=blob(SIGNATURE_BYTES, SIGNATURE_BYTES), repr=shown_size)
    received_path: tuple[bytes, ...] = field(validator=_PATH, repr=False)
    sent: bytes = field(validator=blob(ROW_BYTES_MAX, 2), repr=shown_size)
    """The row that went out, as on the wire."""
    sent_path: tuple[bytes, ...] = field(validator=_PATH, repr=False)
    leaves: tuple[bytes, ...] = field(
        default=(),
        validator=v.deep_iterable(blob(HASH_BYTES, HASH_BYTES), many(bytes, LAYERS_MAX)),
        repr=False,
    )
    """Of the trace, where not all layers are shown; otherwise they follow from those."""


@frozen
class CellRows:
    """K and V rows of a layer behind those sent before, as the cache holds them."""

    layer: int = field(validator=whole(0, LAYERS_MAX - 1))
    """Counted from the stage's first."""
    count: int = field(validator=whole(1, POSITIONS_MAX))
    keys: bytes = field(validator=blob(CELLS_BYTES_MAX, 1), repr=shown_size)
    values: bytes = field(validator=blob(CELLS_BYTES_MAX, 1), repr=shown_size)


@frozen
class StepsAre:
    """What one layer computed for a row."""

    position: int = field(validator=whole(0, POSITIONS_MAX - 1))
    layer: int = field(validator=whole(0, LAYERS_MAX - 1))
    """Counted from the stage's first."""
    given: bytes = field(validator=blob(ROW_BYTES_MAX, 4), repr=shown_size)
    """The residual stream before the layer: float32, little-endian."""
    steps: tuple[bytes, ...] = field(validator=[_STEPS, _bounded], repr=False)
    """In the order of ``Traced``: float32, little-endian."""
    tail: bytes = field(validator=blob(HASH_BYTES, HASH_BYTES), repr=shown_size)
    """Of the layer's chain over K and V, behind the position."""
