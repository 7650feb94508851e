"""What evidence costs: the same peers decode with receipts and without, taking turns.

A requester that asks for no evidence gets none, so both kinds of session run on one swarm. Which
kind goes first alternates too. Settling an answer, which waits for every stage's last receipt,
comes behind the last token; it is timed by itself.
"""

import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from p2pinfer.bench.decode import PROMPT, Run, generate
from p2pinfer.core.errors import P2pinferError
from p2pinfer.node import Client, ClientOptions, Machine, open_client
from p2pinfer.supply import name_model, open_store, open_whole
from p2pinfer.swarm import local_swarm, share_layers
from scheduler.routing import RouteHop


async def evidence_bench(model: Path, peers: int, *, tokens: int, runs: int) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench evidence`` prints.

    Raises:
        P2pinferError: receipts did not join up, or the tokens differed.
    """
    machine = Machine(sessions=2, context=1024)
    store = open_store()
    opened = open_whole(name_model(str(model), store, lambda *_: None), store)
    ranges = share_layers(opened, peers, 1, machine)
    async with AsyncExitStack() as stack:
        swarm = local_swarm(opened, ranges, machine=machine)
        running = await stack.enter_async_context(swarm)
        ways_in = tuple(peer.addresses[0] for peer in running)
        options = ClientOptions(opened.id, ways_in, "local", machine=machine)
        clients = []
        for evidence in (False, True):
            each = replace(options, evidence=evidence)
            clients.append(
                await stack.enter_async_context(open_client(each, store, lambda _: None))
            )
        route = await clients[0].find_route(lambda _: None)
        prompt = await clients[0].ends.tokenize(PROMPT, special=False)
        found: list[list[Run]] = [[], []]
        settling_s: list[float] = []
        for number in range(-1, runs):  # the first turn warms up, and is not counted
            for index in (0, 1) if number % 2 else (1, 0):
                run, settled_s = await _answer(clients[index], route, prompt, tokens)
                if number >= 0:
                    found[index].append(run)
                    settling_s += [settled_s] * index
    return _report(found[0], found[1], settling_s) | {"peers": peers, "prompt_tokens": len(prompt)}


async def _answer(
    client: Client, route: Sequence[RouteHop], prompt: list[int], tokens: int
) -> tuple[Run, float]:
    """Answer in a session of its own, and settle it where there is evidence."""
    async with client.open_session(route) as session:
        run = await generate(session, prompt, tokens)
        started = trio.current_time()
        if session.evidence and (found := await session.evidence.settle(len(session.tokens))):
            raise P2pinferError(f"at position {found.position}: {found.text}")
        return run, trio.current_time() - started


def _report(
    without: Sequence[Run], with_: Sequence[Run], settling_s: list[float]
) -> dict[str, Any]:
    if any(run.tokens != without[0].tokens for run in (*without, *with_)):
        raise P2pinferError("the swarm said other tokens with evidence than without")
    pairs = list(zip(without, with_, strict=True))
    decode = [run.decode_s / off.decode_s for off, run in pairs]
    prefill = [run.prefill_s / off.prefill_s for off, run in pairs]
    return {
        "tokens": len(without[0].tokens),
        "runs": len(pairs),
        "decode_cost": round(statistics.median(decode) - 1, 4),
        "decode_costs": [round(ratio - 1, 4) for ratio in decode],
        "prefill_cost": round(statistics.median(prefill) - 1, 4),
        "settle_ms": round(1000 * statistics.median(settling_s), 2),
        "ms_per_token_without": round(
            1000 * statistics.median(run.decode_s / (len(run.tokens) - 1) for run in without), 3
        ),
    }
