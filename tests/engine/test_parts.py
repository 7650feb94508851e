"""Parts: the same from every copy of a file, valid GGUFs, and enough to make every slice."""

import os
import random
import shutil
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import gguf as reference
import pytest
from attrs import evolve
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core.errors import BadModelFile, UnsupportedModel, UserError
from p2pinfer.core.ids import PartHash
from p2pinfer.core.manifest import CHUNK_BYTES, Manifest, Part, TensorRow
from p2pinfer.engine.ggml_types import F32, GGML_TYPES
from p2pinfer.engine.gguf import parse_header, read_header
from p2pinfer.engine.gguf_values import Array, Value, ValueType
from p2pinfer.engine.gguf_writer import Extent, NewTensor, encode_header, write_gguf
from p2pinfer.engine.parts import add_model, describe, join_header, open_parts, part_files
from p2pinfer.engine.slices import open_model
from p2pinfer.engine.store import DamagedPart, MissingChunk, Store
from tests.engine.models import TINY, write_tiny

Q8_0 = GGML_TYPES[8]
WIDTH, TOKENS, LAYERS = 64, 40, 4
LAYER_NAMES = tuple(f"blk.{n}.{what}.weight" for n in range(LAYERS) for what in ("norm", "up"))
NAMES = ("token_embd.weight", *LAYER_NAMES, "output_norm.weight", "output.weight")

Metadata = dict[str, Value | Array]


def quiet(what: str, done: int, total: int) -> None:
    """Show no progress."""


def toy_metadata(**changes: Value) -> Metadata:
    """Make up metadata, with the tokenizer's in its midst."""
    return {
        "general.architecture": Value.of(ValueType.STRING, "llama"),
        "general.name": Value.of(ValueType.STRING, "Toy"),
        "general.license": Value.of(ValueType.STRING, "apache-2.0"),
        "tokenizer.ggml.model": Value.of(ValueType.STRING, "llama"),
        "tokenizer.ggml.tokens": Array.of(ValueType.STRING, ["x"] * TOKENS),
        "llama.block_count": Value.of(ValueType.UINT32, LAYERS),
        "llama.context_length": Value.of(ValueType.UINT32, 128),
        "llama.embedding_length": Value.of(ValueType.UINT32, WIDTH),
        "llama.attention.head_count": Value.of(ValueType.UINT32, 4),
        **{key.replace("__", "."): value for key, value in changes.items()},
    }


def toy_tensors(source: Path | None, names: Sequence[str], rows: int) -> list[NewTensor]:
    """Make up tensors whose bytes come from consecutive places of ``source``."""
    shapes: dict[str, tuple[int, ...]] = {"up": (WIDTH, rows), "norm": (WIDTH,)}
    shapes |= dict.fromkeys(("token_embd", "output"), (WIDTH, TOKENS)) | {"output_norm": (WIDTH,)}
    tensors = []
    at = 0
    for name in names:
        shape = shapes[name.split(".")[-2]]
        new = NewTensor(name, shape, F32 if len(shape) == 1 else Q8_0, None)
        extent = Extent(source, at, new.nbytes) if source else None
        tensors.append(NewTensor(new.name, new.shape, new.type, extent))
        at += new.nbytes
    return tensors


def write_toy(path: Path, names: Sequence[str] = NAMES, rows: int = 100, **changes: Value) -> Path:
    """Write a model with random weights; equal arguments give equal files."""
    path.parent.mkdir(exist_ok=True)
    size = sum(tensor.nbytes for tensor in toy_tensors(None, names, rows))
    weights = path.with_suffix(".weights")
    weights.write_bytes(random.Random(0).randbytes(size))
    write_gguf(path, toy_metadata(**changes), toy_tensors(weights, names, rows))
    weights.unlink()
    return path


def copy_parts(source: Store, target: Store, manifest: Manifest, names: Iterable[str]) -> None:
    """Bring the named parts of a model from one store to another, as a fetcher does."""
    target.add_manifest(manifest.encode(), manifest.id)
    for name in names:
        part = manifest.part(name)
        for index in range(len(part.chunks)):
            target.write_chunk(part, index, source.read_chunk(part, index))
        target.finish(part)


def rewrite(part: Part, data: bytes) -> Part:
    """Return a part of the same name with other bytes."""
    blocks = [data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES)]
    chunks = tuple(blake3(block).digest() for block in blocks)
    return Part(part.name, PartHash(blake3(data).hexdigest()), len(data), chunks)


