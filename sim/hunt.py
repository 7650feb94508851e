"""Bug hunting: many small networks drawn from seeds, and the first failure shrunk.

A seed draws everything: how many peers, where, how fast, which leave and how, what is cut, what is
asked. A run fails when a check does. A failing scenario is shrunk for as long as the same check
still fails: less of everything, one kind at a time.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import count, islice
from random import Random

from attrs import evolve

from p2pinfer.engine.cores import usable_cores
from sim.run import run_scenario
from sim.scenario import (
    CHEATS,
    ChurnTable,
    CutTable,
    LiarsTable,
    ModelTable,
    PeersTable,
    RegionsTable,
    RequestsTable,
    Scenario,
)
from sim.toml_schema import Spread

SHRINKS_MAX = 60
"""Runs that shrinking a failure may take."""


@dataclass(frozen=True)
class FoundFailure:
    """A run that failed."""

    scenario: Scenario
    checks: tuple[str, ...]
    text: str
    """The text of the first violation."""


def draw(seed: int) -> Scenario:
    """Return the scenario that a seed stands for."""
    chance = Random(seed)  # noqa: S311 -- a scenario's seed
    layers = chance.randint(4, 40)
    regions = chance.randint(1, 3)
    names = tuple("abc"[:regions])
    far_ms = [[chance.choice((5, 30, 150, 300)) for _ in names] for _ in names]
    matrix = tuple(
        tuple(1.0 if i == j else float(far_ms[min(i, j)][max(i, j)]) for j in range(regions))
        for i in range(regions)
    )
    duration_s = chance.choice((60.0, 120.0, 240.0))
    hidden = Random(f"{seed} undialable")  # noqa: S311 -- so that earlier draws stay the same
    opened = Random(f"{seed} opened")  # noqa: S311
    drafted = Random(f"{seed} drafted")  # noqa: S311
    return Scenario(
        about=f"drawn from seed {seed}",
        seed=seed,
        duration_s=duration_s,
        settle_s=60.0,
        calm_s=90.0,
        model=ModelTable(layers=layers, layer_mb=chance.choice((1.0, 10.0)), context=512),
        regions=RegionsTable(names=names, round_trip_ms=matrix),
        peers=tuple(
            evolve(_draw_peers(chance, layers), undialable=hidden.choice((0.0, 0.0, 0.5)))
            for _ in range(chance.randint(1, 3))
        ),
        requests=RequestsTable(
            requesters=chance.randint(1, 4),
            per_minute=chance.choice((3.0, 10.0, 30.0)),
            burst_at_s=(duration_s / 2,) if chance.random() < 0.3 else (),
            burst=chance.randint(2, 10),
            prompt=Spread(1, 150),
            answer=Spread(1, chance.choice((5, 40, 120))),
            audit_rate=chance.choice((0.05, 1.0)),
            proof_rate=opened.choice((0.0, 0.1, 1.0)),
            agreement=drafted.choice((Spread(0, 0), Spread(0, 0), Spread(0, 1))),
        ),
        churn=_draw_churn(chance),
        cuts=_draw_cuts(chance, names, duration_s),
        liars=_draw_liars(chance),
    )


def _draw_peers(chance: Random, layers: int) -> PeersTable:
    least = chance.randint(max(1, layers // 4), layers)
    return PeersTable(
        count=chance.randint(1, 5),
        layers=Spread(least, chance.randint(least, layers)),
        sessions=chance.choice((1, 2, 8)),
        numerics=chance.choice((0, 0, 1)),
        row_ms=Spread(0.1, chance.choice((0.5, 5.0))),
        chunk_ms=Spread(2, chance.choice((5, 60))),
        up_mbit=Spread(chance.choice((2, 20, 200)), 300),
        jitter=chance.choice((0.0, 0.2, 2.0)),
        loss=chance.choice((0.0, 0.01, 0.1)),
        join_s=Spread(0, chance.choice((0, 5, 30))),
    )


def _draw_churn(chance: Random) -> ChurnTable:
    if chance.random() < 0.4:
        return ChurnTable()
    return ChurnTable(
        stay_s=chance.choice((40.0, 120.0, 400.0)),
        away_s=chance.choice((2.0, 30.0)),
        killed=chance.choice((0.0, 0.5, 1.0)),
    )


def _draw_liars(chance: Random) -> tuple[LiarsTable, ...]:
    if chance.random() < 0.6:
        return ()
    kind, rate = chance.choice(CHEATS), chance.choice((0.2, 1.0))
    return (LiarsTable(kind=kind, share=chance.choice((0.1, 0.3)), rate=rate),)


def _draw_cuts(chance: Random, names: tuple[str, ...], duration_s: float) -> tuple[CutTable, ...]:
    if len(names) == 1 or chance.random() < 0.5:
        return ()
    at_s = chance.uniform(0, duration_s / 2)
    heal_s = at_s + chance.choice((1.0, 10.0, 50.0))
    return (CutTable(regions=names[:1], at_s=at_s, heal_s=min(heal_s, duration_s)),)


def try_scenario(scenario: Scenario) -> FoundFailure | None:
    """Run a scenario; return its failure, if any."""
    violations = run_scenario(scenario).record.violations
    if not violations:
        return None
    first = violations[0]
    checks = tuple(sorted({violation.check for violation in violations}))
    return FoundFailure(scenario, checks, f"{first.check} at {first.at_s} s: {first.text}")


def _try_seed(seed: int) -> FoundFailure | None:
    return try_scenario(draw(seed))


def hunt(
    runs: int, first_seed: int, on_run: Callable[[int], None], workers: int | None = None
) -> FoundFailure | None:
    """Run scenarios on all cores until one fails; return the first that does.

    Args:
        runs: how many seeds to try.
        first_seed: the others follow.
        on_run: called with the number of every finished run.
        workers: processes; None for one per core.
    """
    seeds = iter(range(first_seed, first_seed + runs))
    done = 0
    context = multiprocessing.get_context("spawn")
    workers = workers or usable_cores()
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        pending: set[Future[FoundFailure | None]] = {
            pool.submit(_try_seed, seed) for seed in islice(seeds, 2 * workers)
        }
        try:
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                findings = [found for each in finished if (found := each.result())]
                done += len(finished)
                on_run(done)
                if findings:
                    return min(findings, key=lambda finding: finding.scenario.seed)
                pending |= {pool.submit(_try_seed, s) for s in islice(seeds, len(finished))}
        finally:
            pool.shutdown(cancel_futures=True)
    return None


def shrink(finding: FoundFailure, on_try: Callable[[int, int], None]) -> FoundFailure:
    """Make a failure smaller while one of its checks still fails.

    Args:
        finding: the failure.
        on_try: called with the number of runs made and of peers left.
    """
    tries = count(1)
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for smaller in _smaller(finding.scenario):
            number = next(tries)
            if number > SHRINKS_MAX:
                return finding
            on_try(number, finding.scenario.peer_count)
            found = try_scenario(smaller)
            if found and set(found.checks) & set(finding.checks):
                finding, is_smaller = found, True
                break
    return finding


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    """Yield scenarios with less of one kind each, the greatest cuts first."""
    requests, churn = scenario.requests, scenario.churn
    if len(scenario.peers) > 1:
        for index in range(len(scenario.peers)):
            yield evolve(scenario, peers=scenario.peers[:index] + scenario.peers[index + 1 :])
    if scenario.liars:
        yield evolve(scenario, liars=())
    if scenario.cuts:
        yield evolve(scenario, cuts=())
    if churn.stay_s:
        yield evolve(scenario, churn=ChurnTable())
    if scenario.duration_s > 30:
        half_s = scenario.duration_s / 2
        if all(cut.heal_s <= half_s for cut in scenario.cuts):
            yield evolve(scenario, duration_s=half_s)
    if requests.burst_at_s:
        yield evolve(scenario, requests=evolve(requests, burst_at_s=()))
    if requests.requesters > 1:
        yield evolve(scenario, requests=evolve(requests, requesters=1))
    if requests.per_minute > 1:
        yield evolve(scenario, requests=evolve(requests, per_minute=requests.per_minute / 3))
    for index, group in enumerate(scenario.peers):
        if group.count > 1:
            less = evolve(group, count=group.count // 2)
            others = scenario.peers[:index], scenario.peers[index + 1 :]
            yield evolve(scenario, peers=(*others[0], less, *others[1]))
        if group.loss or group.jitter or group.undialable:
            calm = evolve(group, loss=0.0, jitter=0.0, undialable=0.0)
            others = scenario.peers[:index], scenario.peers[index + 1 :]
            yield evolve(scenario, peers=(*others[0], calm, *others[1]))
