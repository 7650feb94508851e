"""The cost of signing for K and V: two sessions of the same peers decode in turns, as ``evidence``.

While one of them decodes the block in the middle of its answer, every stage copies, reads and
hashes the cells of another answer, as long as this one, and signs for them. So each answer meets
what a stage does for one answer, if all are proven; nothing is done for those that are not. The
same block of the other session, just before or behind it, says what that took from decoding. By the
processor's time of all nodes and engines it is known more precisely than by the clock.
"""

import os
import statistics
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import trio

from p2pinfer.bench.decode import PROMPT, generate
from p2pinfer.bench.evidence import BLOCK_TOKENS, PAUSE_S, cpu_s, median_interval, next_block
from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.sampling import Sampling
from p2pinfer.node.local_swarm import local_swarm, share_layers
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import Client, ClientOptions, Machine, open_client
from peers.asking.session import Session, Token
from peers.receipts.openings import open_cells
from scheduler.routing import RouteHop

RUNS_MAX: Final = 7
"""A stage signs for eight answers of one requester at once, and for one a minute from then on; the
first one warms up."""


@dataclass
class SignedRun:
    """Two answers; times and processor times of their blocks, in seconds."""

    block_s: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    """Of the answer beside which nothing is signed, and of the other one."""
    cpu_s: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    signing_s: float = 0.0

    def costs(self) -> tuple[float, float]:
        """Return what signing took from decoding, as a share of it: time, and processor time."""
        middle = len(self.block_s[0]) // 2
        by_clock, by_cpu = (
            (beside[middle] - alone[middle]) / sum(alone)
            for alone, beside in (self.block_s, self.cpu_s)
        )
        return by_clock, by_cpu


async def kv_root_bench(model: Path, peers: int, *, tokens: int, runs: int) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench kv-root`` prints.

    Raises:
        P2pinferError: a stage did not sign, or the tokens differed.
    """
    machine = Machine(sessions=3, context=1024)
    store = open_store()
    opened = open_whole(name_model(str(model), store, lambda *_: None), store)
    ranges = share_layers(opened, peers, 1, machine)
    async with AsyncExitStack() as stack:
        swarm = local_swarm(opened, ranges, machine=machine)
        running = await stack.enter_async_context(swarm)
        ways_in = tuple(peer.addresses[0] for peer in running)
        options = ClientOptions(opened.id, ways_in, "local", machine=machine)
        client = await stack.enter_async_context(open_client(options, store, lambda _: None))
        route = await client.find_route(lambda _: None)
        prompt = await client.ends.tokenize(PROMPT, special=False)
        nodes = [os.getpid(), *(peer.process.pid for peer in running)]
        processes = nodes + [
            child.pid for node in nodes for child in psutil.Process(node).children(recursive=True)
        ]
        done = await stack.enter_async_context(client.open_session(route))
        due = (await generate(done, prompt, tokens)).tokens
        found = []
        for number in range(-1, runs):  # the first turn warms up, and is not counted
            run = await _turn(client, route, prompt, due, done, number, processes)
            found += [run] * (number >= 0)
    decode, cpu = zip(*(run.costs() for run in found), strict=True)
    alone_s = [sum(run.block_s[0]) for run in found]
    return {
        "peers": peers,
        "positions": len(done.tokens),
        "tokens": tokens,
        "runs": runs,
        "decode_cost": round(statistics.median(decode), 4),
        "decode_cost_95": [round(bound, 4) for bound in median_interval(decode)],
        "cpu_cost": round(statistics.median(cpu), 4),
        "cpu_cost_95": [round(bound, 4) for bound in median_interval(cpu)],
        "signing_ms": round(1000 * statistics.median(run.signing_s for run in found), 2),
        "tokens_per_second": round(
            len(run.block_s[0]) * (BLOCK_TOKENS - 1) / statistics.median(alone_s), 2
        ),
    }


async def _turn(
    client: Client,
    route: Sequence[RouteHop],
    prompt: list[int],
    due: list[int],
    done: Session,
    number: int,
    processes: Sequence[int],
) -> SignedRun:
    """Have two sessions answer, in turns; while the second is in the middle, ``done`` is signed."""
    run, blocks = SignedRun(), (len(due) - 1) // BLOCK_TOKENS
    async with AsyncExitStack() as stack:
        answers: list[AsyncGenerator[Token, None]] = []
        made: tuple[list[int], list[int]] = ([], [])
        for tokens in made:
            session = await stack.enter_async_context(client.open_session(route))
            answer = session.generate(prompt, Sampling(), len(due))
            answers.append(await stack.enter_async_context(aclosing(answer)))
            tokens.append((await anext(answer)).id)
        for block in range(blocks):
            for index in (0, 1) if (number + block) % 2 else (1, 0):
                before_s = cpu_s(processes)
                await trio.sleep(PAUSE_S)
                async with trio.open_nursery() as nursery:
                    if index and block == blocks // 2:
                        nursery.start_soon(_sign, client, done, run)
                    run.block_s[index].append(
                        await next_block(answers[index], made[index], len(due))
                    )
                run.cpu_s[index].append(cpu_s(processes) - before_s)
        if any(tokens != due[: len(tokens)] for tokens in made):
            raise P2pinferError("the swarm's tokens differ from those of its first answer")
    return run


async def _sign(client: Client, done: Session, run: SignedRun) -> None:
    """Have every stage sign for a session's cells, and name no row of it."""
    evidence, count = done.evidence, len(done.tokens)
    assert evidence
    if broken := await evidence.settle(count):
        raise P2pinferError(f"at position {broken.position}: {broken.text}")
    started = trio.current_time()
    for stage in evidence.stages:
        receipt = stage.signed(count)[count]
        async with open_cells(client.transport, stage.hop, evidence.terms, receipt):
            pass
    run.signing_s = trio.current_time() - started
