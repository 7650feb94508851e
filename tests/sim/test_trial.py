"""The trial that a simulation is compared with: what it gets to know, and what results."""

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.bench.validate import compare
from p2pinfer.core.limits import ROWS_PER_DECODE_MAX
from p2pinfer.core.regimes import Regime
from sim import trial
from sim.engine import VirtualEnds, VirtualSpeed, VirtualStage
from sim.model import VirtualModel
from sim.record import RunRecord
from sim.scenario import Scenario
from sim.trial import (
    Figures,
    Measured,
    TrialAnswer,
    TrialLook,
    figures,
    measured,
    scenario_of,
    simulate,
)
from sim.world import World

LAYERS = 12


def test_speeds_are_derived_from_an_answer() -> None:
    """Rows, full chunks, ends and the gaps between, each per layer and boundary."""
    alone = TrialAnswer(
        waits_s=[0.2, 0.010, 0.008, 0.012],
        is_disturbed=False,
        stages_us=[(4800, 4800), (1000, 1000), (900, 900), (1200, 1000)],
        ends_us=[5400, 2000, 2000, 2000],
        spans=[5, 5],
    )
    seen = measured([TrialLook([alone], cpu_s=0.0300, cores=2)] * 3)
    assert seen.stage.row_s == pytest.approx(200e-6)
    assert seen.stage.decode_s(ROWS_PER_DECODE_MAX, 1) == pytest.approx(960e-6)
    assert seen.ends.row_s == pytest.approx(1e-3)
    assert seen.boundary_s == pytest.approx(2e-3)
    assert seen.handling_s == pytest.approx(0.25e-3)


def test_processors_handle_no_longer_than_a_boundary_takes() -> None:
    """What processors do besides happens after the rows have been sent."""
    alone = TrialAnswer([0.2, 0.010], False, [(5000,), (1000,)], [5000, 1000], [5])
    seen = measured([TrialLook([alone], cpu_s=0.048, cores=2)])
    assert seen.handling_s == pytest.approx(4e-3)
    assert seen.aside_s == pytest.approx((0.048 - 0.012 - 4 * 4e-3) / 2)
    nothing = measured([TrialLook([alone], cpu_s=0.0, cores=2)])
    assert (nothing.handling_s, nothing.aside_s) == (0, 0)


def test_the_disturbed_answer_alone_tells_of_the_stall() -> None:
    """Speed and first token come from the other answers."""
    calm = TrialAnswer([0.5, 0.1, 0.1], False, [], [])
    harmed = TrialAnswer([0.9, 0.1, 0.8], True, [], [])
    found = figures([[calm, harmed, calm]], 7.0)
    assert (found.first_token_s, found.gossip_bytes_per_s) == (0.5, 7.0)
    assert found.tokens_per_s == pytest.approx(10)
    assert found.stall_s == pytest.approx(0.7)


def test_a_simulation_comes_to_what_its_speeds_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token takes the time of ends, stages and links; the killed peer costs a stall."""
    monkeypatch.setattr(trial, "SEEDS", 1)
    seen = Measured(VirtualSpeed(1e-3, 10e-3), VirtualSpeed(2e-3, 8e-3), 0.5e-3, 0.2e-3, 0, 8)
    found = simulate(scenario_of(seen, LAYERS, 64, 4, 512))
    token_s = (LAYERS - 2) * 1e-3 + 2 * 2e-3 + 4 * 0.5e-3
    assert 0.5 / token_s < found.tokens_per_s < 1.05 / token_s  # two ask at once
    assert found.first_token_s > 10e-3 * (LAYERS - 2)
    assert 0.02 < found.stall_s < 5
    assert found.gossip_bytes_per_s > 0


def test_simulations_differ_in_what_is_left_to_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else their median would be that of one."""
    seeds = []

    async def play(scenario: Scenario, _: int) -> tuple[list[TrialAnswer], float]:
        seeds.append(scenario.seed)
        return [TrialAnswer([1.0, 1.0], False, [], []), TrialAnswer([1.0, 1.0], True, [], [])], 1.0

    monkeypatch.setattr(trial, "_play", play)
    seen = Measured(VirtualSpeed(1e-3, 10e-3), VirtualSpeed(2e-3, 8e-3), 0.5e-3, 0.2e-3, 0, 8)
    simulate(scenario_of(seen, LAYERS, 64, 4, 512))
    assert len(set(seeds)) == len(seeds) == trial.SEEDS


