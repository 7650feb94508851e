"""Openings: one row of a stage with every step that its layers took, signed, to check without them.

A stage that signed for a row runs it again with tracing, and signs a *pledge*: a root over what
each layer computed. Then it opens its layers: the row that went in, the numbers behind each step,
and K and V rows up to there as they lie in the cache. All of it hangs on what the stage signed: the
rows that it received and sent on its receipt, K and V on its statement (see ``core.kv_root``), the
steps on the pledge. So one layer cut out of an opening is still evidence against its stage, for
everybody.

    leaf of a layer    BLAKE3 keyed "layer", of the row that goes in and all steps
    trace              BLAKE3 keyed "trace", of the leaves, in order
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgpack
import numpy as np
from attrs import astuple, field, frozen
from attrs import validators as v
from blake3 import blake3
from numpy.typing import NDArray

from p2pinfer.core.attention import ATTENTIONS
from p2pinfer.core.checks import (
    LAYER,
    LAYERS_MAX,
    PEER,
    POSITIONS_MAX,
    blob,
    line,
    many,
    shown_size,
    whole,
)
from p2pinfer.core.ids import PeerId
from p2pinfer.core.kv_root import LAST_TAIL, KvStatement, SignedKv, kv_root, tails
from p2pinfer.core.kv_root import SIGNED_AS as CELLS_SIGNED_AS
from p2pinfer.core.merkle import HASH_BYTES, leaf, root_by_path
from p2pinfer.core.receipts import SIGNATURE_BYTES, BadReceipt, Receipt, Signed, Terms
from p2pinfer.core.receipts import SIGNED_AS as RECEIPT_SIGNED_AS
from p2pinfer.core.regimes import Regime
from p2pinfer.core.traced import Traced

PLEDGED_AS = b"p2pinfer pledge 1\0"
"""Prepended to a pledge before signing."""

MACHINE_CHARS_MAX = 16

OPENED_BYTES_MAX = 64 << 20
"""As one file: K and V of eight layers of an 8B model at 2,000 positions. Of more, a stage opens K
and V of some layers."""

_ROW_BYTES_MAX = 4 * 65_536
"""Of a residual stream; see ``evidence.OPENING_BYTES_MAX``."""

_STEP_BYTES_MAX = 1 << 20
"""Of one step: a gate four times as wide as that."""

_PATH_MAX = 2 * POSITIONS_MAX.bit_length()

_LAYER_KEY, _TRACE_KEY = (
    blake3(f"p2pinfer openings 1 {kind}".encode()).digest() for kind in ("layer", "trace")
)

_HASH: Any = blob(HASH_BYTES, HASH_BYTES)


class BadOpening(ValueError):
    """The bytes are no opening, or it does not fit what its stage signed; the text says where."""


def _of_blobs(most: int, size_max: int, size_min: int = 0, least: int = 0) -> Any:
    is_many = many(bytes, most, least)

    def check(instance: object, attribute: Any, value: tuple[bytes, ...]) -> None:
        is_many(instance, attribute, value)
        if not all(size_min <= len(each) <= size_max for each in value):
            raise ValueError(f"{attribute.name} must hold {size_min} to {size_max} bytes each")
        if any(len(each) % 4 for each in value):
            raise ValueError(f"{attribute.name} must hold nothing that is cut short")

    return check


def _floats(_: object, attribute: Any, value: bytes) -> None:
    if type(value) is not bytes or not 4 <= len(value) <= _ROW_BYTES_MAX or len(value) % 4:
        raise ValueError(f"{attribute.name} must be a row of float32")


_PATH: Any = _of_blobs(_PATH_MAX, HASH_BYTES, HASH_BYTES)
_ROOTS: Any = _of_blobs(LAYERS_MAX, HASH_BYTES, HASH_BYTES, 1)


@frozen
class Pledge:
    """What a stage signs before it opens a row."""

    terms: Terms
    peer: PeerId = field(validator=PEER)
    """The stage, which signs."""
    receipt: Signed
    """Its own, for more than ``position`` rows."""
    cells: SignedKv
    """Its own statement about K and V, for that receipt."""
    position: int = field(validator=whole(0, POSITIONS_MAX - 1))
    regime: int = field(validator=whole(0, len(Regime) - 1))
    """In which the row ran, and runs again."""
    values: str = field(validator=v.in_(tuple(ATTENTIONS)))
    """How V rows are kept and attention is computed, by its name in ``ATTENTIONS``."""
    machine: str = field(validator=line(MACHINE_CHARS_MAX))
    """The kind of CPU, like ``x86_64``, as the stage says: how attention adds up depends on it."""
    trace: bytes = field(validator=_HASH, repr=shown_size)
    """Root over what all layers computed."""

    def body(self) -> bytes:
        """Return the bytes that are signed, after ``PLEDGED_AS``."""
        packed: bytes = msgpack.packb(astuple(self))
        return packed

    @classmethod
    def parse(cls, body: bytes) -> "Pledge":
        """Parse what ``body`` wrote.

        Raises:
            BadOpening: the bytes are no pledge.
        """
        try:
            terms, peer, receipt, cells, *rest = msgpack.unpackb(body, use_list=False)
            found = cls(Terms(*terms), peer, Signed(*receipt), SignedKv(*cells), *rest)
            if found.body() != body:
                raise ValueError("its encoding is not the canonical one")
        except Exception as error:  # msgpack and validators raise five families between them
            raise BadOpening(f"not a pledge: {error}"[:200]) from error
        return found


@frozen
class OpenedLayer:
    """All that one layer computed for the row."""

    layer: int = field(validator=LAYER)
    """In the whole model."""
    given: bytes = field(validator=_floats, repr=shown_size)
    """The residual stream before the layer: float32, little-endian."""
    steps: tuple[bytes, ...] = field(
        validator=_of_blobs(len(Traced), _STEP_BYTES_MAX, 4, len(Traced)), repr=False
    )
    """In the order of ``Traced``: float32, little-endian."""
    keys: bytes = field(default=b"", validator=blob(OPENED_BYTES_MAX), repr=shown_size)
    """K rows as cached, from position 0 to the opened row's; empty where they are not shown."""
    values: bytes = field(default=b"", validator=blob(OPENED_BYTES_MAX), repr=shown_size)
    """V rows, in the same way."""
    tail: bytes = field(default=LAST_TAIL, validator=_HASH, repr=shown_size)
    """Of the layer's chain over K and V, behind these rows."""

    def leaf(self) -> bytes:
        """Return the layer's leaf of the trace."""
        return layer_leaf(self.given, self.steps)

    def step(self, step: Traced) -> NDArray[np.float32]:
        """Return the numbers behind a step."""
        return np.frombuffer(self.steps[_PLACES[step]], "<f4")

    @property
    def residual(self) -> NDArray[np.float32]:
        """The residual stream before the layer."""
        return np.frombuffer(self.given, "<f4")


