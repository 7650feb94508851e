"""How a model's chunks form stripes, and the storage plan, which names their parity by its hashes.

A stripe is ``k`` chunks of a model and the ``m`` parity chunks that `p2pinfer.core.erasure` makes
of them: any ``k`` of these ``k + m`` give back the rest. Which chunks form a stripe follows from
the manifest alone. Full chunks are dealt out so that those of one stripe lie far apart: a peer that
serves some layers then holds few shares of each. The short chunks at the ends of parts, which
differ in size, form stripes of their own, the longest together, so that little is padded. Where
chunks run out, a stripe has fewer than ``k``, and zeros that everybody knows stand for the rest.

Stripes next to each other form a band. Its rows are what peers keep: data rows consist of chunks
of the model's own parts, as ever; a parity row is one more part, named by its chunks' hashes.

    [FORMAT, model, k, m, hashes of the parity parts joined, band by band]

Everybody who has a model computes the same plan of it, so the plan's hash, its id, is the same
everywhere. Yet it does not enter the model's id, which therefore stays what it was, and nothing
rests on it: what is decoded is checked against the manifest, so a wrong plan can waste time but
never give wrong bytes; and it is found out by the first stripe that is decoded or computed again.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import msgpack
from attrs import field, frozen
from blake3 import blake3

from p2pinfer.core.erasure import SHARES_MAX, share_bytes
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ChunkId, ModelId, PartHash, PlanId
from p2pinfer.core.manifest import CHUNK_BYTES, HASH_BYTES, Manifest, Part

FORMAT = "p2pinfer storage 1"

DATA_SHARES = 8
PARITY_SHARES = 8
"""As safe as three copies where seven in ten peers are up, at two thirds of the space. With more
data shares, rebuilding one would read more; with fewer, chance would even out less."""

BAND_STRIPES = 8
"""A row of a band has 8 MiB: its parity fits into memory while it is made, 64 MiB of it, and the
names of 1 TB of parity into one message."""

GROUP_STRIPES = 64
"""Stripes whose rows go to the same peers, half a GiB of a model: fewer ways to lose some part of
it than if each stripe chose for itself, and still fine enough to fill disks evenly."""

PLAN_BYTES_MAX = 4 << 20
"""The parity of a model of 1 TB; fits into one message."""


class BadPlan(UserError):
    """The bytes are not a storage plan of this model."""


class WrongPlan(BadPlan):
    """A plan names parity that is not its model's, as computing it has shown."""


@frozen
class Band:
    """Some stripes whose chunks are kept row by row."""

    number: int
    group: int
    """Bands of one group are kept by the same peers."""
    data: tuple[tuple[ChunkId, ...], ...] = field(repr=False)
    """The chunks of each data row; some rows may be shorter, or empty."""
    shares_bytes: tuple[int, ...] = field(repr=False)
    """The size of each stripe's parity chunks."""

    @property
    def stripes(self) -> int:
        """How many stripes it has."""
        return len(self.shares_bytes)

    def at(self, stripe: int) -> dict[int, ChunkId]:
        """Return the data chunks of one of its stripes by their rows; others are zeros."""
        return {row: chunks[stripe] for row, chunks in enumerate(self.data) if stripe < len(chunks)}


