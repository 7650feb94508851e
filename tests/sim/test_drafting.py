"""Drafting in the simulator: as often right as a scenario says, and worth what real drafts are."""

from itertools import islice, pairwise
from statistics import mean

import pytest
import trio
from attrs import evolve

from p2pinfer.core.errors import UserError
from p2pinfer.core.regimes import Regime
from p2pinfer.engine.base import EngineBusy
from sim.drafting import VirtualDraftModel
from sim.model import VirtualModel
from sim.report import beside_drafts, lines, summary, without_drafts
from sim.run import run_scenario
from sim.scenario import (
    ModelTable,
    PeersTable,
    RegionsTable,
    RequestsTable,
    Scenario,
    check_scenario,
)
from sim.toml_schema import Spread

PROMPT = [5, 6, 7]


def fixed(value: float) -> Spread:
    """Return a quantity that does not vary."""
    return Spread(value, value)


def chain(agreement: float, round_trip_ms: float = 60.0, row_ms: float = 1.0) -> Scenario:
    """Return three peers, each with its third of the layers, in towns of their own."""
    towns = ("home", "x", "y", "z")
    trips = tuple(tuple(1.0 if a == b else round_trip_ms for b in towns) for a in towns)
    peers = tuple(
        PeersTable(
            count=1,
            regions=(town,),
            serves=(1 + 4 * number, 5 + 4 * number),
            row_ms=fixed(row_ms),
            layers=fixed(4),
            jitter=0.0,
            join_s=fixed(0.0),
        )
        for number, town in enumerate(towns[1:])
    )
    return Scenario(
        about="three towns",
        duration_s=90.0,
        settle_s=20.0,
        calm_s=1.0,
        model=ModelTable(layers=14, layer_mb=0.1),
        regions=RegionsTable(names=towns, round_trip_ms=trips),
        peers=peers,
        requests=RequestsTable(
            requesters=1,
            per_minute=2.0,
            prompt=fixed(20),
            answer=fixed(120),
            agreement=fixed(agreement),
            audit_rate=0.0,
        ),
    )


@pytest.mark.parametrize(
    ("agreement", "least", "most"),
    [(0.0, 0.97, 1.02), (0.02, 0.95, 1.02), (0.7, 1.6, 4.0), (1.0, 3.0, 10.0)],
)
def test_what_drafts_bring(agreement: float, least: float, most: float) -> None:
    """More the oftener they are right, and hardly less than nothing where they never are."""
    scenario = chain(agreement)
    numbers = summary(run_scenario(scenario))
    told = beside_drafts(numbers, summary(run_scenario(without_drafts(scenario))))
    assert told["violations"] == []
    assert told["outcomes"] == told["plain"]["outcomes"] == {"answered": numbers["questions"]}
    assert least <= told["drafts_times"] <= most
    assert told["tokens_per_trip"]["median"] >= (1.5 if agreement > 0.5 else 1.0)
    assert (told["drafts_kept"] > 0) is (agreement > 0.5) or agreement == 0.02
    text = "\n".join(lines(told))
    assert "times the tokens of the same world without them" in text
    assert ("tokens per trip" in text) is (agreement > 0)


@pytest.mark.long
@pytest.mark.parametrize(("round_trip_ms", "times"), [(40.0, 2.2), (100.0, 2.45)])
def test_what_drafts_bring_over_long_links(round_trip_ms: float, times: float) -> None:
    """Seven in ten of them right, and stages that take 20 ms each; four rows a token at most.

    In the mean of some worlds: which of its tokens a draft model says alike is a matter of chance.
    """
    scenario = chain(0.7, round_trip_ms, row_ms=5.0)
    one_by_one = tuple(60.0 * number for number in range(4))
    asked = evolve(
        scenario.requests, per_minute=0.0, burst=1, burst_at_s=one_by_one, answer=fixed(150)
    )
    found = []
    for seed in range(1, 7):
        world = evolve(scenario, requests=asked, duration_s=240.0, seed=seed)
        numbers = summary(run_scenario(world))
        told = beside_drafts(numbers, summary(run_scenario(without_drafts(world))))
        found.append(told["drafts_times"])
        assert numbers["drafts_dropped"] < 3 * numbers["tokens"]
    assert mean(found) >= times


@pytest.mark.long
@pytest.mark.parametrize(("agreement", "least"), [(0.3, 0.95), (0.7, 1.2)])
def test_what_drafts_bring_where_many_ask(agreement: float, least: float) -> None:
    """Six answers at once nearly fill the stages: then rows in vain would delay everybody's."""
    scenario = chain(agreement, 40.0, row_ms=5.0)
    asked = evolve(
        scenario.requests,
        requesters=6,
        per_minute=0.0,
        burst=6,
        burst_at_s=(0.0, 70.0, 140.0),
        answer=fixed(150),
    )
    found = []
    for seed in range(1, 4):
        world = evolve(scenario, requests=asked, duration_s=260.0, seed=seed)
        plain = summary(run_scenario(without_drafts(world)))
        found.append(beside_drafts(summary(run_scenario(world)), plain)["drafts_times"])
    assert mean(found) >= least


@pytest.mark.parametrize("agreement", [0.0, 0.3, 1.0])
async def test_a_draft_model_agrees_as_often_as_it_is_told(
    agreement: float, autojump_clock: object
) -> None:
    """With the model's own answer, whether it reads it token by token or goes on by itself."""
    model = VirtualModel(12)
    ends = VirtualDraftModel(model, lambda: agreement, 0.001, context=4096, sessions=1)
    cells, answer = ends.open(), [*islice(model.answer(PROMPT), 400)]
    await cells.embed(0, PROMPT, regime=Regime.WIDE)
    right, at = 0, len(PROMPT)
    for token, due in pairwise(answer):
        rows = (await cells.embed(at, [token], regime=Regime.NARROW)).rows
        said = await cells.next(at, rows, regime=Regime.NARROW)
        again = await cells.next(at, rows, regime=Regime.NARROW)
        assert said.token == again.token
        right, at = right + (said.token == due), at + 1
    assert right / (len(answer) - 1) == pytest.approx(agreement, abs=0.08)
    assert trio.current_time() > 0


def test_a_draft_model_has_room_for_so_many_sessions() -> None:
    """And for another one once one of them is closed, which may be closed twice."""
    ends = VirtualDraftModel(VirtualModel(4), lambda: 1.0, 0.001, context=64, sessions=1)
    first = ends.open()
    with pytest.raises(EngineBusy):
        ends.open()
    for _ in range(2):
        first.close()
    ends.open()


@pytest.mark.parametrize("wrong", [Spread(0.5, 1.1), fixed(2)])
def test_an_agreement_is_a_share(wrong: Spread) -> None:
    """A person reads which key is wrong."""
    scenario = chain(0.5)
    bad = evolve(scenario, requests=evolve(scenario.requests, agreement=wrong))
    with pytest.raises(UserError, match=r"requests\.agreement is a share"):
        check_scenario(bad, "file.toml")
