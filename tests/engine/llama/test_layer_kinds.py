"""Layers of one kind: what the probe finds out about one of each holds for the whole slice."""

from functools import partial
from pathlib import Path

import pytest

from p2pinfer.engine.gguf.layer_kinds import kinds_digest, layer_kinds, layers_of_all_kinds
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.gguf.slicing import (
    SlicePlan,
    extents,
    plan_first_end,
    plan_last_end,
    plan_stage,
    write_slice,
)
from p2pinfer.engine.llama.binding import Settings, Slice
from p2pinfer.engine.llama.probe import CONTEXT, try_settings
from tests.support.model_factory import write_model
from tests.support.recipes import CASES
from tests.support.tiny_models import TINY, quantise, write_tiny


def test_the_fewest_first_layers_are_taken() -> None:
    """Up to the first of the kind that comes last."""
    assert layers_of_all_kinds([]) == 0
    assert layers_of_all_kinds(["a"]) == 1
    assert layers_of_all_kinds(["a"] * 9) == 1
    assert layers_of_all_kinds(["a", "a", "b", "a", "c", "b", "c"]) == 5


def written(model: Path, plan: SlicePlan, path: Path) -> Path:
    """Write a slice."""
    write_slice(plan, extents(read_header(model), model), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder for models."""
    return tmp_path_factory.mktemp("kinds")


def tiny(folder: Path, name: str, quantisation: str) -> Path:
    """Write a tiny model."""
    full, path = folder / f"{name}-F32.gguf", folder / f"{name}-{quantisation}.gguf"
    if not path.exists():
        write_tiny(TINY[name], full)
        quantise(full, path, quantisation)
    return path


def patterns(model: Path) -> str:
    """Return the layers' kinds as letters."""
    kinds = layer_kinds(read_header(model))
    order = list(dict.fromkeys(kinds))
    return "".join("abcdef"[order.index(kind)] for kind in kinds)


def test_kinds_are_told_apart(folder: Path) -> None:
    """By storage types, by whether a window limits what a layer sees, and by its tensors."""
    assert patterns(tiny(folder, "llama", "Q8_0")) == "aaaaaaa"
    mixed = patterns(tiny(folder, "llama", "Q4_K_M"))
    assert set(mixed) == {"a", "b"}
    model = tiny(folder, "gemma3", "Q8_0")
    stage = written(model, plan_stage(read_header(model), 1, 13), folder / "stage.gguf")
    assert patterns(stage) == "aaaabaaaaaba"
    dense = folder / "deepseek2.gguf"
    write_model(CASES["deepseek2"].recipe, dense)
    assert patterns(dense).startswith("aab")


def test_slices_alike_share_a_digest(folder: Path) -> None:
    """Wherever they are cut, as long as they have the same kinds of layers; ends are others."""
    model = tiny(folder, "gemma3", "Q8_0")
    header = read_header(model)

    def digest(plan: SlicePlan) -> str:
        return kinds_digest(written(model, plan, folder / "cut.gguf"))

    both = digest(plan_stage(header, 1, 7))
    assert digest(plan_stage(header, 4, 12)) == both
    assert digest(plan_stage(header, 5, 6)) != both  # a full layer alone
    assert digest(plan_stage(header, 0, 2)) != both  # windowed ones alone
    ends = {digest(plan_first_end(header, 6)), digest(plan_last_end(header, 6))}
    assert len({*ends, both}) == 3
    other = tiny(folder, "llama", "Q8_0")
    assert kinds_digest(other) != kinds_digest(tiny(folder, "llama", "Q4_K_M"))


@pytest.mark.parametrize(
    ("name", "quantisation"),
    [("llama", "Q4_K_M"), ("gemma3", "Q4_K_M"), ("qwen2", "Q4_0"), ("qwen3", "F16")],
)
@pytest.mark.parametrize("repack", [True, False])
def test_verdicts_are_those_of_all_layers(
    name: str, quantisation: str, repack: bool, folder: Path
) -> None:
    """In each quantisation, whether settings hold or not."""
    model = tiny(folder, name, quantisation)
    header = read_header(model)
    end = TINY[name].layers - 1
    path = written(model, plan_stage(header, 1, end), folder / "verdict.gguf")
    kinds = layer_kinds(read_header(path))
    first = layers_of_all_kinds(kinds)
    assert first < len(kinds)
    load = partial(load_slice, path)
    settings = Settings(1, repack=repack)
    some = try_settings(load, settings, tokens=False, layers=first)
    every = try_settings(load, settings, tokens=False)
    assert (some is None) == (every is None)
    if some and every:
        assert (some.regimes_agree, some.blocks) == (every.regimes_agree, every.blocks)
        assert some.numerics_class != every.numerics_class


def load_slice(path: Path, settings: Settings) -> Slice:
    """Load a slice as a candidate does."""
    return Slice(path, logits=False, settings=settings, sessions=2, context=CONTEXT)
