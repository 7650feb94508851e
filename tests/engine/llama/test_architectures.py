"""Every architecture of the table splits exactly, and would not without its rules.

A tiny model of each, with random weights, is cut into ends of a layer or two and stages between
them, and gives the whole model's logits to the last bit: for a prompt in a block, a wide and a
narrow chunk, out of the sight of windowed layers, and for what the model says then.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pinfer.core.errors import BadModelFile, EngineError, UnsupportedModel, UserError
from p2pinfer.engine.gguf import architectures, layer_facts, slicing
from p2pinfer.engine.gguf.architectures import RULES, Rules, Windows
from p2pinfer.engine.gguf.bare_ends import plan_embedding, plan_head
from p2pinfer.engine.gguf.model_header import model_info
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.gguf.refused import REFUSED
from p2pinfer.engine.gguf.slice_plan import SlicePlan
from p2pinfer.engine.gguf.slicing import (
    extents,
    plan_first_end,
    plan_last_end,
    plan_stage,
    write_slice,
)
from tests.support.cuts import (
    BLOCK,
    NARROW,
    WIDE,
    Questions,
    ask_whole,
    chain_difference,
    plan_bare_chain,
    plan_chain,
)
from tests.support.model_factory import EXPERTS, Plain, Recipe, write_model
from tests.support.recipes import CASES
from tests.support.tiny_models import OF_EXPERTS, QUANTISATIONS, TINY, quantise

SHORT = Questions()
LONG = Questions(chunks=(*[BLOCK] * 8, WIDE, NARROW), context=640, threads=2)
"""Past the 512 KV cells from which a one-row decode may split attention between threads."""

Models = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Give a function that writes a case's model in a quantisation, once."""
    folder = tmp_path_factory.mktemp("architectures")

    def model(name: str, quantisation: str) -> Path:
        full, path = folder / f"{name}-F32.gguf", folder / f"{name}-{quantisation}.gguf"
        if not full.exists():
            write_model(CASES[name].recipe, full)
        if not path.exists():
            quantise(full, path, quantisation)
        return path

    return model


def with_rules(monkeypatch: pytest.MonkeyPatch, name: str, rules: Rules) -> None:
    """Let a case's architecture have other rules."""
    changed = {**RULES, CASES[name].recipe.architecture: rules}
    for module in (architectures, layer_facts):
        monkeypatch.setattr(module, "RULES", changed)


def difference(model: Path, name: str, how: Questions, folder: Path) -> float:
    """Cut a case's model as it is to be cut, and compare all logits."""
    how = replace(how, repack="_K" not in model.name)
    if RULES[CASES[name].recipe.architecture].is_hybrid:  # of which no rows run in blocks
        how = replace(how, chunks=tuple(min(rows, WIDE) for rows in how.chunks))
    answers = ask_whole(model, how)
    logits = np.concatenate([logits for _, logits in answers])
    assert np.isfinite(logits).all()
    assert logits.std() > 0.1
    plans = plan_chain(read_header(model), CASES[name].bounds)
    return chain_difference(model, plans, answers, how, folder)


USUAL = ("F16", "Q8_0", "Q4_0", "Q4_K_M", "MXFP4")
IN_BRIEF = (
    "llama4-interleaved",
    "step35-drafting",
    "arcee",
    "arctic",
    "bailingmoe",
    "dbrx",
    "deepseek",
    "ernie4_5",
    "exaone",
    "hunyuan-dense",
    "hy_v3",
    "internlm2",
    "jais2",
    "mellum",
    "nemotron",
    "olmoe",
)
"""Others of their architecture, or with the same rules, are in all quantisations."""
HYBRIDS = [n for n, case in CASES.items() if RULES[case.recipe.architecture].is_hybrid]
IN_ONE_QUANTISATION = "Q4_K_M"
"""All others of hybrids and of cases in brief are in ``test_all_of_it`` alone, to save time."""


def quantised(*quantisations: str) -> list[tuple[str, str]]:
    """Return each case with each quantisation that it can have."""
    return [
        (name, quantisation)
        for name, case in CASES.items()
        for quantisation in quantisations
        if quantisation not in OF_EXPERTS or "expert_count" in case.recipe.metadata
    ]


def usual() -> list[tuple[str, str]]:
    """Return the cases of every day."""
    brief = (*HYBRIDS, *IN_BRIEF)
    return [each for each in quantised(*USUAL) if each[0] not in brief] + [
        (name, IN_ONE_QUANTISATION) for name in brief
    ]