_PLACES: Final = {step: at for at, step in enumerate(Traced)}


@frozen
class OpenedRow:
    """A row as a stage received and sent it, with paths to the roots of its receipt."""

    received: bytes = field(validator=blob(_ROW_BYTES_MAX, 2), repr=shown_size)
    received_path: tuple[bytes, ...] = field(validator=_PATH, repr=False)
    sent: bytes = field(validator=blob(_ROW_BYTES_MAX, 2), repr=shown_size)
    """Both as on the wire, in the session's type."""
    sent_path: tuple[bytes, ...] = field(validator=_PATH, repr=False)


@frozen
class OpenedTrace:
    """A pledge, and the opened layers: all of a stage's, or some."""

    pledge: Pledge
    signature: bytes = field(validator=blob(SIGNATURE_BYTES, SIGNATURE_BYTES), repr=shown_size)
    """The stage's, of ``PLEDGED_AS`` and the pledge's body."""
    row: OpenedRow
    leaves: tuple[bytes, ...] = field(validator=_ROOTS, repr=False)
    """Of the trace: one for each layer of the stage."""
    cells: tuple[bytes, ...] = field(validator=_ROOTS, repr=False)
    """The first hash of each layer's chain over K and V."""
    layers: tuple[OpenedLayer, ...] = field(validator=many(OpenedLayer, LAYERS_MAX, 1))
    """In ascending order."""

    @property
    def receipt(self) -> Receipt:
        """The stage's, parsed; not yet checked."""
        return Receipt.parse(self.pledge.receipt.body)


def layer_leaf(given: bytes, steps: Sequence[bytes]) -> bytes:
    """Return a layer's leaf of the trace; each length is part of it."""
    state = blake3(key=_LAYER_KEY)
    for part in (given, *steps):
        state.update(len(part).to_bytes(4, "little") + part)
    return state.digest()