def put(store: Store, part: Part, data: bytes) -> None:
    """Keep a part whose bytes are at hand."""
    for index in range(len(part.chunks)):
        store.write_chunk(part, index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
    store.finish(part)


@pytest.mark.parametrize("architecture", [name for name in TINY if name != "gemma2"])
def test_slices_have_the_bytes_of_those_cut_from_the_file(
    architecture: str, tmp_path: Path
) -> None:
    """With the parts that the manifest names for a slice and no other, the slice is the same."""
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


def test_the_default_model_has_its_id(default_model: Path, tmp_path: Path) -> None:
    """The id of a file that everybody has never changes, and its chat template is kept."""
    store = Store(tmp_path / "store")
    manifest = add_model(store, default_model, quiet)
    assert manifest.id == "983cd342503dab52d47a0c75a39bed9513ca33cd33f3553edb4a7fc972a65ed7"
    assert (manifest.layers, manifest.license) == (30, "apache-2.0")
    model = open_parts(store, manifest, tmp_path / "cache")
    assert model.info == open_model(default_model, tmp_path / "cache").info


def test_a_files_order_is_kept(tmp_path: Path) -> None:
    """Slices keep the order of the model's tensors, even where that is not the layers' order."""
    path = write_toy(tmp_path / "m.gguf", ("output_norm.weight", *reversed(NAMES[:-2])))
    store = Store(tmp_path / "store")
    model = open_parts(store, add_model(store, path, quiet), tmp_path / "parts")
    whole = open_model(path, tmp_path / "whole")
    assert model.stage(1, 3).read_bytes() == whole.stage(1, 3).read_bytes()
    for ours, theirs in zip(model.ends(1), whole.ends(1), strict=True):
        assert ours.read_bytes() == theirs.read_bytes()


def test_every_copy_of_a_file_has_the_same_id(tmp_path: Path) -> None:
    """Neither a file's name, nor its place, nor its times, nor how often it is added, matter."""
    unnamed = Value.of(ValueType.STRING, "")  # general.name: a file's own name must not stand in
    path = write_toy(tmp_path / "m.gguf", general__name=unnamed)
    copy = tmp_path / "elsewhere" / "other name.GGUF"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    os.utime(copy, (1, 1))
    first, second = Store(tmp_path / "first"), Store(tmp_path / "second")
    manifests = [add_model(s, p, quiet) for s, p in ((first, path), (second, copy), (first, copy))]
    assert len({manifest.encode() for manifest in manifests}) == 1
    assert manifests[0].name == "llama"
    for part in manifests[0].parts:
        assert first.path(part).read_bytes() == second.path(part).read_bytes()


def test_parts_are_gguf_files(tmp_path: Path) -> None:
    """llama.cpp's own reader finds each tensor in one part, under its name, with its bytes."""
    path = write_toy(tmp_path / "m.gguf")
    store = Store(tmp_path / "store")
    manifest = add_model(store, path, quiet)
    found: dict[str, tuple[str, bytes]] = {}
    for part in manifest.parts:
        reader = reference.GGUFReader(store.path(part))
        assert reader.get_field("general.architecture").contents() == "llama"
        assert (reader.get_field("tokenizer.ggml.tokens") is not None) == (part.name == "tokenizer")
        found |= {tensor.name: (part.name, tensor.data.tobytes()) for tensor in reader.tensors}
    whole = {t.name: t.data.tobytes() for t in reference.GGUFReader(path).tensors}
    assert {name: data for name, (_, data) in found.items()} == whole
    assert found["blk.2.up.weight"][0] == "layer.2"
    assert found["output.weight"][0] == found["output_norm.weight"][0] == "output"


def test_models_share_equal_parts(tmp_path: Path) -> None:
    """A model that differs in its name alone costs its metadata and tokenizer parts."""
    store = Store(tmp_path / "store")
    first = add_model(store, write_toy(tmp_path / "a.gguf"), quiet)
    other = Value.of(ValueType.STRING, "Other")
    second = add_model(store, write_toy(tmp_path / "b.gguf", general__name=other), quiet)
    differ = {a.name for a, b in zip(first.parts, second.parts, strict=True) if a.hash != b.hash}
    assert (second.name, differ) == ("Other", {"metadata", "tokenizer"})


def test_names_are_made_fit_to_print(tmp_path: Path) -> None:
    """A name that would play with the terminal, or fill it, is cut to a line."""
    odd = Value.of(ValueType.STRING, "\x1b[2J\n" + "x" * 500)
    store = Store(tmp_path / "store")
    manifest = add_model(store, write_toy(tmp_path / "m.gguf", general__name=odd), quiet)
    assert manifest.name == "[2J " + "x" * 124
    assert open_parts(store, manifest, tmp_path / "cache").info.layers == LAYERS


def test_progress_is_told(tmp_path: Path) -> None:
    """Both passes count up to their totals."""
    told: list[tuple[str, int, int]] = []
    store = Store(tmp_path / "store")
    manifest = add_model(store, write_toy(tmp_path / "m.gguf"), lambda *step: told.append(step))
    assert told == sorted(told)
    assert told[-1] == ("storing", manifest.size, manifest.size)
    hashed = [step for step in told if step[0] == "hashing"]
    assert hashed[0][1] == 0
    assert hashed[-1][1] == hashed[-1][2]


def test_what_cannot_be_split_is_refused(tmp_path: Path) -> None:
    """A model that is not proven to split leaves nothing in the store."""
    strange = Value.of(ValueType.STRING, "gemma2")
    path = write_toy(tmp_path / "m.gguf", general__architecture=strange)
    store = Store(tmp_path / "store")
    with pytest.raises(BadModelFile):
        add_model(store, path, quiet)
    tiny = tmp_path / "tiny.gguf"
    write_tiny(TINY["gemma2"], tiny)
    with pytest.raises(UnsupportedModel):
        add_model(store, tiny, quiet)
    with pytest.raises(BadModelFile, match="cannot read"):
        add_model(store, tmp_path / "nowhere.gguf", quiet)
    assert store.used_bytes() == 0


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    """A file that is not what it was when it was hashed is named, and no bad part is kept."""
    path = write_toy(tmp_path / "m.gguf")
    store = Store(tmp_path / "store")

    def spoil(what: str, done: int, _: int) -> None:
        if what == "storing" and done == 0:
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)

    with pytest.raises(UserError, match="changed while"):
        add_model(store, path, spoil)
    (manifest,) = store.models()
    assert [part.name for part in manifest.parts if not store.held(part)] == ["output"]


