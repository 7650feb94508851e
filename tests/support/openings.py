"""Openings of true rows: a model's own layers compute them, traced, and a peer signs."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from attrs import evolve
from blake3 import blake3
from numpy.typing import NDArray

from p2pinfer.core.ids import ModelId, SessionId
from p2pinfer.core.kv_root import LAST_TAIL, KvStatement, SignedKv, kv_root, tails
from p2pinfer.core.kv_root import SIGNED_AS as CELLS_SIGNED_AS
from p2pinfer.core.layer_key import LayerKey, LayerShape
from p2pinfer.core.limits import BLOCK_ROWS, NARROW_ROWS_MAX
from p2pinfer.core.opening import (
    PLEDGED_AS,
    OpenedLayer,
    OpenedRow,
    OpenedTrace,
    Pledge,
    layer_leaf,
    trace_root,
)
from p2pinfer.core.receipts import SIGNED_AS, Receipt, Signed, Terms, seal_of
from p2pinfer.core.regimes import Regime
from p2pinfer.core.shown_layers import ShownLayers
from p2pinfer.core.traced import Traced
from p2pinfer.core.witness import Rows
from p2pinfer.engine.gguf.dequantise import dequantise
from p2pinfer.engine.gguf.layer_keys import layer_key, layer_shape
from p2pinfer.engine.gguf.model_header import EMBEDDING
from p2pinfer.engine.gguf.reader import Tensor, read_header
from p2pinfer.engine.llama.binding import Settings, Slice, Span
from transports.identity import Identity

STAGE, ASKER = Identity(b"s" * 32), Identity(b"a" * 32)
SEED = bytes(range(32))
PADDING = {Regime.NARROW: 0, Regime.WIDE: NARROW_ROWS_MAX + 1, Regime.BLOCK: BLOCK_ROWS}

Floats = NDArray[np.float32]

Computed = tuple[bytes, tuple[bytes, ...], bytes, bytes]
"""Of one layer: the row that goes in, its steps, and its K and V rows of all positions."""


@dataclass(frozen=True)
class Known:
    """A model's file, and a verifier's key of it."""

    path: Path
    shape: LayerShape
    keys: dict[int, LayerKey]
    embedding: Floats

    def rows(self, count: int, seed: int) -> Floats:
        """Return rows of random tokens."""
        tokens = np.random.default_rng(seed).integers(3, len(self.embedding), count)
        return self.embedding[tokens]


def known(path: Path, layers: int) -> Known:
    """Fold a model's first layers."""
    header, data = read_header(path), path.read_bytes()

    def read(tensor: Tensor) -> bytes:
        return data[tensor.offset : tensor.offset + tensor.nbytes]

    shape = layer_shape(header, read)
    embedding, minima = dequantise(header.tensors[EMBEDDING], read(header.tensors[EMBEDDING]))
    if minima is not None:
        embedding = embedding + np.repeat(minima, 32, axis=1)
    keys = {layer: layer_key(SEED, layer, header.tensors, read) for layer in range(layers)}
    return Known(path, shape, keys, embedding)


def cells_of(part: Slice, layers: int) -> list[tuple[bytes, bytes]]:
    """Return the K and V rows of each of the first layers, in llama.cpp's session state."""
    raw = part._state(0).tobytes()
    (count,) = struct.unpack_from("<I", raw, 12)
    at = 16
    for _ in range(count):
        at += 8 + 4 * struct.unpack_from("<iI", raw, at)[1]
    is_transposed, all_layers = struct.unpack_from("<II", raw, at)
    at, found = at + 8, []
    for number in range(2 * all_layers):
        if by_columns := is_transposed and number >= all_layers:
            _, size, width = struct.unpack_from("<iII", raw, at)
            size *= width
        else:
            _, size = struct.unpack_from("<iQ", raw, at)
        data = raw[at + 12 : at + 12 + size * count]
        found.append(transposed(data, count) if by_columns else data)
        at += 12 + size * count
    return list(zip(found[:layers], found[all_layers : all_layers + layers], strict=True))


def transposed(columns: bytes, count: int) -> bytes:
    """Return rows of numbers of two bytes that lie there column by column."""
    return np.frombuffer(columns, "<u2").reshape(-1, count).T.tobytes()


def attention_of(settings: Settings) -> str:
    """Return the name of what settings compute, in ``core.attention``."""
    if not settings.flash_attention:
        return "plain"
    return "bf16" if settings.values_bf16 else "f16"