def trace_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root that a pledge names."""
    return blake3(b"".join(leaves), key=_TRACE_KEY).digest()


def encode(opening: OpenedTrace) -> bytes:
    """Return the bytes of an opening."""
    row = astuple(opening.row)
    layers = [astuple(each) for each in opening.layers]
    pledge = opening.pledge.body()
    packed: bytes = msgpack.packb(
        [pledge, opening.signature, row, opening.leaves, opening.cells, layers]
    )
    return packed


def decode(data: bytes) -> OpenedTrace:
    """Return what ``encode`` was given, with every field within its bounds, otherwise unchecked.

    Raises:
        BadOpening: the bytes are no opening.
    """
    if len(data) > OPENED_BYTES_MAX:
        raise BadOpening(f"it is longer than {OPENED_BYTES_MAX} bytes")
    try:
        pledge, signature, row, leaves, cells, layers = msgpack.unpackb(data, use_list=False)
        opened = tuple(OpenedLayer(*each) for each in layers)
        found = OpenedTrace(Pledge.parse(pledge), signature, OpenedRow(*row), leaves, cells, opened)
        if encode(found) != data:
            raise ValueError("its encoding is not the canonical one")
    except BadOpening:
        raise
    except Exception as error:  # msgpack and validators raise five families between them
        raise BadOpening(f"not an opening: {error}"[:200]) from error
    return found


def check_signed(opening: OpenedTrace, verify: Callable[[PeerId, bytes, bytes], bool]) -> None:
    """Check that the stage signed the pledge and its receipt.

    Args:
        opening: decoded.
        verify: whether a peer's signature over some bytes is valid.

    Raises:
        BadOpening: it did not.
    """
    pledge = opening.pledge
    if not verify(pledge.peer, PLEDGED_AS + pledge.body(), opening.signature):
        raise BadOpening(f"the pledge is not signed by {pledge.peer}")
    for what, signed_as, signed in (
        ("receipt", RECEIPT_SIGNED_AS, pledge.receipt),
        ("statement about K and V", CELLS_SIGNED_AS, pledge.cells),
    ):
        if not verify(pledge.peer, signed_as + signed.body, signed.signature):
            raise BadOpening(f"the {what} is not signed by {pledge.peer}")


def check_shown(opening: OpenedTrace, wanted: Mapping[int, bool]) -> None:
    """Check that an opening has the layers that it must, counted from the stage's first.

    Args:
        opening: whose roots have been checked.
        wanted: the layers, and whether each must show its K and V.

    Raises:
        BadOpening: it has others.
    """
    first = opening.receipt.first
    if {each.layer - first: bool(each.keys) for each in opening.layers} != wanted:
        raise BadOpening("these are not the layers that had to be opened, with K and V where due")


def check_roots(opening: OpenedTrace) -> Receipt:
    """Check that all that is opened is what the stage signed for; return its receipt.

    Signatures are checked elsewhere, and what the layers compute in ``core.verdict``.

    Raises:
        BadOpening: a part does not fit; the text says which.
    """
    pledge = opening.pledge
    try:
        receipt = opening.receipt
    except BadReceipt as error:
        raise BadOpening(str(error)) from error
    cells = KvStatement.parse(pledge.cells.body)
    count, layers = receipt.position, receipt.end - receipt.first
    if receipt.terms != pledge.terms.digest():
        raise BadOpening("the receipt is about another session")
    if cells.receipt != blake3(pledge.receipt.body).digest():
        raise BadOpening("the statement about K and V is for another receipt")
    if pledge.position >= count:
        raise BadOpening("the receipt does not cover the opened row")
    if not len(opening.leaves) == len(opening.cells) == layers:
        raise BadOpening("roots are not one for each layer")
    if trace_root(opening.leaves) != pledge.trace:
        raise BadOpening("the steps are not those that were pledged")
    if kv_root(count, opening.cells) != cells.root:
        raise BadOpening("K and V are not those that the stage signed for")
    _check_row(opening.row.received, opening.row.received_path, receipt.received, pledge, count)
    _check_row(opening.row.sent, opening.row.sent_path, receipt.sent, pledge, count)
    numbers = [each.layer for each in opening.layers]
    is_ascending = numbers == sorted(set(numbers))
    if not is_ascending or numbers[0] < receipt.first or numbers[-1] >= receipt.end:
        raise BadOpening("the opened layers are not the stage's, in order")
    for each in opening.layers:
        _check_layer(opening, each, each.layer - receipt.first)
    return receipt


def _check_row(row: bytes, path: Sequence[bytes], root: bytes, pledge: Pledge, count: int) -> None:
    found = leaf(pledge.position, row, regime=Regime(pledge.regime))
    if root_by_path(pledge.position, count, found, path) != root:
        raise BadOpening("the row is not the one that the receipt is for")


def _check_layer(opening: OpenedTrace, layer: OpenedLayer, at: int) -> None:
    where = f"layer {layer.layer}"
    if layer.leaf() != opening.leaves[at]:
        raise BadOpening(f"{where}: the steps are not those that were pledged")
    if not layer.keys and not layer.values:
        if layer.tail != LAST_TAIL:  # which nothing would check
            raise BadOpening(f"{where}: a hash is shown of K and V that are not")
        return
    shown = opening.pledge.position + 1
    if not layer.keys or not layer.values or len(layer.keys) % shown or len(layer.values) % shown:
        raise BadOpening(f"{where}: K and V are not those of {shown} positions")
    if tails(layer.keys, layer.values, shown, layer.tail)[0] != opening.cells[at]:
        raise BadOpening(f"{where}: K and V are not those that the stage signed for")
