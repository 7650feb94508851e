"""Openings: one row of a stage with every step that its layers took, signed, to check without them.

A stage that signed for a row runs it again with tracing, and signs a *pledge*: a root over what
each layer computed. Then it opens any of the layers. Each opened layer brings the row that went in,
the numbers behind each step, and its K and V rows up to there, as they lie in the cache. All of it
hangs on roots that the stage signed for: the rows that it received and sent, and the K and V rows,
on its receipt; the steps on the pledge. So a layer cut out of an opening is still evidence against
its stage, for everybody.

    leaf of a layer    BLAKE3 keyed "layer", of the row that goes in and all steps
    trace              BLAKE3 keyed "trace", of the leaves, in order
    leaf of the cache  BLAKE3 keyed "cache", of K and V rows of eight positions
    cached             BLAKE3 keyed "cached", of the number of positions and each layer's root over
                       its leaves of the cache
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgpack
import numpy as np
from attrs import astuple, evolve, field, frozen
from attrs import validators as v
from blake3 import blake3
from numpy.typing import NDArray

from p2pinfer.core.checks import (
    LAYER,
    LAYERS_MAX,
    PEER,
    POSITIONS_MAX,
    blob,
    many,
    shown_size,
    whole,
)
from p2pinfer.core.ids import PeerId
from p2pinfer.core.merkle import Tree, leaf, root_over
from p2pinfer.core.receipts import ROOT_BYTES, SIGNATURE_BYTES, BadReceipt, Receipt, Signed, Terms
from p2pinfer.core.receipts import SIGNED_AS as RECEIPT_SIGNED_AS
from p2pinfer.core.regimes import Regime
from p2pinfer.core.traced import Traced
from p2pinfer.core.witness import Rows

PLEDGED_AS = b"p2pinfer pledge 1\0"
"""Prepended to a pledge before signing."""

OPENED_BYTES_MAX = 6 << 20
"""The default model's ten layers at 700 positions; like the rows of a fraud proof. Where all layers
have more, a stage opens some of them."""

CACHE_BLOCK: Final = 8
"""Positions in a leaf over K and V: few hashes, and at most seven rows more than were asked for."""

_ROW_BYTES_MAX = 4 * 65_536
"""Of a residual stream; see ``evidence.OPENING_BYTES_MAX``."""

_STEP_BYTES_MAX = 1 << 20
"""Of one step: a gate four times as wide as that."""

_PATH_MAX = 2 * POSITIONS_MAX.bit_length()

_LAYER_KEY, _TRACE_KEY, _CACHE_KEY, _CACHED_KEY = (
    blake3(f"p2pinfer openings 1 {kind}".encode()).digest()
    for kind in ("layer", "trace", "cache", "cached")
)

_ROOT: Any = blob(ROOT_BYTES, ROOT_BYTES)


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


_PATH: Any = _of_blobs(_PATH_MAX, ROOT_BYTES, ROOT_BYTES)
_ROOTS: Any = _of_blobs(LAYERS_MAX, ROOT_BYTES, ROOT_BYTES, 1)


@frozen
class Pledge:
    """What a stage signs before it opens a row."""

    terms: Terms
    peer: PeerId = field(validator=PEER)
    """The stage, which signs."""
    receipt: Signed
    """Its own, for more than ``position`` rows, with a root over K and V."""
    position: int = field(validator=whole(0, POSITIONS_MAX - 1))
    regime: int = field(validator=whole(0, len(Regime) - 1))
    """In which the row ran, and runs again."""
    values: str = field(validator=v.in_(("f16", "bf16")))
    """How V rows are kept; K rows are always float16."""
    trace: bytes = field(validator=_ROOT, repr=shown_size)
    """Root over what all layers computed."""

    def body(self) -> bytes:
        """Return the bytes that are signed, after ``PLEDGED_AS``."""
        packed: bytes = msgpack.packb([astuple(self.terms), *astuple(self)[1:]])
        return packed

    @classmethod
    def parse(cls, body: bytes) -> "Pledge":
        """Parse what ``body`` wrote.

        Raises:
            BadOpening: the bytes are no pledge.
        """
        try:
            terms, peer, receipt, *rest = msgpack.unpackb(body, use_list=False)
            found = cls(Terms(*terms), peer, Signed(*receipt), *rest)
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
    keys: bytes = field(validator=blob(OPENED_BYTES_MAX), repr=shown_size)
    """K rows as cached, from position 0 to the end of the opened row's block of the cache."""
    values: bytes = field(validator=blob(OPENED_BYTES_MAX), repr=shown_size)
    """V rows, likewise."""
    path: tuple[bytes, ...] = field(validator=_PATH, repr=False)
    """From them to the layer's root over the cache."""

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
    cached: tuple[bytes, ...] = field(validator=_ROOTS, repr=False)
    """Each layer's root over its leaves of the cache."""
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


