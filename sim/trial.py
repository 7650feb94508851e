"""One small trial that a simulated swarm and a real one both go through.

Five peers serve three ranges of layers, two of them twice. Two requesters ask one question after
another, at the same time. In the middle of one answer a peer that works on it is killed; the other
requester is silent then, since a stall is twice as long where another session has to be restored,
too, which is a matter of luck.
"""

import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean

import trio
from attrs import evolve

from p2pinfer.core.errors import PeerError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.limits import ROWS_PER_DECODE_MAX
from p2pinfer.core.sampling import Sampling
from peers.asking.client import SwarmClient
from sim.clock import run_virtual
from sim.engine import CHUNK_ROWS, VirtualSpeed
from sim.record import RunRecord
from sim.run import GOSSIP
from sim.scenario import ModelTable, PeersTable, RegionsTable, RequestsTable, Scenario
from sim.toml_schema import Spread
from sim.world import World

REQUESTERS = 2
QUESTIONS = 6
"""Questions per requester by default. A peer is killed in the middle one of the first requester's,
while the other requester asks nothing."""

QUESTIONS_MIN = 2

PROMPT = 3 * ROWS_PER_DECODE_MAX
"""Tokens of a question, in full chunks."""

ANSWERS = (48, 32, 60, 40, 64)
"""Tokens of answers, in turn: of different lengths, so that the two requesters stay out of step."""

KILLED_AT, KILLED_STAGE = 20, 1
"""The token at which it is killed, and its place in the chain."""

GOSSIP_S = 60.0
"""Without questions, in which gossip is counted: several periods."""

SETTLE_S = 20.0
SEEDS = 9
"""Simulations, of which the median counts: chance picks routes."""

ATTEMPTS_MAX = 4
"""For one question, until an answer comes."""

GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class TrialAnswer:
    """How long a requester waited for each token; for the first, since the question."""

    waits_s: list[float]
    is_disturbed: bool
    stages_us: list[tuple[int, ...]]
    """Of each token: the time that each stage reports."""
    ends_us: list[int]
    spans: list[int] = field(default_factory=list)
    """How many layers each stage ran at first."""


@dataclass(frozen=True)
class Figures:
    """A trial's results."""

    tokens_per_s: float
    first_token_s: float
    stall_s: float
    gossip_bytes_per_s: float
    """Sent by one requester without questions."""


@dataclass(frozen=True)
class TrialLook:
    """Observations of a real swarm that had nothing else to do."""

    alone: Sequence[TrialAnswer]
    """Answers to the only asker, one after another."""
    cpu_s: float
    """Spent by all processors meanwhile, on engines of one thread each and on everything else."""
    cores: float
    """As in ``Measured``."""


@dataclass(frozen=True)
class Measured:
    """A real swarm's times, by its own reports, while one requester asks alone."""

    stage: VirtualSpeed
    ends: VirtualSpeed
    boundary_s: float
    """A token's time between two engines that neither of them counts."""
    handling_s: float
    """The part of it that keeps processors busy, which can do nothing else then."""
    aside_s: float
    """What they spend for a stage after its rows have been sent."""
    cores: float
    """Combined speed of several engines at once, in engines that work alone, on one machine."""


