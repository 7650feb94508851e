"""Virtual peers open rows, which are true or false by what they do."""

import pytest
from attrs import evolve

from sim.run import run_scenario
from sim.scenario import (
    CHEATS,
    LiarsTable,
    ModelTable,
    PeersTable,
    RequestsTable,
    Scenario,
)
from sim.toml_schema import Spread

QUIET = Scenario(
    about="stages open rows, and nobody runs anything again",
    seed=7,
    duration_s=60.0,
    settle_s=40.0,
    calm_s=20.0,
    model=ModelTable(layers=8, layer_mb=1.0, context=512),
    peers=(PeersTable(count=6, layers=Spread(3, 6)),),
    requests=RequestsTable(
        per_minute=20.0, prompt=Spread(5, 60), answer=Spread(4, 20), audit_rate=0.0, proof_rate=1.0
    ),
)


def test_honest_rows_hold() -> None:
    """Of every stage of every answer, prompts and single rows."""
    record = run_scenario(QUIET).record
    assert not record.violations
    assert record.events["proved"] >= 10
    assert record.events["proved"] == record.events["audits"]


@pytest.mark.parametrize("kind", CHEATS)
def test_cheats_are_caught_by_their_rows(kind: str) -> None:
    """Those that always lie in the first answer that shows one; nobody else is blamed."""
    liars = (LiarsTable(kind=kind, share=0.5, rate=1.0),)
    record = run_scenario(evolve(QUIET, seed=9, liars=liars)).record
    assert not record.violations
    assert record.events["caught by rows"] > 0
    assert record.events["proven"] > 0