def cache_tree(keys: bytes, values: bytes, count: int) -> Tree:
    """Return the tree over a layer's K and V rows of the first ``count`` positions."""
    found = Tree()
    for each in _cache_leaves(keys, values, count):
        found.add(each)
    return found


def cached_root(roots: Sequence[bytes], count: int) -> bytes:
    """Return the root that a receipt names, from each layer's ``cache_tree``'s whole root."""
    return blake3(count.to_bytes(4, "little") + b"".join(roots), key=_CACHED_KEY).digest()


def blocks_for(positions: int) -> int:
    """Return how many leaves of the cache hold that many positions."""
    return -(-positions // CACHE_BLOCK)


def positions_shown(position: int, count: int) -> int:
    """Return how many K and V rows an opening shows.

    Args:
        position: of the opened row.
        count: of positions that the receipt covers.
    """
    return min(count, CACHE_BLOCK * blocks_for(position + 1))


def encode(opening: OpenedTrace) -> bytes:
    """Return the bytes of an opening."""
    row = astuple(opening.row)
    layers = [astuple(each) for each in opening.layers]
    pledge = opening.pledge.body()
    packed: bytes = msgpack.packb(
        [pledge, opening.signature, row, opening.leaves, opening.cached, layers]
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
        pledge, signature, row, leaves, cached, layers = msgpack.unpackb(data, use_list=False)
        opened = tuple(OpenedLayer(*each) for each in layers)
        found = OpenedTrace(
            Pledge.parse(pledge), signature, OpenedRow(*row), leaves, cached, opened
        )
        if encode(found) != data:
            raise ValueError("its encoding is not the canonical one")
    except BadOpening:
        raise
    except Exception as error:  # msgpack and validators raise five families between them
        raise BadOpening(f"not an opening: {error}"[:200]) from error
    return found


@frozen
class Computed:
    """What one layer computed for a row, and all its K and V rows that the receipt covers."""

    given: bytes
    steps: tuple[bytes, ...]
    keys: bytes
    values: bytes


def open_trace(
    pledge: Pledge,
    computed: Sequence[Computed],
    received: Rows,
    sent: Rows,
    sign: Callable[[bytes], bytes],
    wanted: Sequence[int] | None = None,
) -> OpenedTrace:
    """Return a stage's opening of a row.

    Args:
        pledge: its ``trace`` is filled in here.
        computed: by each layer of the stage, in order.
        received: the session's rows; the tree over them is needed, and the opened row.
        sent: likewise.
        sign: as the stage.
        wanted: numbers of the layers to open, in the whole model; None: all.
    """
    receipt, at = Receipt.parse(pledge.receipt.body), pledge.position
    count, shown = receipt.position, positions_shown(at, receipt.position)
    leaves = tuple(layer_leaf(each.given, each.steps) for each in computed)
    trees = [cache_tree(each.keys, each.values, count) for each in computed]
    roots, layers = tuple(tree.root(len(tree)) for tree in trees), []
    for number, (each, tree) in enumerate(zip(computed, trees, strict=True), receipt.first):
        if wanted is None or number in wanted:
            keys = each.keys[: len(each.keys) // count * shown]
            values = each.values[: len(each.values) // count * shown]
            path = tree.path(0, blocks_for(shown), len(tree))
            layers.append(OpenedLayer(number, each.given, each.steps, keys, values, path))
    pledge = evolve(pledge, trace=trace_root(leaves))
    row = OpenedRow(
        received.open(at, 1).rows,
        received.tree.path(at, at + 1, count),
        sent.open(at, 1).rows,
        sent.tree.path(at, at + 1, count),
    )
    signature = sign(PLEDGED_AS + pledge.body())
    return OpenedTrace(pledge, signature, row, leaves, roots, tuple(layers))


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
    receipt = pledge.receipt
    if not verify(pledge.peer, RECEIPT_SIGNED_AS + receipt.body, receipt.signature):
        raise BadOpening(f"the receipt is not signed by {pledge.peer}")


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
    count, layers = receipt.position, receipt.end - receipt.first
    if receipt.terms != pledge.terms.digest():
        raise BadOpening("the receipt is about another session")
    if not receipt.cached:
        raise BadOpening("the receipt has no root over K and V")
    if pledge.position >= count:
        raise BadOpening("the receipt does not cover the opened row")
    if not len(opening.leaves) == len(opening.cached) == layers:
        raise BadOpening("roots are not one for each layer")
    if trace_root(opening.leaves) != pledge.trace:
        raise BadOpening("the steps are not those that were pledged")
    if cached_root(opening.cached, count) != receipt.cached:
        raise BadOpening("K and V are not those of the receipt")
    _check_row(opening.row.received, opening.row.received_path, receipt.received, pledge, count)
    _check_row(opening.row.sent, opening.row.sent_path, receipt.sent, pledge, count)
    numbers = [each.layer for each in opening.layers]
    is_ascending = numbers == sorted(set(numbers))
    if not is_ascending or numbers[0] < receipt.first or numbers[-1] >= receipt.end:
        raise BadOpening("the opened layers are not the stage's, in order")
    for each in opening.layers:
        _check_layer(opening, each, each.layer - receipt.first, count)
    return receipt


def _check_row(row: bytes, path: Sequence[bytes], root: bytes, pledge: Pledge, count: int) -> None:
    found = leaf(pledge.position, row, regime=Regime(pledge.regime))
    try:
        is_its = root_over([found], pledge.position, count, path) == root
    except ValueError as error:
        raise BadOpening(f"the row: {error}") from error
    if not is_its:
        raise BadOpening("the row is not the one that the receipt is for")


def _check_layer(opening: OpenedTrace, layer: OpenedLayer, at: int, count: int) -> None:
    where = f"layer {layer.layer}"
    if layer.leaf() != opening.leaves[at]:
        raise BadOpening(f"{where}: the steps are not those that were pledged")
    shown = positions_shown(opening.pledge.position, count)
    if not layer.keys or not layer.values or len(layer.keys) % shown or len(layer.values) % shown:
        raise BadOpening(f"{where}: K and V are not those of {shown} positions")
    leaves = _cache_leaves(layer.keys, layer.values, shown)
    try:
        found = root_over(leaves, 0, blocks_for(count), layer.path)
    except ValueError as error:
        raise BadOpening(f"{where}: {error}") from error
    if found != opening.cached[at]:
        raise BadOpening(f"{where}: K and V are not those of the receipt")


def _cache_leaves(keys: bytes, values: bytes, count: int) -> list[bytes]:
    key_bytes, value_bytes = len(keys) // count, len(values) // count
    found = []
    for start in range(0, count, CACHE_BLOCK):
        end = start + CACHE_BLOCK
        part = keys[start * key_bytes : end * key_bytes]
        head = start.to_bytes(4, "little") + len(part).to_bytes(4, "little")
        rows = values[start * value_bytes : end * value_bytes]
        found.append(blake3(head + part + rows, key=_CACHE_KEY).digest())
    return found
