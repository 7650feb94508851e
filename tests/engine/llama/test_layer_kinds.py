"""Layers of one kind: what the probe finds out about one of each holds for the whole slice."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from p2pinfer.engine.gguf.ggml_types import F16, F32, Q4_0, GgmlType
from p2pinfer.engine.gguf.layer_kinds import kinds_digest, layer_kinds, layers_to_probe
from p2pinfer.engine.gguf.reader import GgufHeader, Tensor, read_header
from p2pinfer.engine.gguf.slice_plan import SlicePlan
from p2pinfer.engine.gguf.slicing import (
    extents,
    plan_first_end,
    plan_last_end,
    plan_stage,
    write_slice,
)
from p2pinfer.engine.gguf.values import Value, ValueType
from p2pinfer.engine.llama.binding import Settings
from tests.support import tiny_models
from tests.support.model_factory import write_model
from tests.support.recipes import CASES
from tests.support.tiny_models import TINY, Tiny, quantise, write_tiny
from tests.support.verdicts import verdicts, verdicts_elsewhere


def header_of(*types: GgmlType) -> GgufHeader:
    """Make up layers of one matrix each, of 256 numbers."""
    tensors = {
        f"blk.{n}.up.weight": Tensor(f"blk.{n}.up.weight", (256,), each, 0)
        for n, each in enumerate(types)
    }
    architecture = Value.of(ValueType.STRING, "llama")
    return GgufHeader("m", {"general.architecture": architecture}, tensors)


def test_the_fewest_first_layers_are_taken() -> None:
    """Up to the first of the kind that comes last, and as many as have enough numbers."""
    assert layers_to_probe(header_of(), 0) == 0
    assert layers_to_probe(header_of(F32), 0) == 1
    assert layers_to_probe(header_of(*[F32] * 9), 0) == 1
    mixed = header_of(F32, F32, F16, F32, Q4_0, F16, Q4_0)
    assert layers_to_probe(mixed, 0) == 5
    assert layers_to_probe(header_of(*[F32] * 9), 1024) == 1
    assert layers_to_probe(header_of(*[F32] * 9), 1025) == 2
    assert layers_to_probe(header_of(*[F32] * 9)) == 9
    assert layers_to_probe(mixed, 0, by_type=False) == 1


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


def test_what_was_measured_holds_whichever_layers_have_which_types(folder: Path) -> None:
    """So the ends of a K-quant are not measured once more, and prefer what its stages do."""
    model = tiny(folder, "llama", "Q4_K_M")
    header = read_header(model)
    plans = [
        plan_first_end(header, 3),
        plan_stage(header, 1, 6),
        plan_stage(header, 2, 3),
        plan_last_end(header, 2),
    ]
    paths = [written(model, plan, folder / f"{n}.gguf") for n, plan in enumerate(plans)]
    assert len({kinds_digest(each) for each in paths}) == len(paths)
    assert len({kinds_digest(each, layers_only=True) for each in paths}) == 1


@pytest.mark.parametrize(
    ("name", "quantisation", "repack"),
    [
        ("llama", "Q4_K_M", False),
        ("gemma3", "Q4_K_M", False),
        ("qwen2", "Q4_0", True),
        ("qwen3", "F16", True),
    ],
)
def test_verdicts_are_those_of_all_layers(
    name: str, quantisation: str, repack: bool, folder: Path
) -> None:
    """With the settings that are used for each quantisation."""
    model = tiny(folder, name, quantisation)
    plan = plan_stage(read_header(model), 1, TINY[name].layers - 1)
    path = written(model, plan, folder / "verdict.gguf")
    header = read_header(path)
    assert layers_to_probe(header, 0) < len(layer_kinds(header))
    some, every = verdicts(path, Settings(repack=repack))
    assert some == every


@pytest.mark.long
@pytest.mark.parametrize("quantisation", ["Q8_0", "Q4_0", "Q4_K_M"])
def test_verdicts_are_those_of_all_layers_in_every_architecture(
    quantisation: str, folder: Path
) -> None:
    """With experts, windows and dense layers in front, with the weights as they are."""
    paths = []
    for name, case in CASES.items():
        full, model = folder / f"{name}.gguf", folder / f"{name}.{quantisation}.gguf"
        write_model(case.recipe, full)
        quantise(full, model, quantisation)
        plan = plan_stage(read_header(model), 1, case.recipe.layers)
        paths.append(written(model, plan, folder / f"{name}.stage.gguf"))
    found = verdicts_elsewhere(paths, repack=False)
    assert len(found) == len(CASES)
    assert [name for name, (some, every) in found.items() if some != every] == []
    assert all(some for some, _ in found.values())


@pytest.mark.long
@pytest.mark.parametrize("experts", [True, False])
def test_one_layer_of_a_real_width_shows_what_all_show(
    experts: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repacked K-quants disagree in so few numbers that in tiny models not each layer shows it."""
    for name, size in (("WIDTH", 1024), ("FEED_FORWARD", 768), ("HEADS", 16), ("EXPERTS", 16)):
        monkeypatch.setattr(tiny_models, name, size)
    wide = Tiny("qwen3moe" if experts else "qwen3", head_width=64, head_norms=True, experts=experts)
    full, model = folder / "wide-F32.gguf", folder / "wide.gguf"
    write_tiny(wide, full)
    quantise(full, model, "Q4_K_M")
    header = read_header(model)
    paths = [
        written(model, plan_stage(header, first, end), folder / f"wide-{first}-{end}.gguf")
        for first, end in [(0, wide.layers), *pairwise(range(wide.layers + 1))]
    ]
    for repack in (True, False):
        found = verdicts_elsewhere(paths, repack=repack)
        assert len({json.dumps(every) for _, every in found.values()}) == 1
