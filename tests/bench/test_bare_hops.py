"""The floor of a chain: processes that only run their slices and hand rows on."""

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from p2pinfer.bench import bare_hops
from p2pinfer.bench.bare_hops import BareChain, BareRun, open_bare_chain
from p2pinfer.bench.decode import DecodeRun, floor
from p2pinfer.core.errors import P2pinferError
from p2pinfer.engine.llama.binding import Settings
from tests.support.model_factory import write_model
from tests.support.recipes import CASES
from tests.support.whole import open_model


def bare_chain(name: str, tmp_path: Path) -> BareChain:
    """Return the chain of a tiny model."""
    path, (first, *_, end) = tmp_path / "model.gguf", CASES[name].bounds
    write_model(CASES[name].recipe, path)
    model, last = open_model(path, tmp_path), CASES[name].recipe.layers - end
    stages = [model.stage(*each) for each in pairwise(CASES[name].bounds)]
    ends = model.ends(first)[0], model.ends(last)[1]
    return BareChain(ends, stages, Settings(), 70, 3, model.info.width)


@pytest.mark.parametrize("name", ["smollm3", "gemma2", "qwen35"])
def test_rows_go_round_all_slices_again_and_again(name: str, tmp_path: Path) -> None:
    """Of a common model, of one whose rows are written in, and of one whose layers keep a state."""
    chain = bare_chain(name, tmp_path)
    for encrypts in (False, True):
        with open_bare_chain(replace(chain, encrypts=encrypts)) as run:
            for _ in range(2):
                started = time.perf_counter()
                found = run()
                assert 0 < found.engine_s < found.seconds < time.perf_counter() - started


def test_nodes_that_encrypt_decrypt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a requester with another key sends ends the chain."""
    monkeypatch.setattr(bare_hops, "_KEY", bytes([1] * 32))
    chain = replace(bare_chain("smollm3", tmp_path), encrypts=True)
    with open_bare_chain(chain) as run, pytest.raises((P2pinferError, trio.BrokenResourceError)):
        run()


def test_the_floor_is_of_runs_in_the_same_turn() -> None:
    """Chains of 1.5 and 12 s beside 1 and 8 s alone, in two turns of which one is slow."""
    alone = [DecodeRun([1, 2, 3], 0.0, each) for each in (1.0, 8.0)]
    found = floor(alone, [BareRun(1.5, 1.0), BareRun(12.0, 11.0)], 1)
    assert found["decode_ratio"] == pytest.approx(2 / 3, abs=0.001)
    assert found["ms_per_boundary"] == (125.0 + 250.0) / 2
    assert found["engine_ms_per_token"] == (500.0 + 5500.0) / 2
