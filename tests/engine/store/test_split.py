"""Parts: the same from every copy of a file, each a valid GGUF, and refused where necessary."""

import os
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import gguf as reference
import pytest

from p2pinfer.core.errors import BadModelFile, UnsupportedModel, UserError
from p2pinfer.core.manifest import Part
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.gguf.slicing import extents, plan_stage, write_slice
from p2pinfer.engine.gguf.values import Value, ValueType
from p2pinfer.engine.store.assemble import open_parts
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from tests.support.model_factory import write_model
from tests.support.recipes import CASES
from tests.support.tiny_models import TINY, write_tiny
from tests.support.toys import LAYERS, copy_parts, quiet, write_toy
from tests.support.whole import open_model


def test_the_default_model_has_its_id(default_model: Path, tmp_path: Path) -> None:
    """The id of a widely shared file never changes, and its chat template is kept."""
    store = Store(tmp_path / "store")
    manifest = add_model(store, default_model, quiet)
    assert manifest.id == "4d00729f8d071527fe08bf1a9621d822402851f3899713aa67c0f1938707aea9"
    assert (manifest.layers, manifest.license) == (30, "apache-2.0")
    model = open_parts(store, manifest, tmp_path / "cache")
    assert model.info == open_model(default_model, tmp_path / "cache").info


def test_every_copy_of_a_file_has_the_same_id(tmp_path: Path) -> None:
    """A file's name, place and times do not matter, nor how often it is added."""
    unnamed = Value.of(ValueType.STRING, "")  # general.name: the file's name must not replace it
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
    """A model that differs only in its name costs its metadata and tokenizer parts."""
    store = Store(tmp_path / "store")
    first = add_model(store, write_toy(tmp_path / "a.gguf"), quiet)
    other = Value.of(ValueType.STRING, "Other")
    second = add_model(store, write_toy(tmp_path / "b.gguf", general__name=other), quiet)
    differ = {a.name for a, b in zip(first.parts, second.parts, strict=True) if a.hash != b.hash}
    assert (second.name, differ) == ("Other", {"metadata", "tokenizer"})


def test_names_are_made_printable(tmp_path: Path) -> None:
    """A name with terminal codes, or one too long, becomes a printable line."""
    odd = Value.of(ValueType.STRING, "\x1b[2J\n" + "x" * 500)
    store = Store(tmp_path / "store")
    manifest = add_model(store, write_toy(tmp_path / "m.gguf", general__name=odd), quiet)
    assert manifest.name == "[2J " + "x" * 124
    assert open_parts(store, manifest, tmp_path / "cache").info.layers == LAYERS


def test_progress_is_reported(tmp_path: Path) -> None:
    """Both passes count up to their totals."""
    told: list[tuple[str, int, int]] = []
    store = Store(tmp_path / "store")
    manifest = add_model(store, write_toy(tmp_path / "m.gguf"), lambda *step: told.append(step))
    assert told == sorted(told)
    assert told[-1] == ("storing", manifest.size, manifest.size)
    hashed = [step for step in told if step[0] == "hashing"]
    assert hashed[0][1] == 0
    assert hashed[-1][1] == hashed[-1][2]


def test_blocks_that_draft_tokens_are_left_out(tmp_path: Path) -> None:
    """They are in the file and in the manifest's list of tensors, and in no part and no slice."""
    path = tmp_path / "m.gguf"
    write_model(CASES["deepseek2-drafting"].recipe, path)
    store = Store(tmp_path / "store")
    told: list[tuple[str, int, int]] = []
    manifest = add_model(store, path, lambda *step: told.append(step))
    assert manifest.layers == 5
    assert "blk.5.nextn.eh_proj.weight" in {row.name for row in manifest.tensors}
    assert [part.name for part in manifest.parts if "layer" in part.name][-1] == "layer.4"
    assert [done == total for what, done, total in told if what == "hashing"].count(True) == 1
    header = read_header(path)
    opened = open_parts(store, manifest, tmp_path / "cache")
    write_slice(plan_stage(header, 2, 5), extents(header, path), tmp_path / "cut.gguf")
    assert opened.stage(2, 5).read_bytes() == (tmp_path / "cut.gguf").read_bytes()


def test_a_model_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    """A model that is not proven to split leaves nothing in the store."""
    strange = Value.of(ValueType.STRING, "command-r")
    path = write_toy(tmp_path / "m.gguf", general__architecture=strange)
    store = Store(tmp_path / "store")
    with pytest.raises(BadModelFile):
        add_model(store, path, quiet)
    tiny = tmp_path / "tiny.gguf"
    write_tiny(replace(TINY["qwen3"], architecture="command-r"), tiny)
    with pytest.raises(UnsupportedModel):
        add_model(store, tiny, quiet)
    with pytest.raises(BadModelFile, match="cannot read"):
        add_model(store, tmp_path / "nowhere.gguf", quiet)
    assert store.used_bytes() == 0


def test_a_file_that_changes_meanwhile_is_named(tmp_path: Path) -> None:
    """A file that changed after it was hashed is named, and no bad part is kept."""
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


def test_adding_continues_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Existing chunks and whole parts are not written again."""
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
