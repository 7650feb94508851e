"""What an agent waits for: a recorded conversation of twenty turns with tools, played back.

An agent sends everything that was said with each turn, so what matters is how much of it is read
again. Each turn of the recording is asked in the sessions of one gateway. After some of them the
same prompt is also read by a session that knows nothing, which gives the ratio. Another agent with
the same tools begins while the first one's answer is still being made; then a peer is killed, and a
third one begins. A stream that writes all the while says how long reading makes others wait: in
seconds, and in blocks of a prompt that are read between two of its tokens, which do not depend on
what else the machine does.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import trio

from p2pinfer.bench.recovery import HOLDERS, STAGES, wait_known
from p2pinfer.bench.victims import NETWORK, Victims
from p2pinfer.client.answer import Answer, ChatOptions
from p2pinfer.client.library import Swarm, open_swarm
from p2pinfer.client.tool_calls import Tool
from p2pinfer.core.errors import UserError, lone_errors
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.template import Message
from p2pinfer.node.local_swarm import share_layers
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import Client, ClientOptions, Machine, for_model, open_client
from peers.asking.drafts import alike
from peers.asking.session import Session

TURNS_MAX: Final = 20
"""Of the recording."""

TOKENS: Final = 8
"""Of each answer: only its first tokens matter, as the recording says what comes next."""

STREAM_TOKENS: Final = 512
"""Of each answer of the stream."""

PAUSE_S_MAX: Final = 0.5
"""A stream that pauses for longer seems to have stopped."""

SESSIONS: Final = 4
"""The agent's, another agent's, the stream's, and one that knows nothing."""

HOW: Final = ChatOptions(Sampling(temperature=0.0), TOKENS)

THIRD_QUESTION: Final = "Which of the tests are slow, and why?"

STREAM_PROMPT: Final = "Tell a long story of a fox that walks through the whole of Europe."


@dataclass(frozen=True)
class Talk:
    """The recording."""

    tools: Sequence[Tool]
    messages: Sequence[Message]
    other: str
    """What another agent with the same tools is asked."""

    def before(self, turn: int) -> Sequence[Message]:
        """Return what an agent sends with a turn, counted from 0: a call and its result each."""
        return self.messages[: 2 + 2 * turn]

    def of_other(self, question: str = "") -> Sequence[Message]:
        """Return what another agent sends first."""
        return [self.messages[0], {"role": "user", "content": question or self.other}]


def read_talk() -> Talk:
    """Return the recording that is part of the package."""
    found = json.loads(files("p2pinfer.bench").joinpath("agent_talk.json").read_text())
    tools = [
        Tool(
            each["function"]["name"],
            each["function"]["description"],
            each["function"]["parameters"],
        )
        for each in found["tools"]
    ]
    return Talk(tools, found["messages"], found["other"])


@dataclass
class _Stream:
    """Somebody else's answers, and how long each of their tokens took."""

    gaps_s: list[float] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    """Of others' prompts, read before each of its tokens, while any are read."""
    _read: int = 0
    _is_reading: bool = False

    @contextmanager
    def beside(self, session: Session) -> Iterator[None]:
        """Count the blocks that a session reads during the block."""
        session.on_rows = self._count
        self._read, self._is_reading = 0, True
        try:
            yield
        finally:
            self._is_reading = False
            self.blocks.append(self._read)

    def _count(self, *_: object) -> None:
        self._read += 1

    def _spoke(self) -> None:
        if self._is_reading:
            self.blocks.append(self._read)
            self._read = 0

    async def run(self, client: Client, prompt: Sequence[int]) -> None:
        """Answer for ever."""
        route = await client.find_route(lambda _: None)
        async with client.open_session(route) as session:
            while True:
                last = None
                tokens = session.generate(prompt, HOW.sampling, STREAM_TOKENS)
                async with aclosing(tokens):
                    async for _ in tokens:
                        self._spoke()
                        now = trio.current_time()
                        self.gaps_s += [] if last is None else [now - last]
                        last = now


