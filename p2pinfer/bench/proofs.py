"""What openings cost, and what they catch: real stages open rows, which are checked without layers.

The key is made anew, in a folder of its own. Each opened row is checked as it is, and then with
noise in each of its steps, at each layer in turn: what is signed does not matter to that.
"""

import secrets
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import trio
from attrs import evolve

from p2pinfer.bench.decode import PROMPT, EndedEarly
from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.opening import OpenedTrace, check_roots, encode
from p2pinfer.core.sampling import Sampling
from p2pinfer.core.traced import Traced
from p2pinfer.core.verdict import HALF_ATTENTION_MAX, judge_row
from p2pinfer.engine.store.proof_keys import ProofKey, ProofKeys
from p2pinfer.engine.store.store import Store
from p2pinfer.node.local_swarm import local_swarm, share_layers
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.proof_keys import make_proof_key
from p2pinfer.node.requester import Client, ClientOptions, Machine, open_client
from peers.asking.session import Session
from peers.receipts.openings import AskedRow, open_cells
from peers.receipts.session_evidence import Evidence

NOISE: Final = 1e-4
"""In a step, relative to its numbers; in attention, twice what is tolerated there."""

ROWS_AT_ONCE: Final = 4


@dataclass
class _Found:
    """What was measured."""

    opened_s: list[float] = field(default_factory=list)
    """Until a stage had opened its rows, for each of them."""
    checked_s: list[float] = field(default_factory=list)
    opening_bytes: list[int] = field(default_factory=list)
    layers: int = 0
    alarms: int = 0
    worst: dict[str, float] = field(default_factory=dict)
    caught: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))


async def proofs_bench(model: Path, peers: int, *, tokens: int, runs: int) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench proofs`` prints.

    Raises:
        P2pinferError: receipts did not join up, or a stage opened nothing.
    """
    machine = Machine(sessions=2, context=1024)
    store = open_store()
    opened = open_whole(name_model(str(model), store, lambda *_: None), store)
    with tempfile.TemporaryDirectory() as folder:
        keys, before_s = ProofKeys(Store(Path(folder)), secrets.token_bytes), time.process_time()
        started_s = trio.current_time()
        key = await make_proof_key(keys, store, opened.manifest, time.time_ns() / 1e9)
        key_s, key_cpu_s = trio.current_time() - started_s, time.process_time() - before_s
    found = _Found()
    async with AsyncExitStack() as stack:
        ranges = share_layers(opened, peers, 1, machine)
        swarm = local_swarm(opened, ranges, machine=machine)
        running = await stack.enter_async_context(swarm)
        ways_in = tuple(peer.addresses[0] for peer in running)
        options = ClientOptions(opened.id, ways_in, "local", machine=machine, audit_rate=0.0)
        client = await stack.enter_async_context(open_client(options, store, lambda _: None))
        for number in range(runs):
            await _run(client, key, tokens, found, number)
    return {
        "peers": peers,
        "key_s": round(key_s, 2),
        "key_cpu_s": round(key_cpu_s, 2),
        "key_bytes": key.nbytes,
        "rows": len(found.checked_s),
        "layers": found.layers,
        "opening_bytes_max": max(found.opening_bytes),
        "open_ms": round(1000 * statistics.median(found.opened_s), 1),
        "check_ms": round(1000 * statistics.median(found.checked_s), 1),
        "alarms": found.alarms,
        "alarms_95_max": round(1 - 0.05 ** (1 / found.layers), 6),
        "apart_max": {step: float(f"{apart:.2g}") for step, apart in found.worst.items()},
        "caught": {step: f"{sum(each)} of {len(each)}" for step, each in found.caught.items()},
    }


async def _run(client: Client, key: ProofKey, tokens: int, found: _Found, number: int) -> None:
    """Answer once, and have every stage open rows."""
    route = await client.find_route(lambda _: None)
    prompt = await client.ends.tokenize(PROMPT, special=False)
    async with client.open_session(route) as session:
        async with aclosing(session.generate(prompt, Sampling(), tokens)) as answer:
            async for _ in answer:
                pass
        evidence, count = session.evidence, len(session.tokens)
        assert evidence
        if count < len(prompt):
            raise EndedEarly(count, tokens)
        if broken := await evidence.settle(count):
            raise P2pinferError(f"at position {broken.position}: {broken.text}")
        chance = np.random.default_rng(number)
        for index in range(len(evidence.stages)):
            async for opening in _opened(client, session, evidence, index, chance, found):
                await trio.to_thread.run_sync(_check, opening, key, found, chance)


async def _opened(
    client: Client,
    session: Session,
    evidence: Evidence,
    index: int,
    chance: np.random.Generator,
    found: _Found,
) -> Any:
    """Yield the openings of a stage: of its last row, and of others."""
    stage, count = evidence.stages[index], len(session.tokens)
    others = chance.choice(count - 1, ROWS_AT_ONCE - 1, replace=False)
    asked = {}
    for position in sorted([*map(int, others), count - 1]):
        row = await evidence.inputs(index, position, 1)
        asked[position] = AskedRow(row.rows, row.regimes[0])
    receipt, started_s = stage.signed(count)[count], trio.current_time()
    async with open_cells(client.transport, stage.hop, evidence.terms, receipt) as cells:
        await cells.ask(asked)
        openings = [await cells.next() for _ in asked]
    found.opened_s.append((trio.current_time() - started_s) / len(openings))
    for opening in openings:
        yield opening


def _check(opening: OpenedTrace, key: ProofKey, found: _Found, chance: np.random.Generator) -> None:
    started_s = time.perf_counter()
    check_roots(opening)
    verdict = judge_row(opening, key.shape, key.layers)
    found.checked_s.append(time.perf_counter() - started_s)
    found.opening_bytes.append(len(encode(opening)))
    found.layers += verdict.layers
    found.alarms += not verdict.held
    for step, apart in verdict.worst.items():
        found.worst[str(step)] = max(apart, found.worst.get(str(step), 0.0))
    for step, layer, false in _falsified(opening, chance):
        fault = judge_row(false, key.shape, key.layers).fault
        found.caught[step].append(fault is not None and fault.layer in (layer, layer + 1))


def _falsified(
    opening: OpenedTrace, chance: np.random.Generator
) -> Iterator[tuple[str, int, OpenedTrace]]:
    """Yield the opening with noise in one step of one layer, for each step."""
    for place, step in enumerate(Traced):
        at = int(chance.integers(len(opening.layers)))
        layer = opening.layers[at]
        numbers = layer.step(step).astype(np.float64)
        noise = chance.standard_normal(numbers.size)
        share = 2 * HALF_ATTENTION_MAX if step is Traced.ATTENTION else NOISE
        noise *= share * np.linalg.norm(numbers) / np.linalg.norm(noise)
        altered = (numbers + noise).astype("<f4").tobytes()
        steps = (*layer.steps[:place], altered, *layer.steps[place + 1 :])
        layers = (*opening.layers[:at], evolve(layer, steps=steps), *opening.layers[at + 1 :])
        yield str(step), layer.layer, evolve(opening, layers=layers)
