"""Models in shards: any shard names the whole, which has the id of the file that was split."""

import shutil
from pathlib import Path

import pytest

from p2pinfer.core.errors import BadModelFile
from p2pinfer.engine.gguf.model_header import model_info
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.gguf.shards import read_model
from p2pinfer.engine.gguf.values import Value, ValueType
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from tests.support.sharded import write_shards
from tests.support.toys import quiet, write_toy


def test_any_shard_names_the_model(tmp_path: Path) -> None:
    """Each gives the id and the parts that the unsplit file has."""
    whole = write_toy(tmp_path / "whole.gguf")
    shards = write_shards(whole, tmp_path / "shards", 5)
    assert len(shards) > 3
    assert not read_header(shards[0]).tensors
    manifest = add_model(Store(tmp_path / "unsplit"), whole, quiet)
    for number in (0, 1, len(shards) - 1):
        store = Store(tmp_path / str(number))
        assert add_model(store, shards[number], quiet) == manifest
        assert all(store.held(part) for part in manifest.parts)


def test_a_merged_file_is_the_same_model(tmp_path: Path) -> None:
    """What llama-gguf-split leaves behind when it merges makes no other id."""
    plain = write_toy(tmp_path / "plain.gguf")
    left = Value.of(ValueType.UINT16, 0)
    merged = write_toy(tmp_path / "merged.gguf", split__count=left)
    ids = [add_model(Store(tmp_path / "store"), path, quiet).id for path in (plain, merged)]
    assert ids[0] == ids[1]


def test_shards_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    """A missing, renamed or exchanged shard is told in a sentence."""
    whole = write_toy(tmp_path / "whole.gguf")
    shards = write_shards(whole, tmp_path / "shards", 5)
    with pytest.raises(BadModelFile, match="one shard of a model"):
        model_info(read_header(shards[0]))
    alone = tmp_path / "alone" / shards[1].name
    alone.parent.mkdir()
    shutil.copy(shards[1], alone)
    with pytest.raises(BadModelFile, match=r"is a shard of a model of \d, and m-00001-of-.* more"):
        read_model(alone)
    renamed = tmp_path / "alone" / "renamed.gguf"
    shutil.copy(shards[1], renamed)
    with pytest.raises(BadModelFile, match="found by their names"):
        read_model(renamed)
    shutil.copy(shards[1], shards[2])
    with pytest.raises(BadModelFile, match="was it renamed"):
        read_model(shards[0])


@pytest.mark.parametrize(
    ("kind", "word"), [("mmproj", "pictures"), ("imatrix", "importance"), ("adapter", "LoRA")]
)
def test_companions_are_told_from_models(kind: str, word: str, tmp_path: Path) -> None:
    """A file that lies beside a model and is none is named as what it is."""
    path = write_toy(tmp_path / "m.gguf", general__type=Value.of(ValueType.STRING, kind))
    with pytest.raises(BadModelFile, match=word):
        add_model(Store(tmp_path / "store"), path, quiet)
