"""Which layers a stage opens for a row, so that an opening is of bounded size.

Where all of a stage's layers are too much to send, consecutive ones are drawn, the first of a stage
behind its last. Those of the next row begin where the K and V of this one end, so that the rows
together look at each layer as evenly as can be: where they look at all of them, a layer that
computes every row falsely is always seen. The stage hears which ones only once it has signed for
the steps of all its layers.
"""

from collections.abc import Sequence
from typing import Any, Final

from attrs import field, frozen
from blake3 import blake3

from p2pinfer.core.checks import LAYERS_MAX, whole
from p2pinfer.core.layer_key import ATTENTION_NORM, LayerKey, LayerShape
from p2pinfer.core.opening import OPENED_BYTES_MAX, OpenedTrace
from p2pinfer.core.receipts import Receipt
from p2pinfer.core.traced import LINEAR, Traced
from p2pinfer.core.trust import ROWS_PROVEN

ROW_BYTES_MAX: Final = 2_000_000
"""Of one opened row, up to ``SHORT_POSITIONS``: ten layers of a model of 135 million weights. A
home line that sends 1 MB/s takes eight seconds for four of them."""

SHORT_POSITIONS: Final = 200
"""Beyond these an opening may be longer in proportion: K and V of one layer are."""

LONG_ROW_BYTES_MAX: Final = OPENED_BYTES_MAX // ROWS_PROVEN
"""However long the session is: a requester takes no more on one channel."""

_FIXED_BYTES: Final = 4096
"""Pledge, paths, and what msgpack adds."""

_BYTES_OF_LAYER: Final = 2 * (32 + 2) + 64
"""Of each, shown or not: hashes, and the heads of its fields."""

_DRAWN_BY: Final = b"p2pinfer 1 layers to prove\0"

_COUNT: Any = whole(0, LAYERS_MAX)


@frozen
class LayerBytes:
    """How long what one layer shows is."""

    row: int = field(validator=whole(1, 1 << 40))
    """Of the residual stream."""
    steps: int = field(validator=whole(1, 1 << 40))
    """Of all its steps, and what goes in."""
    cell: int = field(validator=whole(1, 1 << 40))
    """Of its K and V at one position."""


@frozen
class ShownLayers:
    """Consecutive layers of a stage, counted from its first, which follows its last again."""

    start: int = field(validator=whole(0, LAYERS_MAX - 1))
    steps: int = field(validator=_COUNT)
    """How many show their steps."""
    cells: int = field(validator=_COUNT)
    """How many of these, from the start on, show K and V."""

    def __attrs_post_init__(self) -> None:
        if not self.steps or self.cells > self.steps:
            raise ValueError("layers are shown with their steps, at least one")

    def of(self, layers: int) -> dict[int, bool]:
        """Return the layers of a stage of so many, in ascending order: whether each shows K and V.

        Raises:
            ValueError: it has fewer.
        """
        if not self.start < layers or self.steps > layers:
            raise ValueError(f"{self} are not among {layers} layers")
        places = (((self.start + at) % layers, at < self.cells) for at in range(self.steps))
        return dict(sorted(places))

    def seen(self, layers: int) -> int:
        """Return in how many of so many places this sees a lie: a layer, or between two of them."""
        between = self.steps if self.steps == layers else self.steps - 1
        return min(self.cells, between)


def bytes_of(key: LayerKey, shape: LayerShape) -> LayerBytes:
    """Return how long what a layer shows is."""
    row = 4 * key.vectors[ATTENTION_NORM].size
    products = {step: 4 * key.matrices[name].outputs for step, (_, name) in LINEAR.items()}
    gated = products[Traced.GATE]
    heads = 4 * shape.heads * shape.head_width
    steps = 4 * row + heads + gated + sum(products.values())  # what goes in, two norms, the sum
    return LayerBytes(row, steps, 2 * 2 * shape.kv_heads * shape.head_width)