async def agent_bench(file: Path, *, turns: int, context: int) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench agent`` prints.

    Args:
        file: a whole model.
        turns: how many of the recording to play; it ends sooner where the model's context does.
        context: positions per session, at most the model's.

    Raises:
        UserError: not even two turns fit.
    """
    store = open_store()
    model = open_whole(name_model(str(file), store, lambda *_: None), store)
    machine = for_model(Machine(sessions=SESSIONS, context=context), model)
    ranges = share_layers(model, STAGES, 1, machine) * HOLDERS
    with tempfile.TemporaryDirectory(prefix="p2pinfer-") as home, lone_errors():
        async with trio.open_nursery() as nursery:
            victims = Victims(nursery, model, machine, ranges, Path(home))
            await victims.start()
            options = ClientOptions(
                model.id, victims.ways_in(), NETWORK, machine=machine, audit_rate=0.0
            )
            async with (
                open_client(options, store, lambda _: None) as client,
                open_swarm(client, SESSIONS) as swarm,
            ):
                await wait_known(client, victims)
                report = await _play(swarm, victims, turns)
            nursery.cancel_scope.cancel()
    return {"peers": len(ranges), "context": machine.context, **report}


async def _play(swarm: Swarm, victims: Victims, turns: int) -> dict[str, Any]:
    talk, client = read_talk(), swarm.client
    prompts: list[list[int]] = []
    for turn in range(turns):
        prompt = await _prompt(swarm, talk, talk.before(turn))
        if len(prompt) + TOKENS > client.ends.context:
            break
        prompts.append(prompt)
    if len(prompts) < 2:
        raise UserError(f"sessions of {client.ends.context} positions are too short for an agent")
    other = await _prompt(swarm, talk, talk.of_other())
    third = await _prompt(swarm, talk, talk.of_other(THIRD_QUESTION))
    stream, played, colds_s = _Stream(), [], {}
    async with trio.open_nursery() as nursery:
        asked = await swarm.prompt_of([{"role": "user", "content": STREAM_PROMPT}])
        nursery.start_soon(stream.run, client, asked)
        for turn, prompt in enumerate(prompts):
            if turn in {1, len(prompts) // 2, len(prompts) - 1}:
                colds_s[turn] = await _cold_s(client, prompt, stream)
            played.append(await _ask(swarm, prompt))
        nursery.cancel_scope.cancel()
    another = await _beside(swarm, prompts[-1], other)
    survived = await _after_death(swarm, victims, prompts[-1])
    late = await _ask(swarm, third)
    warm = {turn: played[turn].time_to_first_token_ms / 1000 for turn in colds_s}
    last = len(prompts) - 1
    return {
        "turns": len(prompts),
        "prompt_tokens": [len(prompt) for prompt in prompts],
        "read_tokens": [each.prompt_tokens - each.reused_tokens for each in played],
        "read_share": _share(played[1:]),
        "first_token_ratio": {
            str(turn + 1): round(warm[turn] / colds_s[turn], 4) for turn in sorted(colds_s)
        },
        "another_agent_shared_tokens": alike(prompts[-1], other),
        "another_agent_read_tokens": another.prompt_tokens - another.reused_tokens,
        "another_agent_read_share": _share([another]),
        "after_a_death_read_share": _share([survived]),
        "after_a_death_first_token_ratio": round(
            survived.time_to_first_token_ms / 1000 / colds_s[last], 4
        ),
        "after_a_death_another_agent_read_tokens": late.prompt_tokens - late.reused_tokens,
        **gaps_told(stream.gaps_s),
        "stream_tokens_beside_reading": len(stream.blocks),
        "blocks_read_between_tokens_max": max(stream.blocks),
        "blocks_read_between_tokens_mean": round(statistics.mean(stream.blocks), 3),
    }


def gaps_told(gaps_s: Sequence[float]) -> dict[str, float]:
    """Return what is told of the times between two tokens of a stream.

    On a machine that others load, the ratio to the median says more than the seconds do.
    """
    longest_s, median_s = max(gaps_s), statistics.median(gaps_s)
    return {
        "stream_gaps": len(gaps_s),
        "stream_gap_max_s": round(longest_s, 3),
        "stream_gap_p50_s": round(median_s, 4),
        "stream_gap_p99_s": round(statistics.quantiles(gaps_s, n=100, method="inclusive")[-1], 4),
        "stream_gap_max_to_p50": round(longest_s / median_s, 1),
        "stream_pauses_share": round(sum(gap_s > PAUSE_S_MAX for gap_s in gaps_s) / len(gaps_s), 5),
    }


def _share(answers: Sequence[Answer]) -> float:
    """Return how much of the prompts was read."""
    prompts = sum(each.prompt_tokens for each in answers)
    return round(1 - sum(each.reused_tokens for each in answers) / prompts, 4)


async def _prompt(swarm: Swarm, talk: Talk, messages: Sequence[Message]) -> list[int]:
    prompt = await swarm.render(messages, tools=talk.tools)
    return await swarm.client.ends.tokenize(prompt.text, special=True, literal=prompt.literal)


async def _ask(swarm: Swarm, prompt: Sequence[int]) -> Answer:
    answer = Answer()
    async with aclosing(swarm.answer(prompt, HOW, answer)) as pieces:
        async for _ in pieces:
            pass
    return answer


async def _cold_s(client: Client, prompt: Sequence[int], stream: _Stream) -> float:
    """Return how long the first token takes in a session that holds nothing."""
    route = await client.find_route(lambda _: None)
    async with client.open_session(route) as session:
        since = trio.current_time()
        with stream.beside(session):
            async with aclosing(session.generate(prompt, HOW.sampling, 1)) as tokens:
                async for _ in tokens:
                    break
        return trio.current_time() - since


async def _beside(swarm: Swarm, prompt: Sequence[int], other: Sequence[int]) -> Answer:
    """Ask for another agent while the first one's answer is still being made."""
    async with aclosing(swarm.answer(prompt, HOW, Answer())) as pieces:
        async for _ in pieces:
            return await _ask(swarm, other)
    raise AssertionError("an answer has a first piece")


async def _after_death(swarm: Swarm, victims: Victims, prompt: Sequence[int]) -> Answer:
    """Kill the middle stage of the agent's session, and ask its last turn again."""
    async with swarm.pool.lend(prompt) as lent:
        route = lent.session.route
    victims.kill(route[len(route) // 2].peer)
    return await _ask(swarm, prompt)