class Layout:
    """The stripes of a model, computed where they are asked for."""

    def __init__(self, manifest: Manifest, k: int, m: int) -> None:
        assert k >= 1, k
        assert m >= 1, m
        assert k + m <= SHARES_MAX, (k, m)
        self.k, self.m = k, m
        self._parts = list({part.hash: part for part in manifest.parts}.values())
        self._of = {part.hash: part for part in self._parts}
        self._ends = [0, *accumulate(part.size // CHUNK_BYTES for part in self._parts)]
        self._starts = {part.hash: at for part, at in zip(self._parts, self._ends, strict=False)}
        short = [part for part in self._parts if part.size % CHUNK_BYTES]
        short.sort(key=lambda part: -(part.size % CHUNK_BYTES))  # equal ones in the model's order
        self._short = [ChunkId(part.hash, part.chunk_count - 1) for part in short]
        self._place = {chunk: at for at, chunk in enumerate(self._short)}
        self._full_stripes = -(-self._ends[-1] // k)
        self._full_bands = -(-self._full_stripes // BAND_STRIPES)
        self.bands = self._full_bands + -(-len(short) // k)
        """How many there are."""

    def size(self, chunk: ChunkId) -> int:
        """Return the bytes of a chunk of the model; raises KeyError if it has no such part."""
        return self._of[chunk.part].chunk_size(chunk.number)

    def band(self, number: int) -> Band:
        """Return one of the bands; raises IndexError."""
        if not 0 <= number < self.bands:
            raise IndexError(number)
        if number < self._full_bands:
            first = number * BAND_STRIPES
            end = min(first + BAND_STRIPES, self._full_stripes)
            rows = tuple(tuple(self._dealt(row, first, end)) for row in range(self.k))
            sizes: tuple[int, ...] = (CHUNK_BYTES,) * (end - first)
            return Band(number, first // GROUP_STRIPES, rows, sizes)
        at = number - self._full_bands
        chunks = self._short[at * self.k : (at + 1) * self.k]
        rows = tuple((chunk,) for chunk in chunks) + ((),) * (self.k - len(chunks))
        group = (self._full_stripes + at) // GROUP_STRIPES
        return Band(number, group, rows, (share_bytes(map(self.size, chunks)),))

    def _dealt(self, row: int, first: int, end: int) -> Iterator[ChunkId]:
        """Yield a row's chunks of some stripes: those of one stripe lie a whole row apart."""
        start = row * self._full_stripes
        for at in range(start + first, min(start + end, self._ends[-1])):
            part = bisect_right(self._ends, at) - 1
            yield ChunkId(self._parts[part].hash, at - self._ends[part])

    def find(self, chunk: ChunkId) -> tuple[int, int, int]:
        """Return a chunk's band, its stripe in there, and its row; raises KeyError."""
        if chunk in self._place:
            band, row = divmod(self._place[chunk], self.k)
            return self._full_bands + band, 0, row
        row, stripe = divmod(self._starts[chunk.part] + chunk.number, self._full_stripes)
        band, within = divmod(stripe, BAND_STRIPES)
        return band, within, row

    def grouped(self) -> dict[int, list[Band]]:
        """Return the bands of each group."""
        found: dict[int, list[Band]] = {}
        for band in self.each():
            found.setdefault(band.group, []).append(band)
        return found

    def each(self) -> Iterator[Band]:
        """Yield every band."""
        return map(self.band, range(self.bands))


@frozen
class StoragePlan:
    """The parity of a model, by its hashes."""

    model: ModelId
    k: int
    m: int
    parity: tuple[tuple[Part, ...], ...] = field(repr=lambda bands: f"<{len(bands)} bands>")
    """The parity parts of each band, a row each. Their chunks are listed elsewhere."""
    id: PlanId = field(init=False, eq=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "id", PlanId(blake3(self.encode()).hexdigest()))

    @property
    def parts(self) -> list[Part]:
        """All parity parts."""
        return [part for band in self.parity for part in band]

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        joined = b"".join(bytes.fromhex(part.hash) for part in self.parts)
        encoded: bytes = msgpack.packb(
            [FORMAT, bytes.fromhex(self.model), self.k, self.m, joined], use_bin_type=True
        )
        return encoded


def parity_part(band: Band, row: int, found: PartHash | Sequence[bytes]) -> Part:
    """Return a parity part, by its name or by its chunks' hashes; ``row`` counts from 0."""
    name, size = f"parity.{band.number}.{row}", sum(band.shares_bytes)
    if isinstance(found, str):
        return Part(name, size, (), found)
    return Part(name, size, tuple(found))


def make_plan(manifest: Manifest, k: int, m: int, bands: Iterable[Sequence[Part]]) -> StoragePlan:
    """Return the plan with these parity parts, band by band."""
    rows = tuple(tuple(Part(part.name, part.size, (), part.hash) for part in b) for b in bands)
    assert all(len(band) == m for band in rows), m
    return StoragePlan(manifest.id, k, m, rows)


def parse_plan(data: bytes, manifest: Manifest) -> StoragePlan:
    """Return the plan that the bytes hold; raises BadPlan if they hold none of this model."""
    if len(data) > PLAN_BYTES_MAX:
        raise BadPlan(f"a storage plan of {len(data):,} bytes is too long")
    try:
        kind, model, k, m, joined = msgpack.unpackb(data, use_list=False)
        if kind != FORMAT or type(model) is not bytes or model.hex() != manifest.id:
            raise BadPlan("this is not a storage plan of this model")
        if type(k) is not int or type(m) is not int or min(k, m) < 1 or k + m > SHARES_MAX:
            raise BadPlan("the storage plan has no such number of shares")
        layout = Layout(manifest, k, m)
        if type(joined) is not bytes or len(joined) != layout.bands * m * HASH_BYTES:
            raise BadPlan("the storage plan has too few or too many hashes")
        starts = range(0, len(joined), HASH_BYTES)
        hashes = iter([PartHash(joined[at : at + HASH_BYTES].hex()) for at in starts])
        rows = [
            [parity_part(band, row, next(hashes)) for row in range(m)] for band in layout.each()
        ]
        plan = make_plan(manifest, k, m, rows)
        if plan.encode() != data:
            raise BadPlan("the storage plan is not in its canonical form")
    except BadPlan:
        raise
    except Exception as error:  # msgpack raises four families, and any type may be anywhere
        raise BadPlan(f"not a storage plan: {error}"[:200]) from error
    return plan
