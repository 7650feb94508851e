"""Can a simulation be trusted? One trial in a swarm of real processes, and in a simulated one.

The simulation gets what was observed of the real swarm while one requester asked alone: the time
per layer, the time a token spends between two engines, the processors' share of that time, and
the combined speed of several engines on this machine's cores. It must predict the rest.
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import trio

from p2pinfer.bench.decode import PROMPT as TEXT
from p2pinfer.bench.recovery import wait_known
from p2pinfer.bench.victims import NETWORK, Victims
from p2pinfer.core.errors import lone_errors
from p2pinfer.core.limits import ROWS_PER_DECODE_MAX
from p2pinfer.core.regimes import Regime
from p2pinfer.engine.gguf.model_header import ModelInfo
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import Client, ClientOptions, Machine, open_client
from sim.links import TCP_IP_BYTES
from sim.trial import (
    GREEDY,
    PROMPT,
    REQUESTERS,
    Figures,
    Measured,
    TrialLook,
    ask,
    figures,
    idle,
    measured,
    ranges_of,
    run_trial,
    scenario_of,
    simulate,
)
from transports.libp2p.noise_records import NoiseWire
from transports.libp2p.yamux import DATA

SESSIONS, CONTEXT = 4, 1024

LOOK_QUESTIONS = 3

CORES_TURNS, CORES_TRIES = 6, 25
"""How many times engines work alone and then all at once, and how many decodes of some milliseconds
each of them does in a turn."""

GOAL_PERCENT = 15.0


@dataclass(frozen=True)
class Real:
    """The real swarm's figures, and what a simulation learns about it."""

    model: ModelInfo
    seen: Measured
    figures: Figures
    questions: int


@dataclass(frozen=True)
class TrialPlan:
    """The extent of the real trial."""

    rounds: int
    """How many times the trial runs; the median counts."""
    questions: int
    """Questions per requester, simulated ones included."""
    quiet_s: float
    """Time without questions, in which gossip is counted."""


async def play_real(file: Path, plan: TrialPlan, tell: Callable[[str], None]) -> Real:
    """Start peers and requesters, let one ask alone, and run the trial several times.

    A shared machine's speed differs from minute to minute, so the simulation's inputs are measured
    before and after each trial. ``tell`` gets a message for each.
    """
    store = open_store()
    model = open_whole(name_model(str(file), store, lambda *_: None), store)
    machine = Machine(sessions=SESSIONS, context=CONTEXT)
    sent = _count_sent()
    async with AsyncExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pinfer-"))
        stack.enter_context(lone_errors())
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        ranges = ranges_of(model.info.layers)
        victims = Victims(nursery, model, machine, ranges, Path(home))
        await victims.start()
        options = ClientOptions(model.id, victims.ways_in(), NETWORK, machine=machine)
        clients: list[Client] = []
        for _ in range(REQUESTERS):
            opened = open_client(options, store, lambda _: None)
            clients.append(await stack.enter_async_context(opened))
            await wait_known(clients[-1], victims)
        text = await clients[0].ends.tokenize(TEXT * PROMPT * plan.questions, special=False)
        prompts = [text[n : n + PROMPT] for n in range(REQUESTERS * plan.questions)]
        for client in clients:
            await ask(client, prompts[0])  # warms up
        tell("a real swarm at rest")
        gossip = await idle(REQUESTERS, lambda: sent[0], plan.quiet_s)
        looks, trials = [], []
        for number in range(plan.rounds):
            tell(f"real trial {number + 1} of {plan.rounds}")
            for client in clients:
                await wait_known(client, victims)  # killed peers have been replaced
            looks.append(await _look(clients, prompts[1][:ROWS_PER_DECODE_MAX]))
            trials.append(await run_trial(clients, prompts, victims.kill))
        looks.append(await _look(clients, prompts[1][:ROWS_PER_DECODE_MAX]))
    return Real(model.info, measured(looks), figures(trials, gossip), plan.questions)


async def _look(clients: Sequence[Client], prompt: Sequence[int]) -> TrialLook:
    """Let one requester ask alone, then let all engines work at once."""
    before_s = _cpu_s()
    alone = [await ask(clients[0], prompt) for _ in range(LOOK_QUESTIONS)]
    return TrialLook(alone, _cpu_s() - before_s, await _measure_cores(clients, prompt[0]))


def _count_sent() -> list[int]:
    """Count bytes sent from now on, with all headers but without pings, in a list's one item.

    Pings go out every few seconds whatever else is sent, and no simulation has them.
    """
    seal, sent = NoiseWire.seal, [0]

    def counted_seal(self: NoiseWire, frames: list[bytes]) -> bytes:
        sealed = seal(self, frames)
        if any(frame[1] == DATA for frame in frames):
            sent[0] += TCP_IP_BYTES + len(sealed)
        return sealed

    replaced: Any = NoiseWire
    replaced.seal = counted_seal
    return sent


def _cpu_s() -> float:
    """Return the CPU seconds of this process and all its children."""
    this = psutil.Process()
    times = [each.cpu_times() for each in (this, *this.children(recursive=True))]
    return sum((each.user + each.system for each in times), 0.0)


async def _measure_cores(clients: Sequence[Client], token: int) -> float:
    """Return the combined speed of all requesters' engines, in multiples of one working alone.

    A decode of one row mostly waits for weights from memory that all engines share, as in a
    stage.
    """
    alone_us: list[int] = []
    at_once_us: list[int] = []
    for _ in range(CORES_TURNS):
        await _decode(clients[0], token, alone_us)
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(_decode, client, token, at_once_us)
    ratio = statistics.fmean(alone_us) / statistics.fmean(at_once_us)
    return len(clients) * min(1.0, ratio)


async def _decode(client: Client, token: int, times_us: list[int]) -> None:
    """Decode one row several times in a requester's own engine, and record each duration."""
    with closing(client.ends.open()) as cells:
        cells.start(GREEDY, [])
        rows = (await cells.embed(0, [token], regime=Regime.NARROW)).rows
        times_us += [
            (await cells.next(0, rows, regime=Regime.NARROW)).decoding_us
            for _ in range(CORES_TRIES)
        ]


def validate(real: Real) -> dict[str, Any]:
    """Simulate the trial, and return what ``p2pinfer sim validate`` prints."""
    info = real.model
    scenario = scenario_of(real.seen, info.layers, info.width, SESSIONS, CONTEXT)
    return compare(real.figures, simulate(scenario, real.questions)) | {"told": asdict(real.seen)}


def compare(real: Figures, simulated: Figures) -> dict[str, Any]:
    """Put the figures side by side."""
    observed, predicted = asdict(real), asdict(simulated)
    found: dict[str, Any] = {}
    for name, value in observed.items():
        off = 100 * (predicted[name] / value - 1) if value else None
        found[name] = {
            "real": round(value, 3),
            "simulated": round(predicted[name], 3),
            "deviation_percent": None if off is None else round(off, 1),
            "within_goal": off is not None and abs(off) <= GOAL_PERCENT,
        }
    return {"figures": found, "goal_percent": GOAL_PERCENT}
