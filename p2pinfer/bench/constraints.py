"""The cost of holding an answer to a schema: two sessions decode in turns, one of them held.

They take turns in short blocks at the same positions, and the one that goes first alternates, so a
slow moment of the machine hits both. What they say differs, how long a token takes is compared.
If a shared machine blurs that, the CPU time of the requester's engine, which samples, says more.
"""

import statistics
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, Final

import trio
from attrs import evolve

from p2pinfer.bench.decode import PROMPT, EndedEarly
from p2pinfer.bench.evidence import PAUSE_S, cpu_s, median_interval
from p2pinfer.client.grammars import json_shape
from p2pinfer.core.sampling import Sampling
from p2pinfer.node.local_swarm import local_swarm, share_layers
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import ClientOptions, Machine, open_client
from peers.asking.session import Token

BLOCK_TOKENS: Final = 17
"""The first one was computed while the other session paused, and is not timed."""

PERSON: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer"},
        "kind": {"enum": ["friend", "colleague", "stranger"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
SCHEMA: Final = {"type": "array", "items": PERSON, "minItems": 1000}
"""Longer than any answer here: text, numbers and choices in turn."""


async def constraints_bench(model: Path, peers: int, *, tokens: int, runs: int) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench constraints`` prints.

    Raises:
        EndedEarly: the model made fewer tokens.
    """
    machine = Machine(sessions=2, context=1024)
    store = open_store()
    opened = open_whole(name_model(str(model), store, lambda *_: None), store)
    ranges = share_layers(opened, peers, 1, machine)
    async with local_swarm(opened, ranges, machine=machine) as running:
        ways_in = tuple(peer.addresses[0] for peer in running)
        options = ClientOptions(opened.id, ways_in, "local", machine=machine, audit_rate=0.0)
        async with open_client(options, store, lambda _: None) as client:
            prompt = await client.ends.tokenize(PROMPT, special=False)
            grammar = await client.ends.read_grammar(json_shape(SCHEMA, strict=True).grammar)
            ways = Sampling(), evolve(Sampling(), grammar=grammar)
            found: list[tuple[float, float]] = []  # of each block: free, and held
            cpu: list[tuple[float, float]] = []  # the same, of the engine that samples
            for number in range(-1, runs):  # the first turn warms up, and is not counted
                async with AsyncExitStack() as stack:
                    answers = []
                    for sampling in ways:
                        route = await client.find_route(lambda _: None)
                        session = await stack.enter_async_context(client.open_session(route))
                        answer = session.generate(prompt, sampling, tokens)
                        answers.append(await stack.enter_async_context(aclosing(answer)))
                        await _take(answer, 1, tokens)
                    for block in range((tokens - 1) // BLOCK_TOKENS):
                        taken_s, spent_s = [0.0, 0.0], [0.0, 0.0]
                        for index in (0, 1) if (number + block) % 2 else (1, 0):
                            await trio.sleep(PAUSE_S)  # the other session's last step finishes
                            before_s = cpu_s([client.ends.worker.pid])
                            taken_s[index] = await _block_s(answers[index], tokens)
                            spent_s[index] = cpu_s([client.ends.worker.pid]) - before_s
                        if number >= 0:
                            found.append((taken_s[0], taken_s[1]))
                            cpu.append((spent_s[0], spent_s[1]))
    costs = [held / free - 1 for free, held in found]
    return {
        "peers": peers,
        "blocks": len(found),
        "decode_cost": round(statistics.median(costs), 4),
        "decode_cost_95": [round(bound, 4) for bound in median_interval(costs)],
        "sampling_cpu_us_per_token": round(
            1e6 * statistics.median(held - free for free, held in cpu) / BLOCK_TOKENS, 1
        ),
        "ms_per_token_without": round(
            1000 * statistics.median(free for free, _ in found) / (BLOCK_TOKENS - 1), 3
        ),
    }


async def _block_s(answer: AsyncGenerator[Token, None], wanted: int) -> float:
    """Decode a block, and return how long all but its first token took."""
    await _take(answer, 1, wanted)
    started = trio.current_time()
    await _take(answer, BLOCK_TOKENS - 1, wanted)
    return trio.current_time() - started


async def _take(answer: AsyncGenerator[Token, None], count: int, wanted: int) -> None:
    """Take an answer's next tokens; raises EndedEarly if there are fewer."""
    for _ in range(count):
        if await anext(answer, None) is None:
            raise EndedEarly(count, wanted)
