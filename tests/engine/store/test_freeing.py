"""The store forgets chunks that it is told to, and keeps plans and the parity that they name."""

from pathlib import Path

import pytest
from blake3 import blake3

from p2pinfer.core.manifest import CHUNK_BYTES
from p2pinfer.core.stripes import Layout, StoragePlan, make_plan, parity_part
from p2pinfer.engine.store.damage import MissingChunk
from p2pinfer.engine.store.store import Store
from tests.support.stored import DATA, PART, chunk, files, model_of, part_of, put

MODEL = model_of("m", {"layer.0": DATA})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Provide an empty store."""
    return Store(tmp_path / "store")


def plan_of(parity: bytes) -> StoragePlan:
    """Make a plan of 2 + 1 shares, all of them with the same parity."""
    layout = Layout(MODEL, 2, 1)
    rows = [
        [parity_part(band, 0, [blake3(parity).digest()] * band.stripes)] for band in layout.each()
    ]
    return make_plan(MODEL, 2, 1, rows)


def test_dropped_chunks_free_the_disk(store: Store) -> None:
    """The others stay, also for a store that is opened afterwards; they can come again."""
    for index in (0, 1, 3):
        store.write_chunk(PART, index, chunk(index))
    path = store.root / "partial" / PART.hash
    before = path.stat().st_blocks
    store.drop(PART, {1, 2})
    assert path.stat().st_blocks <= before - CHUNK_BYTES // 512
    for each in (store, Store(store.root)):
        assert each.chunks_held(PART) == {0, 3}
        assert each.read_chunk(PART, 3) == chunk(3)
        with pytest.raises(MissingChunk):
            each.read_chunk(PART, 1)
    store.write_chunk(PART, 1, chunk(1))
    store.drop(PART, range(4))
    assert files(store) == ["lock"]


def test_a_whole_part_stays_unless_all_of_it_goes(store: Store) -> None:
    """Its peer may serve it."""
    put(store)
    store.drop(PART, {0})
    assert store.held(PART)
    store.drop(PART, range(4))
    assert not store.held(PART)
    store.drop(PART, {0})


def test_holes_are_not_hashed(store: Store) -> None:
    """A chunk of zeros that was written counts; one that was not does not."""
    part = part_of(bytes(2 * CHUNK_BYTES) + b"x")
    store.write_chunk(part, 1, bytes(CHUNK_BYTES))
    store.write_chunk(part, 2, b"x")
    assert 0 not in Store(store.root).chunks_held(part)
    assert {1, 2} <= Store(store.root).chunks_held(part)


def test_a_plan_and_its_parity_stay_with_their_model(store: Store) -> None:
    """They go with it, and not with another model."""
    other = model_of("other", {})
    for manifest in (MODEL, other):
        store.add_manifest(manifest.encode(), manifest.id)
    parity = bytes(range(64))
    plan = plan_of(parity)
    store.add_plan(plan)
    short = parity_part(Layout(MODEL, 2, 1).band(2), 0, [blake3(parity).digest()])
    assert store.chunks_held(plan.parity[2][0]) == set()
    store.add_list(plan.parity[2][0], b"".join(short.chunks))
    store.write_chunk(short, 0, parity)
    store.finish(short)
    store.remove(other.id)
    assert Store(store.root).plan(MODEL) == plan
    assert store.held(plan.parity[2][0])
    store.remove(MODEL.id)
    assert store.plan(MODEL) is None
    assert files(store) == ["lock"]


def test_a_damaged_plan_is_forgotten(store: Store) -> None:
    """It can be had again from others."""
    store.add_plan(plan_of(b"1" * 64))
    path = store.root / "plans" / MODEL.id
    path.write_bytes(path.read_bytes()[:-1])
    assert store.plan(MODEL) is None
    store.add_plan(again := plan_of(b"2" * 64))
    assert store.plan(MODEL) == again