def test_the_table_names_what_is_proven() -> None:
    """Here or by the models that are written by hand."""
    by_hand = {tiny.architecture for tiny in TINY.values()}
    assert set(RULES) == by_hand | {case.recipe.architecture for case in CASES.values()}
    assert not set(RULES) & set(REFUSED)


@pytest.mark.parametrize(("name", "quantisation"), usual())
def test_slices_give_the_whole_models_logits(
    models: Models, name: str, quantisation: str, tmp_path: Path
) -> None:
    """In every quantisation, for a prompt of a hundred tokens."""
    assert difference(models(name, quantisation), name, SHORT, tmp_path) == 0.0


@pytest.mark.parametrize(
    "name", [n for n in CASES if n not in (*HYBRIDS, *IN_BRIEF) or n == "qwen3next"]
)
def test_slices_give_the_whole_models_logits_far_on(
    models: Models, name: str, tmp_path: Path
) -> None:
    """Past 512 positions, with two threads."""
    assert difference(models(name, "Q8_0"), name, LONG, tmp_path) == 0.0


@pytest.mark.long
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("name", "quantisation"), quantised(*QUANTISATIONS, *OF_EXPERTS))
def test_all_of_it(
    models: Models, name: str, quantisation: str, threads: int, tmp_path: Path
) -> None:
    """Past 512 positions in every quantisation."""
    how = replace(LONG, threads=threads)
    assert difference(models(name, quantisation), name, how, tmp_path) == 0.0


@pytest.mark.parametrize(
    "name",
    [
        "afmoe",
        "cohere2",
        "exaone-moe",
        "gemma2",
        "gemma4",
        "gpt-oss",
        "laguna",
        "llama4",
        "mimo2",
        "nemotron_h",
        "olmo2",
        "smollm3",
        "step35",
    ],
)
def test_every_layer_alone(models: Models, name: str, tmp_path: Path) -> None:
    """Slices of one layer, windowed or not."""
    model = models(name, "F16")
    answers = ask_whole(model, SHORT)
    plans = plan_chain(read_header(model), range(1, CASES[name].recipe.layers))
    assert chain_difference(model, plans, answers, SHORT, tmp_path) == 0.0


NO_BARE_ENDS = ("cohere2", "dbrx", "grok", "jais2", "nemotron", "phimoe", "starcoder2")
"""Their heads have biases, or a norm or a factor that no other architecture has."""

SCALED_OR_CAPPED = ("afmoe", "gemma", "gemma2", "gemma4", "granite", "minicpm", "minicpm-scaled")


def bare_difference(model: Path, name: str, folder: Path) -> float:
    """Compare the whole model with stages of all its layers between ends that have none."""
    plans = plan_bare_chain(read_header(model), CASES[name].bounds[1:2])
    return chain_difference(model, plans, ask_whole(model, SHORT), SHORT, folder)


@pytest.mark.parametrize(
    "name", ["deepseek2", "glm4moe", "gpt-oss", "olmo2", "qwen3vl", *SCALED_OR_CAPPED]
)
def test_ends_without_layers(models: Models, name: str, tmp_path: Path) -> None:
    """The embedding and the head alone, as another architecture's."""
    assert bare_difference(models(name, "Q8_0"), name, tmp_path) == 0.0


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in CASES if name not in NO_BARE_ENDS])
def test_ends_without_layers_of_all(models: Models, name: str, tmp_path: Path) -> None:
    """And quantised otherwise."""
    assert bare_difference(models(name, "F16"), name, tmp_path) == 0.0


@pytest.mark.parametrize("name", NO_BARE_ENDS)
def test_a_head_of_its_own_kind_keeps_a_layer(models: Models, name: str, tmp_path: Path) -> None:
    """No other architecture stands in for it."""
    with pytest.raises(UserError, match=r"must keep a layer.*say --keep-layers 1"):
        bare_difference(models(name, "Q8_0"), name, tmp_path)


@pytest.mark.parametrize("name", SCALED_OR_CAPPED)
def test_ends_without_layers_scale_as_the_whole_does(
    models: Models, name: str, tmp_path: Path
) -> None:
    """A plain llama in their place gives other logits."""
    rules = RULES[CASES[name].recipe.architecture]

    header = read_header(models(name, "Q8_0"))
    info = model_info(header)
    naive = replace(rules, scales_embeddings=False, scales_by_width=False, caps_logits_at=None)
    stages = plan_bare_chain(header, CASES[name].bounds[1:2])[1:-1]
    plans = [plan_embedding(header, info, naive), *stages, plan_head(header, info, naive)]
    answers = ask_whole(models(name, "Q8_0"), SHORT)
    assert chain_difference(models(name, "Q8_0"), plans, answers, SHORT, tmp_path) > 0.01


