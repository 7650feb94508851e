"""The store: nothing bad is ever kept, nothing good is ever lost, and a full disk is reported."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.core.manifest import CHUNK_BYTES, WrongManifest
from p2pinfer.engine.store import disk
from p2pinfer.engine.store import store as store_module
from p2pinfer.engine.store.damage import DamagedPart, MissingChunk, WrongChunk
from p2pinfer.engine.store.store import Store
from tests.support.stored import DATA, PART, chunk, files, flip, model_of, part_of, put


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Provide an empty store."""
    return Store(tmp_path / "store")


# A part from first chunk to whole


def test_a_part_comes_chunk_by_chunk(store: Store) -> None:
    """Chunks may come in any order and be read at once; the part is held when it is finished."""
    assert store.chunks_held(PART) == set()
    for count, index in enumerate((3, 0, 2, 1)):
        assert not store.held(PART)
        store.write_chunk(PART, index, chunk(index))
        assert store.read_chunk(PART, index) == chunk(index)
        assert len(store.chunks_held(PART)) == count + 1
    store.finish(PART)
    assert store.held(PART)
    assert store.path(PART).read_bytes() == DATA
    assert store.chunks_held(PART) == {0, 1, 2, 3}
    assert [store.read_chunk(PART, index) for index in range(4)] == [chunk(i) for i in range(4)]
    assert files(store) == [f"parts/{PART.hash}.gguf"]
    store.verify(PART)


def test_writing_again_changes_nothing(store: Store) -> None:
    """A late chunk and a second finish leave a whole part unchanged."""
    put(store)
    before = store.path(PART).stat()
    put(store)
    assert store.path(PART).stat() == before


def test_wrong_bytes_are_not_written(store: Store) -> None:
    """Another chunk's bytes, and short, long or damaged ones, are refused."""
    damaged = bytes([chunk(0)[0] ^ 1]) + chunk(0)[1:]
    for data in (chunk(1), chunk(0)[:-1], chunk(0) + b"x", b"", damaged):
        with pytest.raises(WrongChunk):
            store.write_chunk(PART, 0, data)
    with pytest.raises(IndexError):
        store.write_chunk(PART, 4, b"")
    assert files(store) == []


def test_missing_chunks(store: Store) -> None:
    """Missing chunks cannot be read, nor a part finished or verified without them."""
    for index in range(4):
        with pytest.raises(MissingChunk):
            store.read_chunk(PART, index)
    with pytest.raises(MissingChunk):
        store.verify(PART)
    store.write_chunk(PART, 0, chunk(0))
    with pytest.raises(MissingChunk):
        store.read_chunk(PART, 1)
    with pytest.raises(MissingChunk, match="lacks chunk 1"):
        store.finish(PART)
    assert not store.held(PART)
    assert store.chunks_held(PART) == {0}


def test_a_part_is_on_disk_before_it_has_its_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the bytes are synced, then the part is named, then the name is synced."""
    seen: list[tuple[str, bool]] = []
    fsync, sync_folder = os.fsync, disk.sync_folder

    def sync(file: int) -> None:
        seen.append(("bytes", store.held(PART)))
        fsync(file)

    def sync_name(folder: Path) -> None:
        seen.append((folder.name, store.held(PART)))
        sync_folder(folder)

    monkeypatch.setattr(store_module, "os", SimpleNamespace(**{**vars(os), "fsync": sync}))
    monkeypatch.setattr(store_module, "sync_folder", sync_name)
    put(store)
    assert seen == [("bytes", False), ("parts", True), ("partial", True)]


# Damage


@pytest.mark.parametrize("at", [0, CHUNK_BYTES, len(DATA) - 1])
def test_a_flipped_bit_in_a_whole_part_is_found(store: Store, at: int) -> None:
    """Reading finds it and sets the part aside; good chunks stay, one must be fetched again."""
    put(store)
    flip(store.path(PART), at)
    bad = at // CHUNK_BYTES
    with pytest.raises(DamagedPart, match=f"chunk {bad}") as caught:
        store.read_chunk(PART, bad)
    assert caught.value.part == PART
    assert caught.value.exit_code == 4
    assert not store.held(PART)
    with pytest.raises(MissingChunk):
        store.read_chunk(PART, bad)
    assert store.chunks_held(PART) == {0, 1, 2, 3} - {bad}
    store.write_chunk(PART, bad, chunk(bad))
    store.finish(PART)
    assert store.path(PART).read_bytes() == DATA


def test_verify_names_what_is_damaged(store: Store) -> None:
    """A part that is damaged, cut short or emptied is set aside, and can be made whole again."""
    put(store)
    flip(store.path(PART), 5)
    flip(store.path(PART), 2 * CHUNK_BYTES)
    with pytest.raises(DamagedPart, match=r"layer\.0 .* chunk 0, 2$"):
        store.verify(PART)
    assert store.chunks_held(PART) == {1, 3}
    for size in (0, CHUNK_BYTES + 5):
        put(store)
        os.truncate(store.path(PART), size)
        assert not store.held(PART)
        with pytest.raises(DamagedPart):
            store.verify(PART)
    put(store)
    assert store.path(PART).read_bytes() == DATA


def test_a_flipped_bit_in_a_partial_part_is_found(store: Store) -> None:
    """A chunk damaged after it was written counts as missing, and must be fetched again."""
    for index in range(4):
        store.write_chunk(PART, index, chunk(index))
    partial = store.root / "partial" / PART.hash
    flip(partial, CHUNK_BYTES)
    with pytest.raises(MissingChunk):
        store.read_chunk(PART, 1)
    assert store.chunks_held(PART) == {0, 2, 3}
    store.write_chunk(PART, 1, chunk(1))
    store.finish(PART)
    assert store.path(PART).read_bytes() == DATA


def test_unreadable_data_is_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read error of the disk is damage like any other."""
    put(store)

    def fail(file: int, count: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk, "os", SimpleNamespace(**{**vars(os), "pread": fail}))
    with pytest.raises(DamagedPart):
        store.read_chunk(PART, 0)


