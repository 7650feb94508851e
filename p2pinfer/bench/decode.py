"""How fast a local swarm decodes, compared with llama.cpp alone on the same file in the same run.

Three things take turns, so that a slow moment of the machine hits all of them: the swarm over
libp2p, the same peers over bare TCP without encryption (a yardstick, not a strict bound: its
channel sends through the scheduler, ours at once), and llama.cpp in one process as people run it:
512 rows per decode of a prompt, and its weights in ordinary pages, where the peers' engines ask for
huge ones. Greedy, one engine thread per process. Tokens are compared first, with those of llama.cpp
alone with the swarm's rows per decode: different tokens are a failure, and no figure is given.
Longer prompts are then read over libp2p and by llama.cpp, in turn.

Two more take their turns among them: as many processes with the same slices that do nothing but run
them and hand rows on (`bare_hops`). Their ratio is about the best that a chain like this has here;
where they wait in trio and encrypt, about the best that such a program has.
"""

import json
import statistics
import subprocess
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

import trio

from p2pinfer.bench.bare_hops import BareChain, BareRun, open_bare_chain
from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.limits import CONTEXT_MIN
from p2pinfer.core.python_process import python_command, python_environment
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.base import Ends
from p2pinfer.engine.llama.binding import Settings
from p2pinfer.engine.llama.engine import open_stage
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.node.local_swarm import local_swarm, share_layers
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import Client, ClientOptions, Machine, open_client
from peers.asking.session import Session
from scheduler.routing import RouteHop

TRANSPORTS: Final = ("libp2p", "tcp")

PROMPT: Final = (
    "A swarm of ordinary machines shares one language model. Each of them holds a few layers, "
    "passes what it computed on to the next, and nobody is the master. "
) * 4

PROMPT_TOKENS_MAX = 16_384

LINE_BYTES_MAX = 1 << 20


class EndedEarly(P2pinferError):
    """The model ended its answer before a measurement had enough tokens."""

    def __init__(self, made: int, wanted: int) -> None:
        super().__init__(
            f"the model ended its answer after {made} of {wanted} tokens, too few to measure: ask"
            " for fewer with --tokens, or measure another model"
        )


class Alone(Protocol):
    """Asks llama.cpp alone."""

    def __call__(
        self, prompt: list[int], tokens: int, as_swarm: bool, sessions: int = 0, /
    ) -> Awaitable["DecodeRun"]:
        """Answer a prompt, read as the swarm does or not; several times at once, if wanted."""
        ...


@dataclass(frozen=True)
class DecodeRun:
    """One answer, measured."""

    tokens: list[int]
    prefill_s: float
    """Until the first token."""
    decode_s: float
    """For all tokens after the first."""
    engine_s: float = 0.0
    """The part of it that all engines together report as computing time."""

    @property
    def tokens_per_second(self) -> float:
        """The rate of decoding, without the prompt."""
        return (len(self.tokens) - 1) / self.decode_s


