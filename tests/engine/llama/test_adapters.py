"""A model with an adapter splits exactly, and computes what llama.cpp does with that adapter."""

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from p2pinfer.core.errors import UnsupportedModel
from p2pinfer.engine.gguf.adapters import adapter_path, is_adapter
from p2pinfer.engine.gguf.reader import Tensor, read_header
from p2pinfer.engine.llama.binding import Settings, Slice, Span
from p2pinfer.engine.store.adapters import add_adapter
from p2pinfer.engine.store.assemble import PartsModel, open_parts
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from tests.support.adapters import is_matrix_of_a_layer, write_adapter
from tests.support.cuts import Questions, ask_whole, slices_difference
from tests.support.tiny_models import tiny_model

HOW = Questions()


def ignore(*_: object) -> None:
    """Take progress."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a place for the models."""
    return tmp_path_factory.mktemp("adapters")


def whole_with(model: Path, adapter: Path, folder: Path) -> Path:
    """Put a model and an adapter where the engine takes them for one."""
    whole = folder / "whole.gguf"
    whole.symlink_to(model)
    shutil.copy(adapter, adapter_path(whole))
    return whole


def child_of(model: Path, adapter: Path, folder: Path) -> PartsModel:
    """Add both to a store, and open the child."""
    store = Store(folder / "store")
    base = add_model(store, model, ignore)
    return open_parts(store, add_adapter(store, adapter, base), folder / "cache")


def cut(child: PartsModel) -> list[Path]:
    """Cut it into ends of two layers and two stages."""
    first, last = child.ends(2)
    middle = child.info.layers // 2
    return [first, child.stage(2, middle), child.stage(middle, child.info.layers - 2), last]


@pytest.mark.parametrize("quantisation", ["Q4_1", "Q4_K_M", "Q8_0"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_slices_give_the_logits_of_the_whole(
    folder: Path, name: str, quantisation: str, tmp_path: Path
) -> None:
    """In a block, wide and narrow; and the adapter does change the answers."""
    model, adapter = tiny_model(folder, name, quantisation), tmp_path / "adapter.gguf"
    write_adapter(model, adapter)
    how = Questions(repack="_K" not in quantisation)
    answers = ask_whole(whole_with(model, adapter, tmp_path), how)
    plain = ask_whole(model, how)
    assert np.abs(plain[0][1] - answers[0][1]).max() > 0.1
    assert slices_difference(cut(child_of(model, adapter, tmp_path)), answers, how) == 0.0


def _some_layers_and_both_ends(tensor: Tensor) -> bool:
    is_end = tensor.name in ("token_embd.weight", "output.weight")
    return is_end or (is_matrix_of_a_layer(tensor) and tensor.name.startswith(("blk.3.", "blk.6.")))


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_an_adapter_of_the_embedding_and_the_head(folder: Path, name: str, tmp_path: Path) -> None:
    """The requester's own ends have it; layers without an adapter are the base's."""
    model, adapter = tiny_model(folder, name, "Q8_0"), tmp_path / "adapter.gguf"
    write_adapter(model, adapter, _some_layers_and_both_ends)
    child = child_of(model, adapter, tmp_path)
    assert [part.name for part in child.manifest.adapter] == [
        "adapter.embedding",
        "adapter.layer.3",
        "adapter.layer.6",
        "adapter.output",
    ]
    answers = ask_whole(whole_with(model, adapter, tmp_path), HOW)
    slices = cut(child)
    assert [adapter_path(path).exists() for path in slices] == [True, False, True, True]
    assert slices_difference(slices, answers, HOW) == 0.0


def test_slices_share_the_bases_bytes(folder: Path, tmp_path: Path) -> None:
    """On the disk a child's slice is its base's; its adapter alone is new."""
    model, adapter = tiny_model(folder, "llama", "Q8_0"), tmp_path / "adapter.gguf"
    write_adapter(model, adapter)
    child = child_of(model, adapter, tmp_path)
    assert child.manifest.base
    base = open_parts(child.store, child.manifest.base, child.cache)
    assert child.info.name == "Random changes" != base.info.name
    path = child.stage(2, 5)
    assert path != base.stage(2, 5)
    assert path.samefile(base.stage(2, 5))
    assert is_adapter(read_header(adapter_path(path)))
    assert not adapter_path(base.stage(2, 5)).exists()
    adapter_path(path).unlink()
    child.stage(2, 5)
    assert adapter_path(path).exists()


def test_cells_aside_use_the_adapter_too(folder: Path, tmp_path: Path) -> None:
    """A prompt that is read in another context of the same weights gives the same rows."""
    model, adapter = tiny_model(folder, "qwen3", "Q8_0"), tmp_path / "adapter.gguf"
    write_adapter(model, adapter)
    path = child_of(model, adapter, tmp_path).stage(1, 4)
    home = Slice(path, logits=False, settings=Settings(), sessions=2, context=64)
    aside = Slice(path, logits=False, settings=Settings(), sessions=1, context=64, like=home)
    rows = np.random.default_rng(3).standard_normal((12, home.width)).astype(np.float32)
    expected = home.decode([Span(0, 0, rows)])[0].copy()
    assert np.array_equal(aside.decode([Span(0, 0, rows)])[0], expected)
    with pytest.raises(UnsupportedModel, match="cannot be proven"):
        home.check_traced()
    aside.close()
    home.close()


def test_layers_with_an_adapter_are_not_traced(folder: Path, tmp_path: Path) -> None:
    """Their products are sums of two, which nobody could check by a key of the base."""
    model, adapter = tiny_model(folder, "llama", "Q8_0"), tmp_path / "adapter.gguf"
    write_adapter(model, adapter)
    whole = whole_with(model, adapter, tmp_path)
    part = Slice(whole, logits=False, settings=Settings(), sessions=1, context=64)
    with closing(part), pytest.raises(UnsupportedModel, match="an adapter changes"):
        part.trace(Span(0, 0, np.array([7], np.int32)))
