"""What drafting ahead gains where hosts are far apart, in turns with the same answers without it.

Every peer is a process behind a slow link of its own (`slow_links`). Requesters of which one drafts
nothing ask the same things in turns over the same peers. All must make the same tokens, whatever
the text and the sampler: different ones are a failure, and no figure is given.
"""

import statistics
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import trio

from p2pinfer.bench.slow_links import SlowLink, SlowPort
from p2pinfer.core.errors import P2pinferError, lone_errors
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.python_process import python_command
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.llama.binding import requantise
from p2pinfer.engine.store.assemble import PartsModel, open_parts
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from p2pinfer.node.local_swarm import READY_S_MAX, run_peer, share_layers, wait_ready
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import ClientOptions, Machine, open_client
from peers.asking.drafts import DraftCount
from peers.asking.session import Session

NETWORK: Final = "bench"
PLAIN: Final = "plain"

WARM_UP_TOKENS = 16
"""Of the first answer to each text, which is not counted: its prompt is read, caches are warm, and
drafting has measured what plain tokens take."""

SAMPLERS: Final = {
    "greedy": Sampling(temperature=0.0),
    "t0.8": Sampling(temperature=0.8, seed=1),
    "t1.5-penalty": Sampling(temperature=1.5, repeat_penalty=1.1, seed=2),
}

REQUANTISED: Final = {"Q2_K": 10, "Q3_K_M": 12, "Q4_0": 2}
"""llama.cpp's file types. Of the default model's tokens in ``TEXTS`` 0.80, 0.87 and 0.84 stay the
same, and of its chat's 0.62, 0.81 and 0.81."""

_CODE = '''def area(shape):
    """Return the area of a shape."""
    if shape.kind == "circle":
        return 3.14159 * shape.radius * shape.radius
    if shape.kind == "square":
        return shape.side * shape.side
    raise ValueError(f"unknown shape {shape.kind}")
'''

TEXTS: Final = {
    "chat": "The most important thing to know about the sea is",
    "code": f"{_CODE}\n\ndef perimeter(shape):\n",
    "edit": f"The function:\n{_CODE}\nThe same function again:\n{_CODE}\nAnd once more:\ndef area(",
}
"""What answers go on from: little of it comes again, some of it, nearly all."""


@dataclass(frozen=True)
class _Run:
    tokens: list[int]
    decode_s: float
    drafts: DraftCount

    @property
    def tokens_per_second(self) -> float:
        return (len(self.tokens) - 1) / self.decode_s


