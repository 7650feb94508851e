"""Of settings that are exact, the probe takes those that are fast, with the threads that pay."""

import json
from pathlib import Path

import pytest

from p2pinfer.engine.llama.binding import Settings
from p2pinfer.engine.llama.probe import Tries, fastest, probe
from tests.support.fake_slices import (
    KINDS,
    Cost,
    Flaw,
    Loader,
    constant,
    depends_on_threads,
    exact,
    four_threads_pay,
    one_row_is_split,
    plain_attention_is_inexact,
    plain_is_fast,
    plain_is_hardly_faster,
    repacking_is_inexact,
    run,
    threads_are_in_the_way,
    threads_pay,
    trying,
)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Give a cache file that does not exist yet."""
    return tmp_path / "slice.probe.json"


@pytest.mark.parametrize(
    ("flaw", "cost", "threads", "settings"),
    [
        (exact, threads_pay, 7, Settings(7)),
        (exact, four_threads_pay, 7, Settings(4)),
        (exact, constant, 7, Settings(1)),
        (exact, threads_are_in_the_way, 7, Settings(1)),
        (exact, plain_is_fast, 1, Settings(1, flash_attention=False)),
        (exact, plain_is_fast, 4, Settings(1, flash_attention=False)),
        (exact, plain_is_hardly_faster, 1, Settings(1)),
        (one_row_is_split, threads_pay, 1, Settings(1)),
        (one_row_is_split, threads_pay, 7, Settings(7, flash_attention=False)),
        (one_row_is_split, four_threads_pay, 7, Settings(4, flash_attention=False)),
        (one_row_is_split, threads_are_in_the_way, 7, Settings(1)),
        (repacking_is_inexact, threads_pay, 2, Settings(2, repack=False)),
        (plain_attention_is_inexact, threads_pay, 4, Settings(1)),
        (plain_attention_is_inexact, plain_is_fast, 1, Settings(1)),
        (depends_on_threads, threads_pay, 4, Settings(1)),
    ],
)
def test_of_exact_settings_the_fastest_are_used(
    flaw: Flaw, cost: Cost, threads: int, settings: Settings, cache: Path
) -> None:
    """As many threads as pay, and the attention that is fast here."""
    found = run(flaw, cache, threads=threads, cost=cost, is_most=True)
    assert found.settings == settings
    report = json.loads(cache.read_text())
    tried = [(Settings(**each), seconds) for each, seconds in report["measured_s"]]
    assert tried == [(each, cost(each)) for each, _ in tried]
    assert run(exact, cache, threads=threads, is_most=True) == found  # kept


def test_a_persons_number_of_threads_is_not_judged(cache: Path) -> None:
    """However slow they are."""
    found = run(exact, cache, threads=4, cost=threads_are_in_the_way)
    assert found.settings == Settings(4)


def test_the_class_does_not_depend_on_the_threads_that_pay(tmp_path: Path) -> None:
    """Like machines agree to the bit, also where one of them was busy when it measured."""
    classes = {
        run(exact, tmp_path / f"{n}", threads=4, cost=cost, is_most=True).numerics_class
        for n, cost in enumerate((threads_pay, constant, four_threads_pay))
    }
    assert len(classes) == 1


def test_where_measuring_fails_the_first_exact_settings_are_used(cache: Path) -> None:
    """As if it crashes."""
    found = probe(Tries(trying(Loader(exact)), lambda _: []), 4, cache, KINDS, is_most=True)
    assert found.settings == Settings(1)


def test_a_small_gain_is_none() -> None:
    """Each must be clearly faster than the best before it, so small steps do not add up."""
    times = [1.0, 0.95, 0.92, 0.91, 0.85, 0.8]
    choices = [(Settings(n + 1), seconds) for n, seconds in enumerate(times)]
    assert fastest(choices) == Settings(5)