def row_bytes_max(position: int) -> int:
    """Return how long the opening of a row may be, unless ``least_bytes`` is more."""
    allowed = ROW_BYTES_MAX * max(position + 1, SHORT_POSITIONS) // SHORT_POSITIONS
    return min(allowed, LONG_ROW_BYTES_MAX)


def opened_bytes(layer: LayerBytes, layers: int, position: int, shown: ShownLayers) -> int:
    """Return how long the opening of a row is at most."""
    fixed = _FIXED_BYTES + 2 * layer.row + _BYTES_OF_LAYER * layers
    return fixed + shown.steps * layer.steps + shown.cells * layer.cell * (position + 1)


def choose_layers(
    nonce: bytes, receipt: Receipt, positions: Sequence[int], layer: LayerBytes
) -> list[ShownLayers]:
    """Return what a stage is to show for each of its rows, which it could not foresee.

    As many layers as ``row_bytes_max`` allows show K and V, and at least one more shows its steps,
    so that what lies between them is seen as well. At least one layer and the next are shown,
    unless they alone are longer than ``LONG_ROW_BYTES_MAX``: then no K and V are.

    Args:
        nonce: the requester's, 32 bytes.
        receipt: the stage's for all rows.
        positions: of the rows, ascending.
        layer: how long a layer is.
    """
    layers = receipt.end - receipt.first
    found, start = [], first_start(nonce, receipt)
    for position in positions:
        shown = _fitting(start, layers, position, layer)
        found.append(shown)
        start = (start + shown.cells) % layers
    return found


def first_start(nonce: bytes, receipt: Receipt) -> int:
    """Return the layer that the first row begins to show with, counted from the stage's first."""
    drawn = blake3(_DRAWN_BY + receipt.body(), key=nonce).digest(8)
    return int.from_bytes(drawn, "little") % (receipt.end - receipt.first)


def layers_shown(
    nonce: bytes, receipt: Receipt, openings: Sequence[OpenedTrace], chosen: Sequence[int]
) -> list[ShownLayers] | None:
    """Return which layers were shown of a stage's first rows, if they begin where they have to.

    How many they are follows from the lengths that were allowed then, so any number will do.

    Args:
        nonce: the requester's.
        receipt: the stage's for all rows.
        openings: of rows in order, whose roots were checked.
        chosen: the positions of all rows that the nonce chose.

    Returns:
        None if they are others; or if a row before lacks, so that it cannot be told.
    """
    layers, start = receipt.end - receipt.first, first_start(nonce, receipt)
    found = []
    for opening, position in zip(openings, chosen, strict=False):
        places = {each.layer - receipt.first: bool(each.keys) for each in opening.layers}
        shown = ShownLayers(start, len(places), sum(places.values()))
        if places == dict.fromkeys(range(layers), True):
            shown = ShownLayers(0, layers, layers)
        elif opening.pledge.position != position or shown.of(layers) != places:
            return None
        found.append(shown)
        start = (start + shown.cells) % layers
    return found


def rows_seen(shown: Sequence[ShownLayers], layers: int) -> float:
    """Return how many of the opened rows show any one layer, with what lies behind it; on average.

    It is of the least evenly spread kind of lie: one in a single layer's attention.
    """
    return sum(each.seen(layers) for each in shown) / layers


def _fitting(start: int, layers: int, position: int, layer: LayerBytes) -> ShownLayers:
    allowed = row_bytes_max(position)
    everything = ShownLayers(0, layers, layers)
    if opened_bytes(layer, layers, position, everything) <= allowed:
        return everything
    left = allowed - opened_bytes(layer, layers, position, ShownLayers(0, 1, 0))
    cells = max(left // (layer.steps + layer.cell * (position + 1)), 0)
    cells = min(cells, layers - 1)
    if not cells:
        least = ShownLayers(start, min(2, layers), 1)
        if opened_bytes(layer, layers, position, least) <= LONG_ROW_BYTES_MAX:
            return least
        return ShownLayers(start, min(max(1 + left // layer.steps, 2), layers), 0)
    more = (left - cells * (layer.steps + layer.cell * (position + 1))) // layer.steps
    return ShownLayers(start, min(1 + cells + more, layers), cells)