@dataclass
class Session:
    """Rows that a slice has read, and may open."""

    part: Slice
    layers: int
    dtype: str = "f32"
    model: str = "ab" * 32

    def __post_init__(self) -> None:
        self.received, self.sent = Rows(keep=True), Rows(keep=True)
        for slot in range(self.part.sessions):
            self.part.truncate(slot, 0)
        self._cells: list[tuple[bytes, bytes]] = []
        self._chains: list[list[bytes]] = []

    def read(self, rows: Floats, regime: Regime) -> None:
        """Read rows, as many at once as the regime allows."""
        at = len(self.received.tree)
        assert not self._cells
        for start in range(0, len(rows), regime.rows_max):
            some = rows[start : start + regime.rows_max]
            span = Span(0, at + start, some, layers=self.layers)
            others = self._others(some) if len(some) == 1 and regime is Regime.NARROW else []
            out, *_ = self.part.decode([span, *others], pad_to=PADDING[regime])
            for kept, numbers in ((self.received, some), (self.sent, out)):
                kept.put(at + start, len(some), self._wire(numbers), regime=regime)

    def _others(self, row: Floats) -> list[Span]:
        """Return rows of other sessions for the same decode, if the slice has room for any."""
        slots = range(1, self.part.sessions)
        return [Span(at, self.part._lengths[at], row, layers=self.layers) for at in slots]

    def _wire(self, numbers: Floats) -> bytes:
        return numbers.astype("<f2" if self.dtype == "f16" else "<f4").tobytes()

    def compute(self, position: int) -> list[Computed]:
        """Run a row again, traced; what lies behind is dropped from the slice, not from here."""
        if not self._cells:
            self._cells = cells_of(self.part, self.layers)
            count = len(self.received.tree)
            self._chains = [tails(keys, values, count) for keys, values in self._cells]
        layers = range(self.layers)
        (regime,) = self.received.open(position, 1).regimes
        numbers = np.frombuffer(self.received.open(position, 1).rows, self._numbers)
        row = numbers.astype(np.float32)[None]
        trace = self.part.trace(Span(0, position, row, layers=self.layers), pad_to=PADDING[regime])
        before = [row[0], *(trace[layer, Traced.OUT] for layer in layers)]
        steps = [tuple(trace[layer, step].tobytes() for step in Traced) for layer in layers]
        return [(before[at].tobytes(), steps[at], *self._cells[at]) for at in layers]

    def open(self, position: int, computed: Sequence[Computed] | None = None) -> OpenedTrace:
        """Open a row: as it is, or as a cheat says that it was computed."""
        (regime,) = self.received.open(position, 1).regimes
        return opened(
            self.received,
            self.sent,
            computed or self.compute(position),
            position=position,
            count=len(self.received.tree),
            regime=regime,
            dtype=self.dtype,
            model=self.model,
            values=attention_of(self.part.settings),
            chains=None if computed else self._chains,
        )

    @property
    def _numbers(self) -> str:
        return "<f2" if self.dtype == "f16" else "<f4"


def opened(
    received: Rows,
    sent: Rows,
    computed: Sequence[Computed],
    *,
    position: int,
    count: int,
    regime: Regime,
    dtype: str = "f32",
    model: str = "ab" * 32,
    values: str = "f16",
    signer: Identity = STAGE,
    first: int = 0,
    chains: Sequence[Sequence[bytes]] | None = None,
) -> OpenedTrace:
    """Sign for what each layer computed: the row given, steps, and K and V of all positions."""
    terms = Terms(SessionId(b"i" * 16), ModelId(model), ASKER.peer_id, dtype, seal_of(b"n" * 32))
    roots = received.tree.root(count), sent.tree.root(count)
    end = first + len(computed)
    body = Receipt(terms.digest(), first, end, 1, count, count, *roots, bytes(16)).body()
    if chains is None:  # they take long, and are the same for all rows of a true session
        chains = [tails(keys, values_, count) for _, _, keys, values_ in computed]
    starts = tuple(chain[0] for chain in chains)
    said = KvStatement(blake3(body).digest(), kv_root(count, starts)).body()
    leaves = tuple(layer_leaf(given, steps) for given, steps, _, _ in computed)
    pledge = Pledge(
        terms,
        signer.peer_id,
        Signed(body, signer.sign(SIGNED_AS + body)),
        SignedKv(said, signer.sign(CELLS_SIGNED_AS + said)),
        position,
        int(regime),
        values,
        "x86_64",
        trace_root(leaves),
    )
    layers = []
    for at, (given, steps, keys, rows) in enumerate(computed):
        shown = position + 1
        k, v = keys[: len(keys) // count * shown], rows[: len(rows) // count * shown]
        layers.append(OpenedLayer(first + at, given, steps, k, v, chains[at][shown]))
    row = OpenedRow(
        received.open(position, 1).rows,
        received.tree.path(position, count),
        sent.open(position, 1).rows,
        sent.tree.path(position, count),
    )
    signature = signer.sign(PLEDGED_AS + pledge.body())
    return OpenedTrace(pledge, signature, row, leaves, starts, tuple(layers))


def cut_to_layers(opening: OpenedTrace, shown: ShownLayers) -> OpenedTrace:
    """Leave the layers in that are shown, and K and V where they are."""
    first, layers = opening.receipt.first, len(opening.leaves)
    by_number = {each.layer - first: each for each in opening.layers}
    kept = [
        by_number[at] if has_cells else evolve(by_number[at], keys=b"", values=b"", tail=LAST_TAIL)
        for at, has_cells in shown.of(layers).items()
    ]
    return evolve(opening, layers=tuple(kept))
