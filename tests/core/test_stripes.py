"""Stripes of a model, and its storage plan."""

import msgpack
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.ids import ChunkId
from p2pinfer.core.manifest import CHUNK_BYTES, Manifest, Part, TensorRow, part_names
from p2pinfer.core.stripes import (
    PLAN_BYTES_MAX,
    BadPlan,
    Layout,
    StoragePlan,
    make_plan,
    parity_part,
    parse_plan,
)


def manifest_of(*sizes: int) -> Manifest:
    """Make a manifest whose parts have these sizes."""
    names = part_names(len(sizes) - 4)
    parts = tuple(
        Part(name, size, tuple(blake3(f"{name} {i}".encode()).digest() for i in range(chunks)))
        for name, size in zip(names, sizes, strict=True)
        for chunks in [-(-size // CHUNK_BYTES)]
    )
    return Manifest("m", None, "llama", len(sizes) - 4, 8, 8, 8, (TensorRow("t", 0, (1,)),), parts)


def plan_of(manifest: Manifest, k: int, m: int) -> StoragePlan:
    """Make a plan of no real parity."""
    layout = Layout(manifest, k, m)
    hashes = [blake3(b"p").digest()]
    rows = [
        [parity_part(band, row, hashes * band.stripes) for row in range(m)]
        for band in layout.each()
    ]
    return make_plan(manifest, k, m, rows)


SIZES = st.lists(st.integers(1, 40 * CHUNK_BYTES // 10), min_size=5, max_size=9)


@given(sizes=SIZES, k=st.integers(1, 9))
def test_every_chunk_is_in_one_stripe(sizes: list[int], k: int) -> None:
    """And it is found where it is."""
    manifest = manifest_of(*sizes)
    layout = Layout(manifest, k, 2)
    chunks = [ChunkId(p.hash, n) for p in manifest.parts for n in range(p.chunk_count)]
    dealt = [chunk for band in layout.each() for row in band.data for chunk in row]
    assert sorted(dealt) == sorted(chunks)
    for chunk in chunks:
        number, stripe, row = layout.find(chunk)
        band = layout.band(number)
        assert band.at(stripe)[row] == chunk
        assert layout.size(chunk) <= band.shares_bytes[stripe]


def test_chunks_of_one_stripe_lie_far_apart() -> None:
    """A peer with one part of the model holds few shares of any stripe."""
    manifest = manifest_of(*[8 * CHUNK_BYTES] * 8)
    layout = Layout(manifest, 8, 8)
    for band in layout.each():
        for stripe in range(band.stripes):
            assert len({chunk.part for chunk in band.at(stripe).values()}) == 8


def test_short_chunks_pad_each_other_little() -> None:
    """The longest together, so that parity is about as long as the data."""
    layout = Layout(manifest_of(64, 640_000, 100, 639_000, 128, 1000, 638_000), 3, 3)
    assert [band.shares_bytes for band in layout.each()] == [(640_000,), (1024,), (64,)]


def test_bands_beyond_the_last_are_refused() -> None:
    """And chunks that the model does not have."""
    layout = Layout(manifest_of(1, 2, 3, 4, 5), 2, 1)
    with pytest.raises(IndexError):
        layout.band(layout.bands)
    with pytest.raises(KeyError):
        layout.size(ChunkId(manifest_of(9, 9, 9, 9, 9).parts[0].hash, 0))


@given(sizes=SIZES, k=st.integers(1, 9), m=st.integers(1, 9))
def test_a_plan_comes_back_from_its_bytes(sizes: list[int], k: int, m: int) -> None:
    """With the same id."""
    manifest = manifest_of(*sizes)
    plan = plan_of(manifest, k, m)
    again = parse_plan(plan.encode(), manifest)
    assert again == plan
    assert again.id == plan.id == blake3(plan.encode()).hexdigest()


def test_every_other_byte_string_is_refused() -> None:
    """Of another model, cut short, or with absurd values; it is the sender's fault."""
    manifest, other = manifest_of(1, 2, 3, 4, 5), manifest_of(5, 4, 3, 2, 1)
    plan = plan_of(manifest, 2, 1)
    data = plan.encode()
    kind, model, k, m, joined = msgpack.unpackb(data)
    for wrong in (
        b"",
        data[:-1],
        data + b"\0",
        bytes(PLAN_BYTES_MAX + 1),
        msgpack.packb(["another", model, k, m, joined]),
        msgpack.packb([kind, model, 0, m, joined]),
        msgpack.packb([kind, model, k, 300, joined]),
        msgpack.packb([kind, model, k, True, joined]),
        msgpack.packb([kind, model, k, m, joined[:-1]]),
        msgpack.packb([kind, model.hex(), k, m, joined]),
        msgpack.packb({1: 2}),
    ):
        with pytest.raises(BadPlan):
            parse_plan(wrong, manifest)
    with pytest.raises(BadPlan, match="not a storage plan of this model"):
        parse_plan(data, other)


@given(data=st.binary(max_size=200))
def test_noise_is_no_plan(data: bytes) -> None:
    """Nothing but BadPlan is ever raised."""
    with pytest.raises(BadPlan):
        parse_plan(data, manifest_of(1, 2, 3, 4, 5))