async def wan_bench(
    file: Path,
    peers: int,
    link: SlowLink,
    *,
    tokens: int,
    runs: int,
    texts: Sequence[str],
    samplers: Sequence[str],
    small: Path | None = None,
    requantised: str | None = None,
) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench wan`` prints; rates are medians over the runs.

    Args:
        file: a GGUF file.
        peers: how many share its layers, each on a host of its own.
        link: between any two hosts.
        tokens: tokens in each answer, where the model does not end it before.
        runs: of each text and sampler.
        texts: names in ``TEXTS``.
        samplers: names in ``SAMPLERS``.
        small: another file with the same tokens, to draft by a third requester.
        requantised: have it draft by ``file`` itself, quantised again to one of ``REQUANTISED``.

    Raises:
        P2pinferError: an answer is another one with drafts than without.
        EngineError: llama.cpp cannot quantise the file again.
    """
    machine = Machine(sessions=3, context=1024)  # one for each requester
    store = open_store()
    model = open_whole(name_model(str(file), store, lambda *_: None), store)
    ranges = share_layers(model, peers, 1, machine)
    found, same = dict[str, dict[str, Any]](), 0
    async with AsyncExitStack() as stack:
        ways_in = await stack.enter_async_context(_far_swarm(model, ranges, machine, link))
        plain = ClientOptions(model.id, ways_in, NETWORK, machine=machine, audit_rate=0.0)
        sides = {PLAIN: plain, "text": replace(plain, drafts=True)}
        if small:
            drafter = open_whole(name_model(str(small), store, lambda *_: None), store)
            sides["model"] = replace(plain, drafts=True, draft_model=drafter)
        elif requantised:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pinfer-")))
            drafter = await trio.to_thread.run_sync(_requantised, file, folder, requantised)
            sides["model"] = replace(plain, drafts=True, draft_model=drafter)
        sessions: dict[str, Session] = {}
        for side, options in sides.items():
            client = await stack.enter_async_context(open_client(options, store, lambda _: None))
            route = await client.find_route(lambda _: None)
            sessions[side] = await stack.enter_async_context(client.open_session(route))
        for name in texts:
            prompt = await client.ends.tokenize(TEXTS[name], special=True)
            for sampler in samplers:
                sampling = SAMPLERS[sampler]
                wanted = [min(tokens, WARM_UP_TOKENS), *[tokens] * runs]
                turns = [await _turn(sessions, prompt, sampling, each) for each in wanted]
                if any(run.tokens != turn[PLAIN].tokens for turn in turns for run in turn.values()):
                    raise P2pinferError(f"{name}, {sampler}: other tokens with drafts")
                same += (len(sides) - 1) * len(turns)
                found[f"{name} {sampler}"] = {
                    side: _report(turns[1:], side) for side in sides if side != PLAIN
                }
    return {
        "peers": peers,
        "round_trip_ms": round(1000 * link.round_trip_s, 1),
        "mbit_per_s": round(link.bytes_per_s * 8 / 1e6, 1),
        "tokens": tokens,
        "same_tokens": f"{same} of {same}",
        "texts": found,
    }


def _requantised(file: Path, folder: Path, quantisation: str) -> PartsModel:
    """Quantise a model again, in a folder with a store of its own; raises EngineError."""
    lower, store = folder / "lower.gguf", Store(folder / "store")
    requantise(file, lower, REQUANTISED[quantisation])
    return open_parts(store, add_model(store, lower, lambda *_: None), folder)


async def _turn(
    sessions: Mapping[str, Session], prompt: list[int], sampling: Sampling, tokens: int
) -> dict[str, _Run]:
    """Let each side answer the same prompt."""
    return {
        side: await _answer(session, prompt, sampling, tokens) for side, session in sessions.items()
    }


def _report(turns: Sequence[Mapping[str, _Run]], side: str) -> dict[str, Any]:
    runs = [turn[side] for turn in turns]
    kept, wrong, dropped = (
        sum(getattr(run.drafts, each) for run in runs) for each in ("kept", "wrong", "dropped")
    )
    made = sum(len(run.tokens) for run in runs)
    plain, rates = ([turn[each].tokens_per_second for turn in turns] for each in (PLAIN, side))
    ratios = [rate / other for rate, other in zip(rates, plain, strict=True)]
    return {
        "plain_tokens_per_s": round(statistics.median(plain), 2),
        "tokens_per_s": round(statistics.median(rates), 2),
        "ratio": round(statistics.median(ratios), 3),
        "accepted": round(kept / (kept + dropped), 3) if kept + dropped else None,
        "right": round(kept / (kept + wrong), 3) if kept + wrong else None,
        "rows_per_token": round((made + dropped) / made, 3),
    }


async def _answer(session: Session, prompt: list[int], sampling: Sampling, count: int) -> _Run:
    """Ask once; the prompt is read in full the first time alone."""
    found, started = [], 0.0
    async with aclosing(session.generate(prompt, sampling, count)) as tokens:
        async for token in tokens:
            found.append(token.id)
            started = started or trio.current_time()
    decode_s = max(trio.current_time() - started, 1e-6)
    return _Run(found, decode_s, session.drafts)


@asynccontextmanager
async def _far_swarm(
    model: PartsModel, ranges: Sequence[LayerRange], machine: Machine, link: SlowLink
) -> AsyncIterator[tuple[str, ...]]:
    """Serve each range by one peer behind a slow link; yields the ways in."""
    ways_in: list[str] = []
    with tempfile.TemporaryDirectory(prefix="p2pinfer-") as home, lone_errors():
        async with trio.open_nursery() as nursery:
            with trio.fail_after(READY_S_MAX):
                for number, layers in enumerate(ranges):
                    port = SlowPort(link)
                    await nursery.start(port.serve)
                    command = [
                        *python_command("p2pinfer", "join", "--json", "--until-stdin-closes"),
                        *["--model", model.id, "--layers", str(layers), "--network", NETWORK],
                        *["--listen", "/ip4/127.0.0.1/tcp/0", "--announce", port.address],
                        *(["--bootstrap", *ways_in] if ways_in else []),
                        *["--identity", str(Path(home) / f"identity-{number}")],
                        *["--sessions", str(machine.sessions), "--context", str(machine.context)],
                        *["--threads", str(machine.threads or 1), "--gpu", "off"],
                    ]
                    log = Path(home) / f"log-{number}"
                    process = await nursery.start(run_peer, command, log, None)
                    announced, own, *_ = (await wait_ready(process, log)).addresses
                    port.lead_to(own)
                    ways_in.append(announced)
            yield tuple(ways_in)
            nursery.cancel_scope.cancel()