def ranges_of(layers: int) -> list[LayerRange]:
    """Return what each of five peers serves of a model whose first and last layer is not theirs."""
    bounds = [1 + (layers - 2) * part // 3 for part in range(4)]
    first, middle, last = (LayerRange(bounds[i], bounds[i + 1]) for i in range(3))
    return [first, middle, last, middle, last]


async def ask(
    client: SwarmClient,
    prompt: Sequence[int],
    length: int = ANSWERS[0],
    kill: Callable[[PeerId], None] | None = None,
) -> TrialAnswer:
    """Ask for ``length`` tokens in a new session; ``kill`` gets the peer to kill meanwhile.

    Raises:
        PeerError: the answer broke off, or none came in spite of retries.
    """
    since = trio.current_time()
    answer = TrialAnswer([], kill is not None, [], [])
    for attempt in range(ATTEMPTS_MAX):
        try:
            await _listen(client, prompt, length, kill, answer, since)
            break
        except PeerError:  # a killed peer stays listed for a while
            if answer.waits_s or attempt == ATTEMPTS_MAX - 1:
                raise
    return answer


async def _listen(
    client: SwarmClient,
    prompt: Sequence[int],
    length: int,
    kill: Callable[[PeerId], None] | None,
    answer: TrialAnswer,
    since: float,
) -> None:
    route = await client.find_route(lambda _: None)
    answer.spans[:] = [hop.end - hop.first for hop in route]
    async with (
        client.open_session(route) as session,
        aclosing(session.generate(prompt, GREEDY, length)) as tokens,
    ):
        async for token in tokens:
            now = trio.current_time()
            answer.waits_s.append(now - since)
            answer.stages_us.append(token.stages_us)
            answer.ends_us.append(token.ends_us)
            since = now
            if kill and len(answer.waits_s) == KILLED_AT:
                kill(session.route[KILLED_STAGE].peer)


async def idle(requesters: int, gossiped: Callable[[], int], seconds: float = GOSSIP_S) -> float:
    """Return the bytes a second that a requester sends while there are no questions.

    ``gossiped`` returns the bytes that all have sent so far.
    """
    before = gossiped()
    await trio.sleep(seconds)
    return (gossiped() - before) / seconds / requesters


async def run_trial(
    clients: Sequence[SwarmClient], prompts: Sequence[Sequence[int]], kill: Callable[[PeerId], None]
) -> list[TrialAnswer]:
    """Ask all questions, equally many per requester, and kill a peer in the middle of one."""
    found: list[TrialAnswer] = []
    questions = len(prompts) // len(clients)
    killed_in = questions // 2

    async def one(client: int, question: int, kill: Callable[[PeerId], None] | None) -> None:
        which = client * questions + question
        length = ANSWERS[which % len(ANSWERS)]
        found.append(await ask(clients[client], prompts[which], length, kill))

    async def converse(client: int, which: range) -> None:
        for question in which:
            await one(client, question, None)

    async def all_ask(which: range) -> None:
        async with trio.open_nursery() as nursery:
            for client in range(len(clients)):
                nursery.start_soon(converse, client, which)

    await all_ask(range(killed_in))
    await one(0, killed_in, kill)
    await all_ask(range(killed_in + 1, questions))
    return found


def figures(trials: Sequence[Sequence[TrialAnswer]], gossip_bytes_per_s: float) -> Figures:
    """Evaluate the answers of each trial, and return the medians."""
    tokens_per_s, first_s, stall_s = map(statistics.median, zip(*map(_judge, trials), strict=True))
    return Figures(tokens_per_s, first_s, stall_s, gossip_bytes_per_s)


def _judge(found: Sequence[TrialAnswer]) -> tuple[float, float, float]:
    """Return the first three figures of a trial; the stall is that of the disturbed answer."""
    calm = [answer for answer in found if not answer.is_disturbed]
    waits_s = [wait for answer in calm for wait in answer.waits_s[1:]]
    (harmed,) = (answer for answer in found if answer.is_disturbed)
    return (
        len(waits_s) / sum(waits_s),
        statistics.median(answer.waits_s[0] for answer in calm),
        max(harmed.waits_s[1:]) - statistics.median(waits_s),
    )


def measured(looks: Sequence[TrialLook]) -> Measured:
    """Derive speeds from answers to a lone asker: means, as a rate depends on all waits.

    The prompts were of one full chunk, so that no two stages computed at once.
    """
    answers = [answer for look in looks for answer in look.alone]
    stages, layers = len(answers[0].spans), sum(answers[0].spans)  # in any route
    waits_s = [each for answer in answers for each in answer.waits_s[1:]]
    rows_us = [sum(each) for answer in answers for each in answer.stages_us[1:]]
    ends_us = [each for answer in answers for each in answer.ends_us[1:]]
    chunks_us = [sum(answer.stages_us[0]) for answer in answers]
    ends_chunks_us = [answer.ends_us[0] for answer in answers]
    ends_row_us = fmean(ends_us) / 2  # the last layers, and the first ones again
    engines_s = (fmean(rows_us) + fmean(ends_us)) / 1e6
    boundary_s = max(0.0, fmean(waits_s) - engines_s) / (stages + 1)
    decoding_s = sum(map(sum, (rows_us, ends_us, chunks_us, ends_chunks_us))) / 1e6
    passed = len(waits_s) + len(answers)
    besides_s = max(0.0, sum(look.cpu_s for look in looks) - decoding_s) / passed
    handling_s = min(besides_s / (stages + 1), boundary_s)
    return Measured(
        _speed(fmean(rows_us) / layers, fmean(chunks_us) / layers),
        _speed(ends_row_us, fmean(ends_chunks_us) - ends_row_us),
        boundary_s,
        handling_s,
        (besides_s - handling_s * (stages + 1)) / stages,
        fmean(look.cores for look in looks),
    )


def _speed(row_us: float, full_us: float) -> VirtualSpeed:
    """Return a speed from the times of a row and of a full decode."""
    per_row = max(0.0, full_us - row_us) / (ROWS_PER_DECODE_MAX - 1)
    return VirtualSpeed(row_us / 1e6, (row_us + per_row * (CHUNK_ROWS - 1)) / 1e6)


def scenario_of(seen: Measured, layers: int, width: int, sessions: int, context: int) -> Scenario:
    """Return the scenario in which peers are as fast as was measured."""
    stage, ends, way_s = seen.stage, seen.ends, seen.boundary_s - seen.handling_s
    return Scenario(
        about="five peers, of which one is killed, and two requesters",
        settle_s=SETTLE_S,
        cores=seen.cores,
        handling_ms=1000 * seen.handling_s,
        aside_ms=1000 * seen.aside_s,
        model=ModelTable(layers=layers, width=width, layer_mb=0.01, context=context),
        regions=RegionsTable(names=("here",), round_trip_ms=((2000 * way_s,),)),
        peers=tuple(
            PeersTable(
                count=1,
                serves=(serves.first, serves.end),
                layers=Spread(len(serves), len(serves)),
                sessions=sessions,
                row_ms=Spread(1000 * stage.row_s, 1000 * stage.row_s),
                chunk_ms=Spread(1000 * stage.chunk_s, 1000 * stage.chunk_s),
                up_mbit=Spread(1e5, 1e5),
                down_mbit=Spread(1e5, 1e5),
                last_mile_ms=Spread(0, 0),
                jitter=0.0,
                join_s=Spread(0, 0),
            )
            for serves in ranges_of(layers)
        ),
        requests=RequestsTable(
            requesters=REQUESTERS,
            per_minute=0,
            row_ms=1000 * ends.row_s,
            chunk_ms=1000 * ends.chunk_s,
        ),
    )


def simulate(scenario: Scenario, questions: int = QUESTIONS) -> Figures:
    """Go through the trial in virtual time, several times, and return the medians."""
    scenarios = [evolve(scenario, seed=seed) for seed in range(SEEDS)]
    runs = [run_virtual(partial(_play, each, questions), each.seed) for each in scenarios]
    trials, gossip = zip(*runs, strict=True)
    return figures(trials, statistics.median(gossip))


async def _play(scenario: Scenario, questions: int) -> tuple[list[TrialAnswer], float]:
    world = World(scenario, RunRecord())
    async with trio.open_nursery() as nursery:
        for machine in world.machines():
            nursery.start_soon(world.run_peer, machine)
        await trio.sleep(SETTLE_S / 2)
        for number in range(REQUESTERS):
            await nursery.start(world.run_requester, number)
        await trio.sleep(SETTLE_S / 2)
        chance = random.Random(scenario.seed)  # noqa: S311 -- a scenario's seed
        prompts = [
            [chance.randrange(1, world.model.vocabulary) for _ in range(PROMPT)]
            for _ in range(REQUESTERS * questions)
        ]

        def gossiped() -> int:
            sent = [world.network.sent(requester.id) for requester in world.requesters]
            return sum(each[kind] for each in sent for kind in GOSSIP)

        gossip = await idle(REQUESTERS, gossiped)
        found = await run_trial(
            [requester.client for requester in world.requesters],
            prompts,
            lambda peer: world.peers[peer].kill(),
        )
        nursery.cancel_scope.cancel()
    return found, gossip
