"""Parts served from the model's own file: the same bytes, nothing copied, changes noticed."""

import os
from hashlib import sha256
from pathlib import Path

import pytest

from p2pinfer.core.errors import BadModelFile
from p2pinfer.core.manifest import Manifest
from p2pinfer.engine.store.assemble import open_parts
from p2pinfer.engine.store.damage import DamagedPart, MissingChunk
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from tests.support.sharded import write_shards
from tests.support.stored import flip
from tests.support.toys import quiet, write_toy


def read_all(store: Store, manifest: Manifest) -> list[bytes]:
    """Read every chunk of a model."""
    parts = manifest.parts
    return [store.read_chunk(part, index) for part in parts for index in range(part.chunk_count)]


def test_nothing_large_is_copied(tmp_path: Path) -> None:
    """The chunks and slices are those of a copy, in any process, until the model is removed."""
    whole = write_toy(tmp_path / "m.gguf", rows=20_000)
    shards = write_shards(whole, tmp_path / "shards", 5)
    copying, store = Store(tmp_path / "copying"), Store(tmp_path / "store")
    manifest = add_model(copying, whole, quiet)
    assert add_model(store, shards[1], quiet, in_place=True) == manifest
    assert store.used_bytes() < manifest.size // 20
    store = Store(tmp_path / "store")
    assert all(store.held(part) for part in manifest.parts)
    assert read_all(store, manifest) == read_all(copying, manifest)
    for each in manifest.parts:
        store.verify(each)
    copied = open_parts(copying, manifest, tmp_path / "a")
    linked = open_parts(store, manifest, tmp_path / "b")
    assert linked.stage(1, 3).read_bytes() == copied.stage(1, 3).read_bytes()
    assert store.sources(manifest.parts) == [each.resolve() for each in shards[1:]]
    store.remove(manifest.id)
    assert (store.used_bytes(), whole.exists()) == (0, True)


def test_a_file_that_changed_is_noticed(tmp_path: Path) -> None:
    """By its time at once; and by its hash where size and time are forged."""
    path = write_toy(tmp_path / "m.gguf")
    store = Store(tmp_path / "store")
    manifest = add_model(store, path, quiet, in_place=True)
    before = path.stat()
    output = manifest.part("output")
    flip(path, before.st_size - 40)
    assert not store.held(output)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.held(output)
    with pytest.raises(DamagedPart):
        store.read_chunk(output, 0)
    assert not store.held(output)
    assert store.held(manifest.part("layer.0"))
    path.unlink()
    assert store.chunks_held(manifest.part("layer.0")) == set()
    with pytest.raises(DamagedPart):
        store.verify(manifest.part("layer.0"))
    with pytest.raises(MissingChunk):
        store.verify(manifest.part("layer.0"))


def test_a_sha256_is_compared_as_the_file_is_read(tmp_path: Path) -> None:
    """A wrong one leaves nothing behind; a right one changes nothing."""
    path = write_toy(tmp_path / "m.gguf")
    store = Store(tmp_path / "store")
    with pytest.raises(BadModelFile, match="another SHA-256"):
        add_model(store, path, quiet, check={path: "0" * 64})
    assert store.models() == []
    right = sha256(path.read_bytes()).hexdigest()
    checked = add_model(store, path, quiet, check={path: right})
    assert checked == add_model(Store(tmp_path / "other"), path, quiet)
