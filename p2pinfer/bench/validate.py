"""Is a simulation to be believed? One trial in a swarm of real processes, and in a simulated one.

What the simulation is told is what the real swarm says while one requester asks alone: how long a
layer takes, what a token spends between two machines, and what several engines at once come to on
this machine's cores. All else it must foretell.
"""

import statistics
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio

from p2pinfer.bench.decode import PROMPT as TEXT
from p2pinfer.bench.discovery_peer import count_bytes
from p2pinfer.bench.recovery import wait_known
from p2pinfer.bench.victims import NETWORK, Victims
from p2pinfer.core.errors import lone_errors
from p2pinfer.core.limits import ROWS_PER_DECODE_MAX
from p2pinfer.engine.models import ModelInfo
from p2pinfer.node import Client, ClientOptions, Machine, open_client
from p2pinfer.supply import name_model, open_store, open_whole
from sim.trial import (
    PROMPT,
    QUESTIONS,
    REQUESTERS,
    Figures,
    Measured,
    ask,
    measured,
    ranges_of,
    run_trial,
    scenario_of,
    simulate,
)

SESSIONS, CONTEXT = 4, 1024

CORES_TRIES = 60
"""Decodes of some milliseconds each."""

GOAL_PERCENT = 15.0


@dataclass(frozen=True)
class Real:
    """What the real swarm came to, and what a simulation is told of it."""

    model: ModelInfo
    seen: Measured
    figures: Figures


async def play_real(file: Path) -> Real:
    """Start peers and requesters, let one ask alone, and go through the trial."""
    store = open_store()
    model = open_whole(name_model(str(file), store, lambda *_: None), store)
    machine = Machine(sessions=SESSIONS, context=CONTEXT)
    counted = count_bytes()
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
        text = await clients[0].ends.tokenize(TEXT * PROMPT * QUESTIONS, special=False)
        prompts = [text[n : n + PROMPT] for n in range(REQUESTERS * QUESTIONS)]
        for client in clients:
            await ask(client, prompts[0])  # warms up
        alone = await ask(clients[0], prompts[1][:ROWS_PER_DECODE_MAX])
        seen = measured(alone, await _measure_cores(clients, prompts[1]))
        figures = await run_trial(clients, prompts, victims.kill, lambda: counted["sent"])
    return Real(model.info, seen, figures)


async def _measure_cores(clients: Sequence[Client], prompt: Sequence[int]) -> float:
    """Return what the engines of all requesters come to at once, in engines that work alone."""
    alone_us = await _embed(clients[0], prompt)
    times_us: list[float] = []

    async def embed(client: Client) -> None:
        times_us.append(await _embed(client, prompt))

    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(embed, client)
    return len(clients) * alone_us / statistics.fmean(times_us)


async def _embed(client: Client, prompt: Sequence[int]) -> float:
    """Return the microseconds of a decode of a full chunk in a requester's own engine."""
    chunk = list(prompt[:ROWS_PER_DECODE_MAX])
    with closing(client.ends.open()) as cells:
        times_us = [
            (await cells.embed(0, chunk, wide=True)).decoding_us for _ in range(CORES_TRIES)
        ]
    return statistics.median(times_us)


def validate(real: Real) -> dict[str, Any]:
    """Simulate the trial, and return what ``p2pinfer sim validate`` prints."""
    info = real.model
    scenario = scenario_of(real.seen, info.layers, info.width, SESSIONS, CONTEXT)
    return compare(real.figures, simulate(scenario)) | {"told": asdict(real.seen)}


def compare(real: Figures, simulated: Figures) -> dict[str, Any]:
    """Put the figures side by side."""
    said, foretold = asdict(real), asdict(simulated)
    found: dict[str, Any] = {}
    for name, value in said.items():
        off = 100 * (foretold[name] / value - 1) if value else None
        found[name] = {
            "real": round(value, 3),
            "simulated": round(foretold[name], 3),
            "deviation_percent": None if off is None else round(off, 1),
            "within_goal": off is not None and abs(off) <= GOAL_PERCENT,
        }
    return {"figures": found, "goal_percent": GOAL_PERCENT}
