"""Hunting: what a seed draws, what a failure shrinks to, and that it can be read again."""

from pathlib import Path

import pytest
from attrs import evolve

from sim.hunt import draw, shrink, try_scenario
from sim.scenario import ChurnTable, CutTable, check_scenario, load_scenario
from sim.toml import to_toml
from sim.toml_schema import Spread


@pytest.mark.parametrize("seed", range(30))
def test_what_is_drawn_can_be_written_and_read(tmp_path: Path, seed: int) -> None:
    """Every drawn scenario is a valid file, and the file says the same."""
    scenario = draw(seed)
    check_scenario(scenario, "drawn")
    path = tmp_path / "it.toml"
    path.write_text(to_toml(scenario))
    assert load_scenario(str(path)) == scenario


def test_a_bug_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that decodes the newest rows first fails; what is left is one kind of peers."""

    def take_newest(batcher: object, slot: int) -> object:
        jobs = batcher._waiting.pop(slot)  # type: ignore[attr-defined]
        job = jobs.pop()
        if jobs:
            batcher._waiting[slot] = jobs  # type: ignore[attr-defined]
        return job

    drawn = draw(1)
    region = drawn.regions.names[0]
    scenario = evolve(
        drawn,
        duration_s=15.0,
        settle_s=30.0,
        calm_s=5.0,
        peers=(evolve(drawn.peers[0], chunk_ms=Spread(50, 60)),),  # so that chunks wait
        requests=evolve(drawn.requests, per_minute=12.0, prompt=Spread(200, 250)),
        churn=ChurnTable(stay_s=1000.0),
        cuts=(CutTable(regions=(region,), at_s=1.0, heal_s=2.0),),
    )
    monkeypatch.setattr("sim.hunt.SHRINKS_MAX", 6)
    assert try_scenario(scenario) is None
    monkeypatch.setattr("p2pinfer.engine.llama.batching.Batcher._take", take_newest)
    found = try_scenario(scenario)
    assert found is not None
    small = shrink(found, lambda *_: None)
    assert small.checks
    assert not small.scenario.cuts
    assert not small.scenario.churn.stay_s
    assert small.scenario.peer_count <= scenario.peer_count
