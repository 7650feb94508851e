"""Slices from parts: the same bytes as from the file, and none from false parts."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core.errors import BadModelFile, UnsupportedModel
from p2pinfer.core.manifest import Manifest, TensorRow
from p2pinfer.engine.gguf.reader import parse_header
from p2pinfer.engine.gguf.shards import read_model
from p2pinfer.engine.gguf.writer import encode_header
from p2pinfer.engine.store.assemble import join_header, open_parts
from p2pinfer.engine.store.damage import DamagedPart, MissingChunk
from p2pinfer.engine.store.split import add_model, describe, part_files
from p2pinfer.engine.store.store import Store
from tests.support.tiny_models import TINY, write_tiny
from tests.support.toys import (
    LAYER_NAMES,
    NAMES,
    WIDTH,
    copy_parts,
    put,
    quiet,
    rewrite,
    toy_tensors,
    write_toy,
)
from tests.support.whole import open_model


@pytest.mark.parametrize("architecture", TINY)
def test_slices_have_the_bytes_of_those_cut_from_the_file(
    architecture: str, tmp_path: Path
) -> None:
    """Only the parts that the manifest names for a slice are needed."""
    path = tmp_path / "tiny.gguf"
    write_tiny(TINY[architecture], path)
    whole = open_model(path, tmp_path / "whole")
    seeded = Store(tmp_path / "seeded")
    manifest = add_model(seeded, path, quiet)

    for first, end in ((0, 1), (2, 5), (6, 7)):
        store = Store(tmp_path / f"stage-{first}")
        copy_parts(seeded, store, manifest, manifest.needed(first, end))
        model = open_parts(store, manifest, tmp_path / "parts")
        assert model.info.chat_template is None
        assert model.stage(first, end).read_bytes() == whole.stage(first, end).read_bytes()
    ends = Store(tmp_path / "ends")
    copy_parts(seeded, ends, manifest, manifest.ends(2))
    model = open_parts(ends, manifest, tmp_path / "parts")
    assert model.info == whole.info
    assert model.id == manifest.id
    for ours, theirs in zip(model.ends(2), whole.ends(2), strict=True):
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_files_order_is_kept(tmp_path: Path) -> None:
    """Slices keep the order of the model's tensors, even where that is not the layers' order."""
    path = write_toy(tmp_path / "m.gguf", ("output_norm.weight", *reversed(NAMES[:-2])))
    store = Store(tmp_path / "store")
    model = open_parts(store, add_model(store, path, quiet), tmp_path / "parts")
    whole = open_model(path, tmp_path / "whole")
    assert model.stage(1, 3).read_bytes() == whole.stage(1, 3).read_bytes()
    for ours, theirs in zip(model.ends(1), whole.ends(1), strict=True):
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_missing_part_and_a_damaged_one(tmp_path: Path) -> None:
    """No slice is made from a missing or damaged part."""
    store = Store(tmp_path / "store")
    manifest = add_model(store, write_toy(tmp_path / "m.gguf"), quiet)
    model = open_parts(store, manifest, tmp_path / "cache")
    damaged = manifest.part("layer.1")
    with store.path(damaged).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    with pytest.raises(DamagedPart, match=r"layer\.1"):
        model.stage(0, 2)
    with pytest.raises(MissingChunk, match=r"layer\.1"):
        model.stage(1, 2)
    assert not any((tmp_path / "cache").rglob("*.gguf"))
    model.stage(2, 3)

    empty = Store(tmp_path / "empty")
    with pytest.raises(MissingChunk, match="metadata"):
        open_parts(empty, manifest, tmp_path / "cache")
    copy_parts(store, empty, manifest, ["metadata"])
    with pytest.raises(MissingChunk, match="tokenizer"):
        open_parts(empty, manifest, tmp_path / "cache").ends(1)


def row(manifest: Manifest, name: str, changed: TensorRow) -> Manifest:
    """Return a manifest with another row for one tensor."""
    rows = [changed if row.name == name else row for row in manifest.tensors]
    return evolve(manifest, tensors=tuple(rows))


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(lambda m: evolve(m, name="Other"), id="name"),
        pytest.param(lambda m: evolve(m, license="mit"), id="licence"),
        pytest.param(lambda m: evolve(m, architecture="qwen2"), id="architecture"),
        pytest.param(lambda m: evolve(m, width=128), id="width"),
        pytest.param(lambda m: evolve(m, vocabulary=41), id="vocabulary"),
        pytest.param(lambda m: evolve(m, context=4096), id="context"),
        pytest.param(lambda m: evolve(m, tensors=m.tensors[:-2]), id="tensors left out"),
        pytest.param(lambda m: evolve(m, tensors=m.tensors * 2), id="tensors twice"),
        pytest.param(
            lambda m: row(m, NAMES[1], TensorRow(NAMES[1], 5, (WIDTH,))), id="unknown type"
        ),
        pytest.param(
            lambda m: row(m, NAMES[1], TensorRow(NAMES[1], 0, (1 << 40,) * 4)), id="absurd size"
        ),
        pytest.param(
            lambda m: row(m, NAMES[1], TensorRow("blk.9.x", 0, (WIDTH,))), id="unknown layer"
        ),
        pytest.param(
            lambda m: row(m, NAMES[1], TensorRow("strange", 0, (WIDTH,))), id="unknown tensor"
        ),
    ],
)
def test_a_false_manifest_is_refused(lie: Callable[[Manifest], Manifest], tmp_path: Path) -> None:
    """A manifest is checked against its own metadata."""
    store = Store(tmp_path / "store")
    lying = lie(add_model(store, write_toy(tmp_path / "m.gguf"), quiet))
    with pytest.raises((BadModelFile, UnsupportedModel)):
        open_parts(store, lying, tmp_path / "cache")


def test_a_part_with_other_tensors_is_refused(tmp_path: Path) -> None:
    """A part with the right hash but other tensors gives no slice."""
    store = Store(tmp_path / "store")
    manifest = add_model(store, write_toy(tmp_path / "m.gguf"), quiet)
    layer = manifest.part("layer.1")
    larger = toy_tensors(None, LAYER_NAMES[2:4], rows=200)
    file = encode_header({}, larger) + bytes(2 << 20)
    for data in (store.path(manifest.part("layer.2")).read_bytes(), file, b"no GGUF"):
        other = rewrite(layer, data)
        put(store, other, data)
        parts = tuple(other if part == layer else part for part in manifest.parts)
        model = open_parts(store, evolve(manifest, parts=parts), tmp_path / "cache")
        with pytest.raises(BadModelFile):
            model.stage(1, 2)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, bytes]:
    """Provide a manifest, and the bytes of its metadata part."""
    path = write_toy(tmp_path_factory.mktemp("toy") / "m.gguf")
    model = read_model(path)
    files = part_files(model.header, model.extents)
    return describe(model, files, quiet, {}), b"".join(files["metadata"].chunks())


def judge(manifest: Manifest, metadata: bytes) -> None:
    """Join a header, which must match the manifest, or raise one of the two errors."""
    try:
        part = parse_header(metadata, len(metadata), "part.gguf")
        joined = join_header(manifest, part.metadata)
    except (BadModelFile, UnsupportedModel):
        return
    rows = [TensorRow(t.name, t.type.number, t.shape) for t in joined.tensors.values()]
    assert tuple(rows) == manifest.tensors


@settings(max_examples=40)
@given(st.randoms(use_true_random=False))
def test_damaged_metadata_is_judged(toy: tuple[Manifest, bytes], random: Any) -> None:
    """Metadata with bytes changed, removed or inserted, 50 times, matches or is refused."""
    manifest, whole = toy
    judge(manifest, whole)
    for _ in range(50):
        data = bytearray(whole)
        for _ in range(random.randint(1, 3)):
            at = random.randrange(len(data) + 1)
            data[at : at + random.randrange(3)] = random.randbytes(random.randrange(3))
        judge(manifest, bytes(data))


sizes = st.integers(1, 1 << 40) | st.integers(1, 512)
rows = st.builds(
    TensorRow,
    st.sampled_from([*NAMES, "rope_freqs.weight", "blk.511.x", "x"]),
    st.integers(0, 43),
    st.lists(sizes, min_size=1, max_size=4).map(tuple),
)


@settings(max_examples=400)
@given(st.dictionaries(st.integers(0, len(NAMES)), rows, max_size=3))
def test_invented_tensors_are_judged(
    toy: tuple[Manifest, bytes], changes: dict[int, TensorRow]
) -> None:
    """Any tensor rows that a manifest may hold match the model or are refused."""
    manifest, metadata = toy
    changed = [changes.get(i, row) for i, row in enumerate(manifest.tensors)]
    judge(evolve(manifest, tensors=tuple(changed)), metadata)