# Full disks and quotas


def test_the_quota_is_kept(tmp_path: Path) -> None:
    """A part that would exceed the quota is refused before a byte of it is written."""
    store = Store(tmp_path, quota_bytes=PART.size + 10)
    put(store)
    with pytest.raises(UserError, match=r"quota of 3\.1 MB.* model rm"):
        store.check_room([part_of(b"x" * 11)])
    with pytest.raises(UserError, match="quota"):
        store.write_chunk(part_of(b"x" * 11), 0, b"x" * 11)
    store.check_room([PART, part_of(b"x" * 10)])
    put(store, part_of(b"x" * 10), b"x" * 10)
    assert store.used_bytes() == PART.size + 10
    big = model_of("Big", {})
    with pytest.raises(UserError, match="quota"):
        store.add_manifest(big.encode(), big.id)
    assert store.models() == []


def test_a_part_counts_whole_from_its_first_chunk(tmp_path: Path) -> None:
    """If only one of two parts fits, only one is begun, and it fits."""
    store = Store(tmp_path, quota_bytes=PART.size + 10)
    store.write_chunk(PART, 3, chunk(3))
    with pytest.raises(UserError, match="quota"):
        store.write_chunk(part_of(b"x" * 11), 0, b"x" * 11)
    store.check_room([PART])
    put(store)


def test_room_on_the_disk_is_checked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the missing bytes must be free."""
    free = 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=0, used=0, free=free))
    with pytest.raises(UserError, match=r"3\.1 MB are needed .* 0\.0 MB are free"):
        store.check_room([PART])
    free = PART.size
    store.check_room([PART, PART])  # the same part twice is needed once
    put(store)
    free = 0
    store.check_room([PART])


@pytest.mark.parametrize("failing", ["pwrite", "fsync", "ftruncate"])
def test_no_space_left(store: Store, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """Wherever the disk reports that it is full, no bad data is kept and no good data lost."""
    put(store, part_of(b"good"), b"good")

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        for module in (disk, store_module):
            patch.setattr(module, "os", SimpleNamespace(**{**vars(os), failing: fail}))
        with pytest.raises(UserError, match="No space left on device"):
            put(store)
    assert not store.held(PART)
    store.verify(part_of(b"good"))
    put(store)
    assert store.path(PART).read_bytes() == DATA


# Models


def test_a_manifest_is_kept_under_its_id(store: Store) -> None:
    """Only bytes that hash to the id are kept or returned."""
    model, other = model_of("A", {}), model_of("B", {})
    with pytest.raises(WrongManifest):
        store.add_manifest(other.encode(), model.id)
    assert store.add_manifest(model.encode(), model.id) == model
    assert store.manifest(model.id) == model
    assert store.manifest(other.id) is None
    for odd in ("../lock", "", model.id.upper(), model.id[:12]):
        assert store.manifest(ModelId(odd)) is None
    assert store.models() == [model]
    flip(store.root / "manifests" / model.id, 20)
    assert store.manifest(model.id) is None
    assert store.models() == []
    assert store.add_manifest(model.encode(), model.id) == model
    assert store.models() == [model]


def test_removing_a_model_leaves_what_others_need(store: Store) -> None:
    """Parts that another model shares stay, whole and partial ones; the rest is removed."""
    first = model_of("A", {"layer.0": DATA, "output": b"first"})
    second = model_of("B", {"layer.0": DATA, "output": b"second"})
    for model, output in ((first, b"first"), (second, b"second")):
        store.add_manifest(model.encode(), model.id)
        put(store, model.part("output"), output)
    store.write_chunk(PART, 0, chunk(0))
    put(store, first.part("metadata"), b"metadata")
    assert store.remove(first.id) == len(first.encode()) + len(b"first")
    assert store.models() == [second]
    assert not store.held(first.part("output"))
    assert store.held(second.part("output"))
    assert store.held(second.part("metadata"))
    assert store.chunks_held(PART) == {0}
    store.remove(second.id)
    assert files(store) == ["lock"]


def test_an_impossible_store_is_named(tmp_path: Path) -> None:
    """A path where nothing can be stored is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used"):
        Store(tmp_path / "file" / "store")
