"""Running a scenario from its seed to its record."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import trio

from p2pinfer.core.ledger import fold
from sim import links
from sim.checks import Watch, check_expected, check_free, check_holes, check_last, check_ledger
from sim.clock import call_at, run_virtual
from sim.faults import cut_and_heal, kill_relays, live_and_churn
from sim.questions import ask_all, ask_last
from sim.record import RunRecord
from sim.scenario import Scenario
from sim.world import World

SAMPLES = 240
"""Samples of the world in one run."""

LOGGED_MAX = 50

GOSSIP = (links.GOSSIP, "Known", "Compare", "Differs", "Wanted")
"""Kinds of messages that announce which peers serve what."""


@dataclass
class Outcome:
    """A finished run."""

    scenario: Scenario
    record: RunRecord
    covered: float
    """Share of the samples, after settling, in which every layer was served."""
    virtual_s: float
    wall_s: float
    cpu_s: float
    messages: int
    sent: dict[str, int]
    """Bytes by kind of message."""
    gossip_bytes: list[int]
    """By peer."""
    lies: int
    served: dict[bool, int]
    """Sessions that a stage signed for, by whether others can dial it."""
    layer_rows: dict[bool, int]
    """What stages signed for, by whether others can dial them."""
    ways: dict[str, int]
    """Connections to peers that cannot be dialled, by how they were made."""
    relayed_bytes: int

    @property
    def is_good(self) -> bool:
        """Whether no invariant was violated."""
        return not self.record.violations


class _Listener(logging.Handler):
    """Keeps the warnings that roles log."""

    def __init__(self, record: RunRecord) -> None:
        super().__init__(logging.WARNING)
        self._record = record

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        self._record.events["warnings"] += 1
        if len(self._record.log) < LOGGED_MAX:
            self._record.log.append(f"{trio.current_time():.1f} {record.getMessage()}")


def run_scenario(scenario: Scenario, on_time: Callable[[float], None] = lambda _: None) -> Outcome:
    """Run a scenario in virtual time, the same way each time; ``on_time`` gets the share done.

    Raises:
        P2pinferError: the scenario cannot be run.
    """
    record = RunRecord()
    listener, root = _Listener(record), logging.getLogger("p2pinfer")
    before = root.propagate
    root.addHandler(listener)
    root.propagate = False
    started = time.perf_counter(), time.process_time()
    try:
        return run_virtual(lambda: _play(scenario, record, started, on_time), scenario.seed)
    finally:
        root.removeHandler(listener)
        root.propagate = before


async def _play(
    scenario: Scenario,
    record: RunRecord,
    started: tuple[float, float],
    on_time: Callable[[float], None],
) -> Outcome:
    world = World(scenario, record)
    world.network.call_at = call_at
    settle_s, end_s = scenario.settle_s, scenario.settle_s + scenario.duration_s
    churn_end_s = settle_s + min(scenario.churn.until_s or scenario.duration_s, scenario.duration_s)
    whole_s = end_s + scenario.calm_s
    watch = Watch(world, whole_s / SAMPLES, lambda: on_time(trio.current_time() / whole_s))
    async with trio.open_nursery() as nursery:
        for machine in world.machines():
            churn_from_s = settle_s + scenario.churn.from_s
            nursery.start_soon(live_and_churn, world, machine, churn_from_s, churn_end_s)
        await trio.sleep(scenario.settle_s / 2)
        for number in range(scenario.requests.requesters):
            await nursery.start(world.run_requester, number)
        nursery.start_soon(watch.run, settle_s)
        nursery.start_soon(kill_relays, world, settle_s + scenario.churn.from_s, churn_end_s)
        for cut in scenario.cuts:
            nursery.start_soon(cut_and_heal, world, cut, settle_s)
        await trio.sleep_until(settle_s)
        await ask_all(world)
        await trio.sleep_until(max(end_s, trio.current_time()) + scenario.calm_s)
        check_holes(world)
        if world.is_covered():
            for question in await ask_last(world):
                check_last(question, world)
        await check_free(world)
        check_ledger(world)
        covered = watch.covered / max(1, watch.looks)
        outcome = _outcome(world, record, covered, started)
        check_expected(scenario, record, covered, undialable_share(outcome))
        nursery.cancel_scope.cancel()
    return outcome


def undialable_share(outcome: "Outcome") -> float:
    """Return which part of the layer-rows was computed by peers that cannot be dialled."""
    rows = outcome.layer_rows
    return rows.get(False, 0) / max(1, sum(rows.values()))


def _outcome(
    world: World, record: RunRecord, covered: float, started: tuple[float, float]
) -> Outcome:
    sent = [world.network.sent(peer) for peer in world.network.access]
    kinds = sum(sent, Counter[str]())
    done = list(fold(world.served).values())
    layer_rows: Counter[bool] = Counter()
    for entry in done:
        layer_rows[world.network.access[entry.server].is_dialable] += entry.layer_rows
    gossip = [sum(each[kind] for kind in GOSSIP) for each in sent]
    return Outcome(
        world.scenario,
        record,
        covered,
        trio.current_time(),
        time.perf_counter() - started[0],
        time.process_time() - started[1],
        world.network.messages,
        dict(sorted(kinds.items())),
        gossip,
        world.lies,
        Counter(world.network.access[entry.server].is_dialable for entry in done),
        dict(layer_rows),
        dict(sorted(world.network.ways.made.items())),
        world.network.ways.relayed_bytes,
    )