def test_adding_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that are there already are not written again, nor are whole parts."""
    path = write_toy(tmp_path / "m.gguf", rows=50_000)
    store = Store(tmp_path / "store")
    whole = Store(tmp_path / "whole")
    manifest = add_model(whole, path, quiet)
    copy_parts(whole, store, manifest, ["metadata", "layer.0"])
    part = manifest.part("layer.1")
    assert len(part.chunks) > 2
    store.write_chunk(part, 1, whole.read_chunk(part, 1))

    written: list[tuple[str, int]] = []
    write = Store.write_chunk

    def spy(self: Store, part: Part, index: int, data: bytes) -> None:
        written.append((part.name, index))
        write(self, part, index, data)

    monkeypatch.setattr(Store, "write_chunk", spy)
    add_model(store, path, quiet)
    assert [index for name, index in written if name == "layer.1"] == [0, 2, 3]
    assert {name for name, _ in written} == {p.name for p in manifest.parts} - {
        "metadata",
        "layer.0",
    }
    assert all(store.held(part) for part in manifest.parts)


def test_a_missing_part_and_a_damaged_one(tmp_path: Path) -> None:
    """A slice is not made of a part that is not here, or is no longer what it was."""
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
def test_a_manifest_that_lies(lie: Callable[[Manifest], Manifest], tmp_path: Path) -> None:
    """What a manifest says is held against what its own metadata says."""
    store = Store(tmp_path / "store")
    lying = lie(add_model(store, write_toy(tmp_path / "m.gguf"), quiet))
    with pytest.raises((BadModelFile, UnsupportedModel)):
        open_parts(store, lying, tmp_path / "cache")


def test_a_part_that_is_not_what_the_manifest_says(tmp_path: Path) -> None:
    """A part whose hash is right, but that holds other tensors, makes no slice."""
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
    """Give a manifest, and the bytes of its metadata part."""
    path = write_toy(tmp_path_factory.mktemp("toy") / "m.gguf")
    header = read_header(path)
    files = part_files(header, path)
    return describe(header, files, quiet), b"".join(files["metadata"].chunks())


def judge(manifest: Manifest, metadata: bytes) -> None:
    """Join a header, which is then the manifest's, or raises one of the two errors."""
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
    """Metadata with bytes changed, cut out or put in, 50 times, is the manifest's or is refused."""
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
    """Rows that say anything that a manifest may say are the model's or are refused."""
    manifest, metadata = toy
    changed = [changes.get(i, row) for i, row in enumerate(manifest.tensors)]
    judge(evolve(manifest, tensors=tuple(changed)), metadata)


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Adding a model of 64 MiB, and making a slice, holds a few chunks at a time."""
    path = write_toy(tmp_path / "m.gguf", rows=250_000)
    assert path.stat().st_size > 64 << 20
    tracemalloc.start()
    try:
        store = Store(tmp_path / "store")
        manifest = add_model(store, path, quiet)
        open_parts(store, manifest, tmp_path / "cache").stage(0, LAYERS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20