async def test_ends_take_time_for_rows_besides_their_layers(autojump_clock: MockClock) -> None:
    """Before they decode, once for each time that rows come; what they report is the decode."""
    ends = VirtualEnds(
        VirtualModel(LAYERS), 1, VirtualSpeed(1e-3, 1e-3, handling_s=5e-3), sessions=1, context=64
    )
    cells, since_s = ends.open(), trio.current_time()
    embedded = await cells.embed(0, [7], regime=Regime.NARROW)
    assert trio.current_time() - since_s == pytest.approx(6e-3)
    found = await cells.next(0, embedded.rows, regime=Regime.NARROW)
    assert trio.current_time() - since_s == pytest.approx(6e-3 + 7e-3)
    assert (embedded.decoding_us, found.decoding_us) == (1000, 2000)


async def test_a_blocks_padding_takes_time(autojump_clock: MockClock) -> None:
    """One row in a block takes as long as 64, at the ends and in a stage."""
    model, speed = VirtualModel(LAYERS), VirtualSpeed(1e-3, 32e-3)
    cells = VirtualEnds(model, 1, speed, sessions=1, context=64).open()
    rows = (await cells.embed(0, [7], regime=Regime.BLOCK)).rows
    assert trio.current_time() == pytest.approx(64e-3, abs=1e-6)
    stage, done = VirtualStage(model, 1, 3, speed, sessions=1, context=64), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        stage.open(3).submit(0, rows, lambda _: done.set(), regime=Regime.BLOCK)
        await done.wait()
        nursery.cancel_scope.cancel()
    assert trio.current_time() == pytest.approx(64e-3 + 2 * 64e-3, abs=1e-6)


async def test_requesters_are_no_neighbours_of_each_other(autojump_clock: MockClock) -> None:
    """They cannot be dialled, so they pass on to each other nothing that the only peer says."""
    seen = Measured(VirtualSpeed(1e-3, 10e-3), VirtualSpeed(2e-3, 8e-3), 0.5e-3, 0.2e-3, 0, 8)
    scenario = scenario_of(seen, LAYERS, 64, 4, 512)
    world = World(evolve(scenario, peers=scenario.peers[:1]), RunRecord())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run_peer, world.machines()[0])
        await trio.sleep(5)
        for number in range(2):
            await nursery.start(world.run_requester, number)
        await trio.sleep(30)
        (peer,) = world.peers
        assert world.network.sent(peer)["gossip"] > 0
        assert [world.network.sent(each.id)["gossip"] for each in world.requesters] == [0, 0]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("handling_s", "aside_s"), [(4e-3, 0.0), (0.0, 4e-3)])
def test_handling_rows_takes_time_from_the_shared_cores(
    handling_s: float, aside_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requesters on one core wait for it, though a boundary takes no longer."""
    monkeypatch.setattr(trial, "SEEDS", 1)
    speed = VirtualSpeed(1e-3, 1e-3)
    idle, busy = (
        simulate(scenario_of(Measured(speed, speed, 4e-3, *besides_s, 1), LAYERS, 64, 4, 512))
        for besides_s in ((0.0, 0.0), (handling_s, aside_s))
    )
    assert busy.tokens_per_s < 0.9 * idle.tokens_per_s


def test_deviations_are_in_percent_of_what_is_real() -> None:
    """Within the goal or not, and no figure at all where the real one is 0."""
    report = compare(Figures(10.0, 1.0, 0.0, 100.0), Figures(11.0, 1.5, 0.1, 90.0))["figures"]
    assert report["tokens_per_s"]["deviation_percent"] == 10.0
    assert report["tokens_per_s"]["within_goal"] is True
    assert report["first_token_s"]["within_goal"] is False
    assert report["stall_s"]["deviation_percent"] is None
    assert report["gossip_bytes_per_s"]["deviation_percent"] == -10.0
