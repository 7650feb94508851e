"""The cost of evidence: two sessions of the same peers decode in turns, one with receipts.

A requester that asks for no evidence gets none, so both kinds run on one swarm. They take turns in
blocks of as many tokens as lie between two receipts, at the same positions, and the one that goes
first alternates; so a slow moment of the machine hits both, and each block has the cost of one
receipt. If a shared machine blurs even that, the CPU time of all nodes together, without engines,
is more precise: it bounds the delay of tokens. Settling an answer, which waits for every stage's
last receipt, comes after the last token; it is timed separately.
"""

import math
import os
import statistics
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import trio

from p2pinfer.bench.decode import PROMPT, EndedEarly
from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.receipts import CHECKPOINT_POSITIONS
from p2pinfer.core.sampling import Sampling
from p2pinfer.node.local_swarm import local_swarm, share_layers
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import Client, ClientOptions, Machine, open_client
from peers.asking.session import Session, Token
from scheduler.routing import RouteHop

BLOCK_TOKENS = 1 + CHECKPOINT_POSITIONS
"""The first one was computed while the other session paused, and is not timed."""

PAUSE_S = 0.05
"""Before a block, while the other session's last step finishes."""


@dataclass
class _Side:
    """One kind of session, and the time its answers took."""

    client: Client
    tokens: list[list[int]] = field(default_factory=list)
    prefill_s: list[float] = field(default_factory=list)
    block_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    """Of the nodes, for each block."""


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
        sides = []
        for evidence in (False, True):
            each = replace(options, evidence=evidence)
            client = await stack.enter_async_context(open_client(each, store, lambda _: None))
            sides.append(_Side(client))
        route = await sides[0].client.find_route(lambda _: None)
        prompt = await sides[0].client.ends.tokenize(PROMPT, special=False)
        nodes = [os.getpid(), *(peer.process.pid for peer in running)]
        settling_s = []
        for number in range(-1, runs):  # the first turn warms up, and is not counted
            settled_s = await _turn(sides, route, prompt, tokens, number, nodes)
            if number < 0:
                sides = [_Side(side.client) for side in sides]
            else:
                settling_s.append(settled_s)
    without, with_ = sides
    return _report(without, with_, settling_s) | {"peers": peers, "prompt_tokens": len(prompt)}


async def _turn(
    sides: Sequence[_Side],
    route: Sequence[RouteHop],
    prompt: list[int],
    tokens: int,
    number: int,
    nodes: Sequence[int],
) -> float:
    """Have both sides answer, in turns; return how long settling took."""
    async with AsyncExitStack() as stack:
        sessions: list[Session] = []
        answers: list[AsyncGenerator[Token, None]] = []
        for side in sides:
            session = await stack.enter_async_context(side.client.open_session(route))
            sessions.append(session)
            answer = session.generate(prompt, Sampling(), tokens)
            answers.append(await stack.enter_async_context(aclosing(answer)))
        for index in _order(number):
            side, started = sides[index], trio.current_time()
            side.tokens.append([])
            await _next(answers[index], side.tokens[-1], tokens)
            side.prefill_s.append(trio.current_time() - started)
        for block in range((tokens - 1) // BLOCK_TOKENS):
            for index in _order(number + block):
                side, before_s = sides[index], cpu_s(nodes)
                await trio.sleep(PAUSE_S)
                side.block_s.append(await next_block(answers[index], side.tokens[-1], tokens))
                side.cpu_s.append(cpu_s(nodes) - before_s)
        started = trio.current_time()
        (settled,) = [session for session in sessions if session.evidence]
        assert settled.evidence
        if found := await settled.evidence.settle(len(settled.tokens)):
            raise P2pinferError(f"at position {found.position}: {found.text}")
        return trio.current_time() - started


def _order(number: int) -> tuple[int, int]:
    return (0, 1) if number % 2 else (1, 0)


async def next_block(answer: AsyncGenerator[Token, None], made: list[int], wanted: int) -> float:
    """Decode a block, and time it after its first token."""
    await _next(answer, made, wanted)
    started = trio.current_time()
    for _ in range(BLOCK_TOKENS - 1):
        await _next(answer, made, wanted)
    return trio.current_time() - started


async def _next(answer: AsyncGenerator[Token, None], made: list[int], wanted: int) -> None:
    """Take an answer's next token; raises EndedEarly if there is none."""
    token = await anext(answer, None)
    if token is None:
        raise EndedEarly(len(made), wanted)
    made.append(token.id)


def cpu_s(processes: Sequence[int]) -> float:
    """Return the CPU time of processes; only Linux gives it finely enough, elsewhere 0."""
    found = (Path(f"/proc/{process}/task").glob("*/schedstat") for process in processes)
    return sum(int(each.read_text().split()[0]) for each in chain(*found)) / 1e9


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return an interval that contains the median with 95 % confidence, for any distribution.

    By order statistics: the count below the median is binomial. Fewer than six values are too few
    for that; their whole range has less confidence.
    """
    ordered, count = sorted(values), len(values)
    below, rank = 0.0, 0
    while (below := below + math.comb(count, rank) / 2**count) <= 0.025:
        rank += 1
    rank = max(rank - 1, 0)
    return ordered[rank], ordered[count - 1 - rank]


def _report(without: _Side, with_: _Side, settling_s: list[float]) -> dict[str, Any]:
    if without.tokens != with_.tokens:
        raise P2pinferError("the swarm's tokens with evidence differ from those without")
    decode = [on / off - 1 for on, off in zip(with_.block_s, without.block_s, strict=True)]
    prefill = [on / off - 1 for on, off in zip(with_.prefill_s, without.prefill_s, strict=True)]
    cpu = list(zip(with_.cpu_s, without.cpu_s, without.block_s, strict=True))
    cpu_cost = [(on - off) / block for on, off, block in cpu]
    return {
        "tokens": len(without.tokens[0]),
        "runs": len(settling_s),
        "blocks": len(decode),
        "decode_cost": round(statistics.median(decode), 4),
        "decode_cost_95": [round(bound, 4) for bound in median_interval(decode)],
        "cpu_us_per_token": round(
            1e6 * statistics.median(on - off for on, off, _ in cpu) / BLOCK_TOKENS, 1
        ),
        "cpu_cost": round(statistics.median(cpu_cost), 4),
        "cpu_cost_95": [round(bound, 4) for bound in median_interval(cpu_cost)],
        "prefill_cost": round(statistics.median(prefill), 4),
        "prefill_cost_95": [round(bound, 4) for bound in median_interval(prefill)],
        "settle_ms": round(1000 * statistics.median(settling_s), 2),
        "ms_per_token_without": round(
            1000 * statistics.median(without.block_s) / CHECKPOINT_POSITIONS, 3
        ),
    }