WITHOUT: dict[str, dict[str, Any]] = {
    "gpt-oss": {"windows": None},
    "grok": {"scales_embeddings": False},
    "mellum": {"windows": None},
    "granitehybrid": {"scales_embeddings": False},
    "granite": {"scales_embeddings": False},
    "granitemoe": {"scales_embeddings": False},
    "laguna": {"windows": Windows(period=4, optional=True)},
    "minicpm": {"derived": None},
    "minicpm-scaled": {"scales_embeddings": False},
    "olmo2": {"windows": None},
}


@pytest.mark.parametrize("name", WITHOUT)
def test_slices_without_a_rule_are_silently_wrong(
    models: Models, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where llama.cpp derives something from layers' numbers, other logits come out."""
    model = models(name, "F16")
    rules = RULES[CASES[name].recipe.architecture]
    with_rules(monkeypatch, name, replace(rules, **WITHOUT[name]))
    assert difference(model, name, SHORT, tmp_path) > 0.01


@pytest.mark.parametrize("name", ["afmoe", "gemma", "gemma2"])
def test_rows_that_are_not_written_in_are_scaled(
    models: Models, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp takes embeddings to be unscaled."""
    naive = {**RULES, name: replace(RULES[name], rows_into=None)}
    monkeypatch.setattr("p2pinfer.engine.llama.binding.RULES", naive)
    assert difference(models(name, "F16"), name, SHORT, tmp_path) > 0.01


def test_a_node_that_is_not_in_the_graph_is_missed(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were not written in are no silent error."""
    naive = {**RULES, "gemma": replace(RULES["gemma"], rows_into="nonsense")}
    monkeypatch.setattr("p2pinfer.engine.llama.binding.RULES", naive)
    with pytest.raises(EngineError, match="no nonsense in its place"):
        difference(models("gemma", "F16"), "gemma", SHORT, tmp_path)


REFUSED_WITHOUT: dict[str, dict[str, Any]] = {
    "bailingmoe2": {"head_everywhere": False},
    "deepseek2-lite": {"derived": None},
    "dots1": {"head_everywhere": False},
    "exaone-moe": {"windows": Windows(period=4)},
    "gemma4": {"rope_of_full_layers": False},
    "gpt-oss": {"head_everywhere": False},
    "mimo2": {"head_everywhere": False},
    "minimax-m2": {"head_everywhere": False},
    "olmo2": {"head_everywhere": False},
    "phimoe": {"head_everywhere": False},
    "qwen2moe": {"head_everywhere": False},
    "qwen3next": {"is_hybrid": False},
    "step35": {"windows": Windows()},
}


@pytest.mark.parametrize("name", REFUSED_WITHOUT)
def test_slices_without_a_rule_are_not_loaded(
    models: Models, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where llama.cpp wants other tensors, it refuses a slice."""
    model = models(name, "F16")
    rules = RULES[CASES[name].recipe.architecture]
    with_rules(monkeypatch, name, replace(rules, **REFUSED_WITHOUT[name]))
    with pytest.raises(BadModelFile):
        difference(model, name, SHORT, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "afmoe",
        "bailingmoe2",
        "deepseek2",
        "dots1",
        "ernie4_5-moe",
        "exaone-moe",
        "glm4moe",
        "laguna",
    ],
)
def test_slices_that_count_no_dense_layers_of_their_own_are_not_loaded(
    models: Models, name: str, tmp_path: Path
) -> None:
    """With the whole model's count, llama.cpp misses tensors in layers that have experts."""
    model = models(name, "F16")
    header = read_header(model)
    key = f"{CASES[name].recipe.architecture}.leading_dense_block_count"
    plans = [
        SlicePlan({**plan.metadata, key: header.metadata[key]}, plan.tensors)
        for plan in plan_chain(header, CASES[name].bounds)
    ]
    with pytest.raises(BadModelFile):
        chain_difference(model, plans, ask_whole(model, SHORT), SHORT, tmp_path)


RUN = """
import sys
from pathlib import Path

import numpy as np

from p2pinfer.engine.llama.binding import Settings, Slice, Span

# A last end takes rows, and gives logits of the last of them alone.
is_last = sys.argv[2] == "last"
part = Slice(Path(sys.argv[1]), logits=is_last, settings=Settings(), sessions=1, context=64)
rows = np.zeros((4, part.width), np.float32) if is_last else np.zeros(4, np.int32)
part.decode([Span(0, 0, rows)])
"""


def run(path: Path, end: str) -> "subprocess.CompletedProcess[bytes]":
    """Run the first or the last end of a model in a process of its own."""
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    command = [sys.executable, "-c", RUN, str(path), end]
    return subprocess.run(command, env=environment, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("name", "end", "naive", "assertion"),
    [
        ("cohere2", "last", {"windows": Windows(period=4)}, b"tensor buffer not set"),
        ("gemma4", "first", {"blocks_min": 1}, b"n_layer_kv_from_start >= 2"),
        ("llama4", "first", {"whole_period": False}, b"tensor buffer not set"),
        ("mimo2", "first", {"windows": None}, b"is_swa_any"),
        ("qwen3vl", "last", {"left_out": ()}, b"ggml_can_repeat"),
    ],
)
def test_slices_without_a_rule_end_llama_cpp(
    models: Models,
    name: str,
    end: str,
    naive: dict[str, Any],
    assertion: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It insists on a windowed layer, or on two, or on pictures in the first layers."""
    model = models(name, "F16")
    header = read_header(model)
    path = tmp_path / "end.gguf"
    plan_end = plan_first_end if end == "first" else plan_last_end
    write_slice(plan_end(header, 1), extents(header, model), path)
    assert run(path, end).returncode == 0
    with_rules(monkeypatch, name, replace(RULES[name], **naive))
    write_slice(plan_end(header, 1), extents(header, model), path)
    ended = run(path, end)
    assert ended.returncode < 0
    assert assertion in ended.stderr


@pytest.mark.parametrize("name", ["lfm2", "nemotron_h", "qwen3next"])
def test_a_slice_of_one_kind_of_layer_ends_llama_cpp(
    models: Models, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless a layer of zeros, of the other kind, is behind it."""
    model = models(name, "Q8_0")
    header, path = read_header(model), tmp_path / "end.gguf"
    write_slice(plan_first_end(header, 1), extents(header, model), path)
    assert run(path, "first").returncode == 0
    monkeypatch.setattr(slicing, "_lacking_kinds", lambda *_: [])
    write_slice(plan_first_end(header, 1), extents(header, model), path)
    ended = run(path, "first")
    assert ended.returncode < 0
    assert b"GGML_ASSERT" in ended.stderr


@pytest.mark.parametrize("name", ["afmoe", "llama4", "smollm3"])
def test_layers_counted_from_a_slices_first_are_silently_wrong(
    models: Models, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fourth goes without positions; a smollm3's logits differ by little: only 0 will do."""
    model = models(name, "F16")
    header, off_period = read_header(model), 3
    first = plan_first_end(header, off_period)
    with_rules(monkeypatch, name, replace(RULES[name], period=1, whole_period=False))
    plans = [first, plan_last_end(header, model_info(header).layers - off_period)]
    assert chain_difference(model, plans, ask_whole(model, SHORT), SHORT, tmp_path) > 0


@pytest.mark.parametrize(
    ("metadata", "layers", "reason"),
    [
        ({"interleave_moe_layer_step": 3}, 8, "in another period than positions"),
        ({"interleave_moe_layer_step": 1}, 6, "no multiple of 4"),
        (
            {"interleave_moe_layer_step": 1, "attention.sliding_window": 0},
            8,
            "the last layer alone",
        ),
    ],
)
def test_a_llama4_of_another_rhythm_is_refused(
    metadata: dict[str, Plain], layers: int, reason: str, tmp_path: Path
) -> None:
    """What no zeros in front set right."""
    model = tmp_path / "model.gguf"
    write_model(Recipe("llama4", layers, {**EXPERTS, **metadata}), model)
    with pytest.raises(UnsupportedModel, match=reason):
        plan_first_end(read_header(model), 1)


def test_zeros_in_front_take_no_room_on_the_disk(models: Models, tmp_path: Path) -> None:
    """They are holes, where the file system has them."""
    model, path = models("llama4", "Q8_0"), tmp_path / "stage.gguf"
    header = read_header(model)
    plan = plan_stage(header, 3, 4)
    write_slice(plan, extents(header, model), path)
    layer = model_info(header).layer_bytes[3]
    assert path.stat().st_size > 2 * layer
    assert path.stat().st_blocks * 512 < 2 * layer