async def decode_bench(
    model: Path, peers: int, *, tokens: int, runs: int, sessions: int, prompts: Sequence[int]
) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench decode`` prints; rates are medians over the runs.

    Args:
        model: a GGUF file.
        peers: how many share its layers.
        tokens: tokens in each answer.
        runs: how many runs count.
        sessions: also decode in this many sessions at once.
        prompts: lengths of prompts in tokens; decoding is measured with the first one.

    Raises:
        P2pinferError: the swarm's tokens differ from those of llama.cpp alone.
    """
    machine = Machine(sessions=max(1, sessions), context=max(CONTEXT_MIN, max(prompts) + tokens))
    async with AsyncExitStack() as stack:
        store = open_store()
        opened = open_whole(name_model(str(model), store, lambda *_: None), store)
        ranges = share_layers(opened, peers, 1, machine)
        clients = {
            name: await stack.enter_async_context(open_peers(opened, ranges, machine, name))
            for name in TRANSPORTS
        }
        used = [await settings_used(opened, each) for each in ranges]
        repack, flash = all(r for r, _ in used), all(f for _, f in used)
        alone = await stack.enter_async_context(open_alone(model, machine.context, repack, flash))
        text = await prompt_text(clients["libp2p"][0].ends, max(prompts))
        prompt = text[: prompts[0]]
        found: dict[str, list[DecodeRun]] = {name: [] for name in ("alone", *TRANSPORTS)}
        together: dict[str, list[float]] = {name: [] for name in ("alone", *TRANSPORTS)}
        chain = BareChain(
            opened.ends(1),
            [opened.stage(each.first, each.end) for each in ranges],
            Settings(repack=repack, flash_attention=flash),
            prompts[0],
            tokens - 1,
            clients["libp2p"][0].ends.width,
        )
        bare, bare_runs = open_floors(chain, stack), defaultdict[str, list[BareRun]](list)
        due = (await alone(prompt, tokens, True)).tokens
        for number in range(-1, runs):  # the first one warms up, and is not counted
            turn = {"alone": await alone(prompt, tokens, False)}
            for name, go_round in bare.items():
                bare_runs[name].append(await trio.to_thread.run_sync(go_round))
            for name, (client, route) in clients.items():
                turn[name] = await one_session(client, route, prompt, tokens)
                _check(turn[name], due, name)
                if sessions > 1 and number >= 0:
                    rate = await _at_once(client, route, prompt, tokens, sessions)
                    together[name].append(rate / turn[name].tokens_per_second)
            if sessions > 1 and number >= 0:
                crowd = await alone(prompt, tokens, False, sessions)
                rate = sessions * crowd.tokens_per_second
                together["alone"].append(rate / turn["alone"].tokens_per_second)
            if number >= 0:
                for name, run in turn.items():
                    found[name].append(run)
        report = _report(found, peers, len(prompt))
        report |= {name: floor(found["alone"], each[1:], peers) for name, each in bare_runs.items()}
        report["prompts"] = {
            str(length): await _compare(alone, clients["libp2p"], text[:length], tokens, runs)
            for length in prompts
        }
    if sessions > 1:
        report["sessions"] = sessions
        report["aggregate_ratio"] = {name: median(each) for name, each in together.items()}
    return report


async def prompt_text(ends: Ends, tokens: int) -> list[int]:
    """Return ``tokens`` tokens of the text, repeated."""
    once = await ends.tokenize(PROMPT, special=False)
    return (await ends.tokenize(PROMPT * (tokens // len(once) + 1), special=False))[:tokens]


def _check(run: DecodeRun, due: list[int], name: str) -> None:
    if run.tokens != due:
        raise P2pinferError(f"over {name} the swarm's tokens differ from llama.cpp's")


async def _compare(
    alone: "Alone",
    swarm: tuple[Client, Sequence[RouteHop]],
    prompt: list[int],
    tokens: int,
    runs: int,
) -> dict[str, Any]:
    """Read one prompt in turn over libp2p and by llama.cpp with 512 rows per decode.

    What is decoded behind it is also compared with llama.cpp in the settings of the swarm, which
    are the fastest exact ones that were measured here.
    """
    client, route = swarm
    turns = []
    for _ in range(runs):
        same, usual = await alone(prompt, tokens, True), await alone(prompt, tokens, False)
        turns.append((await one_session(client, route, prompt, tokens), usual, same))
        _check(turns[-1][0], same.tokens, "libp2p")
    return {
        "prefill_ratio": median([usual.prefill_s / run.prefill_s for run, usual, _ in turns]),
        "decode_ratio": median([usual.decode_s / run.decode_s for run, usual, _ in turns]),
        "same_settings_decode_ratio": median(
            [same.decode_s / run.decode_s for run, _, same in turns]
        ),
        "time_to_first_token_ms": median([1000 * run.prefill_s for run, *_ in turns]),
        "alone_time_to_first_token_ms": median([1000 * usual.prefill_s for _, usual, _ in turns]),
    }


def _report(found: Mapping[str, Sequence[DecodeRun]], peers: int, prompt: int) -> dict[str, Any]:
    report: dict[str, Any] = {
        "peers": peers,
        "prompt_tokens": prompt,
        "tokens": len(found["alone"][0].tokens),
        "runs": len(found["alone"]),
        "same_tokens": True,  # decode_bench raises otherwise
    }
    for name, runs in found.items():
        report[name] = {
            "tokens_per_second": median([run.tokens_per_second for run in runs]),
            "time_to_first_token_ms": median([1000 * run.prefill_s for run in runs]),
        }
    for name in TRANSPORTS:
        pairs = list(zip(found[name], found["alone"], strict=True))
        ratios = [run.tokens_per_second / other.tokens_per_second for run, other in pairs]
        report[name] |= {
            "decode_ratio": median(ratios),
            "decode_ratios": [round(ratio, 3) for ratio in ratios],
            "prefill_ratio": median([other.prefill_s / run.prefill_s for run, other in pairs]),
            "engine_ms_per_token": median([_per_token(run, run.engine_s) for run, _ in pairs]),
            "ms_per_boundary": median(
                [_per_token(run, run.decode_s - run.engine_s) / (peers + 1) for run, _ in pairs]
            ),
        }
        report["alone"]["ms_per_token"] = median(
            [_per_token(other, other.decode_s) for _, other in pairs]
        )
    return report


def open_floors(chain: BareChain, stack: AsyncExitStack) -> dict[str, Callable[[], BareRun]]:
    """Run both kinds of bare chains until the stack is closed."""
    kinds = {"floor": chain, "trio_floor": replace(chain, encrypts=True)}
    return {name: stack.enter_context(open_bare_chain(each)) for name, each in kinds.items()}


def floor(alone: Sequence[DecodeRun], bare: Sequence[BareRun], peers: int) -> dict[str, float]:
    """Return what the bare chain took in the same turns as llama.cpp alone."""
    pairs = list(zip(alone, bare, strict=True))
    hops = [_per_token(run, each.seconds - each.engine_s) / (peers + 1) for run, each in pairs]
    return {
        "decode_ratio": median([run.decode_s / each.seconds for run, each in pairs]),
        "engine_ms_per_token": median([_per_token(run, each.engine_s) for run, each in pairs]),
        "ms_per_boundary": median(hops),
    }


def _per_token(run: DecodeRun, seconds: float) -> float:
    return 1000 * seconds / (len(run.tokens) - 1)


def median(values: Sequence[float]) -> float:
    """Return the median as reports give it."""
    return round(statistics.median(values), 3)


async def one_session(
    client: Client, route: Sequence[RouteHop], prompt: list[int], count: int
) -> DecodeRun:
    """Decode in a new session of the swarm; raises as ``generate``."""
    async with client.open_session(route) as session:
        return await generate(session, prompt, count)


async def generate(session: Session, prompt: list[int], count: int) -> DecodeRun:
    """Generate tokens, and add up the engines' times for those after the first.

    Raises:
        EndedEarly: the model generated fewer.
    """
    started = first = trio.current_time()
    tokens: list[int] = []
    engine_us = 0
    async with aclosing(session.generate(prompt, Sampling(), count)) as answer:
        async for token in answer:
            tokens.append(token.id)
            if len(tokens) == 1:
                first = trio.current_time()
            else:
                engine_us += token.ends_us + sum(token.stages_us)
    if len(tokens) < count:
        raise EndedEarly(len(tokens), count)
    return DecodeRun(tokens, first - started, trio.current_time() - first, engine_us / 1e6)


async def _at_once(
    client: Client, route: Sequence[RouteHop], prompt: list[int], count: int, sessions: int
) -> float:
    """Decode in several sessions at once, and return their combined tokens per second.

    Every session has its first token before the clock starts, so that decoding alone is timed.
    """
    ready, go = trio.open_memory_channel[None](sessions), trio.Event()

    async def one(number: int) -> None:
        made = 0
        async with client.open_session(route) as session:
            answer = session.generate(prompt[number:], Sampling(), count)
            async with aclosing(answer) as tokens:
                async for _ in tokens:
                    made += 1
                    if made == 1:
                        await ready[0].send(None)
                        await go.wait()
        if made < count:
            raise EndedEarly(made, count)

    async with trio.open_nursery() as nursery:
        for number in range(sessions):
            nursery.start_soon(one, number)
        for _ in range(sessions):
            await ready[1].receive()
        started = trio.current_time()
        go.set()
    return sessions * (count - 1) / (trio.current_time() - started)


async def settings_used(opened: PartsModel, layers: LayerRange) -> tuple[bool, bool]:
    """Whether the engine of a slice rearranges weights here, and uses flash attention."""
    path = opened.stage(layers.first, layers.end)
    async with open_stage(path, layers.first, sessions=1, context=1) as engine:
        (part,) = engine.worker.parts
        return part.repack, part.flash_attention


@asynccontextmanager
async def open_peers(
    opened: PartsModel, ranges: Sequence[LayerRange], machine: Machine, transport: str
) -> AsyncGenerator[tuple[Client, Sequence[RouteHop]], None]:
    """Run local peers over a transport, and a client of them in this process."""
    swarm = local_swarm(opened, ranges, machine=machine, transport=transport)
    async with swarm as running:
        ways_in = tuple(peer.addresses[0] for peer in running)
        options = ClientOptions(opened.id, ways_in, "local", machine=machine, transport=transport)
        async with open_client(options, open_store(), lambda _: None) as client:
            yield client, await client.find_route(lambda _: None)


@asynccontextmanager
async def open_alone(
    model: Path,
    context: int,
    repack: bool = True,
    flash: bool = True,
    *,
    servers: Sequence[str] = (),
    more_environment: Mapping[str, str] = MappingProxyType({}),
) -> AsyncGenerator[Alone, None]:
    """Run llama.cpp in a process of its own; yields a function that asks it.

    ``repack``, ``flash``: whether the swarm's engines rearrange weights, and use flash attention,
    as llama.cpp does by default. ``servers``: llama.cpp's own, which share the layers.
    """
    words = [str(model), str(context), str(int(repack)), str(int(flash)), *servers]
    command = python_command("p2pinfer.bench.alone", *words)
    environment = {**python_environment(), **more_environment}
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert process.stdin
    assert process.stdout
    stdin, stdout = process.stdin, process.stdout

    async def ask(
        prompt: list[int], tokens: int, as_swarm: bool, sessions: int = 0, /
    ) -> DecodeRun:
        question = {
            "prompt": prompt,
            "tokens": tokens,
            "as_swarm": as_swarm,
            "sessions": sessions,
        }
        await stdin.send_all(json.dumps(question).encode() + b"\n")
        line = bytearray()
        while not line.endswith(b"\n"):
            data = await stdout.receive_some()
            if not data or len(line) > LINE_BYTES_MAX:
                raise P2pinferError("llama.cpp alone gave no answer")
            line += data
        return DecodeRun(**json.loads(line))

    try:
        yield ask
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
