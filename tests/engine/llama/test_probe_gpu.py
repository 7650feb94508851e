"""A GPU is used for what it computes exactly, and if it is faster; else the CPU, if that may be."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from p2pinfer.core.errors import EngineError, UnsupportedModel
from p2pinfer.engine.llama.binding import Settings
from p2pinfer.engine.llama.probe import INEXACT, Crash, Tries, probe
from tests.support.fake_slices import (
    KINDS,
    Flaw,
    Loader,
    exact,
    gpu_is_inexact,
    gpu_needs_fixed_rows,
    gpu_needs_plain_attention,
    run,
    tries,
    trying,
)
from tests.support.gpus import CARD

NAMED = replace(CARD, is_named=True)
ON_CARD = Settings(device=CARD.name)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Give a cache file that does not exist yet."""
    return tmp_path / "slice.probe.json"


def slow_card(settings: Settings) -> float:
    """Take twice as long on the GPU."""
    return 2.0 if settings.device else 1.0


@pytest.mark.parametrize(
    ("flaw", "settings"),
    [
        (exact, ON_CARD),
        (gpu_needs_fixed_rows, replace(ON_CARD, fixed=True)),
        (gpu_needs_plain_attention, replace(ON_CARD, fixed=True, flash_attention=False)),
        (gpu_is_inexact, Settings(2)),
    ],
)
def test_a_gpu_is_used_where_it_is_exact(flaw: Flaw, settings: Settings, cache: Path) -> None:
    """With as few restrictions as that takes; if nothing helps, the CPU computes."""
    found = run(flaw, cache, threads=2, gpu=CARD)
    assert found.settings == settings
    assert run(exact, cache, threads=2, gpu=CARD) == found  # kept
    why = [each["why"] for each in json.loads(cache.read_text())["ruled_out"]]
    assert set(why) <= {INEXACT}


def test_a_gpu_that_a_person_names_is_used_or_the_model_is_refused(cache: Path) -> None:
    """However slow it is, and with the reason."""
    assert run(exact, cache, gpu=NAMED, cost=slow_card).settings == ON_CARD
    with pytest.raises(UnsupportedModel, match=r"CUDA0.*batched; to use the CPU: --gpu off"):
        run(gpu_is_inexact, cache.with_name("other"), gpu=NAMED)


def test_a_slow_gpu_is_not_used(cache: Path) -> None:
    """And the report says why."""
    assert run(exact, cache, gpu=CARD, cost=slow_card).settings == Settings(1)
    (ruled_out,) = json.loads(cache.read_text())["ruled_out"]
    assert ruled_out["why"] == "CUDA0 (A card) is slower than the CPU"


def test_a_gpu_whose_speed_cannot_be_measured_is_not_used(cache: Path) -> None:
    """Its driver may have crashed."""
    unmeasured = Tries(trying(Loader(exact)), lambda _: [])
    assert probe(unmeasured, 1, cache, KINDS, gpu=CARD).settings == Settings(1)
    (ruled_out,) = json.loads(cache.read_text())["ruled_out"]
    assert ruled_out["why"] == "CUDA0 (A card) could not be measured against the CPU"


def test_a_slice_that_only_the_gpu_can_hold_does_not_fall_back(cache: Path) -> None:
    """It would take the machine's memory down."""
    with pytest.raises(UnsupportedModel, match="nor can the CPU: too little memory"):
        run(gpu_is_inexact, cache, gpu=CARD, why_not_cpu="too little memory")
    found = run(exact, cache, gpu=CARD, cost=slow_card, why_not_cpu="too little memory")
    assert found.settings == ON_CARD


def test_a_driver_that_crashes_costs_only_the_gpu(cache: Path) -> None:
    """Unless a person wants it, who is told how it ended."""
    crash = Crash("it ended on signal 11 (SIGSEGV)", lacked_memory=False)
    found = run(exact, cache.with_name("cpu"))

    def crashing(settings: Settings) -> object:
        return crash if settings.device else found

    assert probe(tries(crashing), 1, cache, KINDS, gpu=CARD) == found  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="SIGSEGV"):
        probe(tries(crashing), 1, cache.with_name("named"), KINDS, gpu=NAMED)  # type: ignore[arg-type]


def test_another_driver_needs_another_probe(cache: Path) -> None:
    """As another llama.cpp does."""
    assert run(exact, cache, gpu=CARD).settings == ON_CARD
    newer = replace(CARD, driver="536")
    assert run(gpu_needs_fixed_rows, cache, gpu=newer).settings.fixed
