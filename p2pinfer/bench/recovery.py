"""The cost of a peer's death to an answer: kill -9 of each role, in the prompt and in the answer.

Each range of layers has two holders. In every trial the same question is answered twice by one
requester, greedily, in separate sessions: once undisturbed, and once with a peer of the chain
killed at a random moment. A trial's stall is the difference in the longest wait for a token.
"""

import random
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import trio

from p2pinfer.bench.decode import PROMPT, EndedEarly
from p2pinfer.bench.victims import NETWORK, Victims
from p2pinfer.core.errors import P2pinferError, PeerError, lone_errors
from p2pinfer.core.ids import PeerId
from p2pinfer.core.sampling import Sampling
from p2pinfer.node.local_swarm import share_layers
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import Client, ClientOptions, Machine, open_client
from peers.asking.session import Session

STAGES, HOLDERS = 3, 2
Role = Literal["first", "middle", "last"]
Phase = Literal["prompt", "answer"]
ROLES: Final[tuple[Role, ...]] = ("first", "middle", "last")
PHASES: Final[tuple[Phase, ...]] = ("prompt", "answer")

PROMPT_TOKENS = 384
"""Eight full chunks: reading them takes long enough for a kill in the middle."""

GREEDY = Sampling(temperature=0.0)

KNOWN_S_MAX = 60.0
"""How long a new peer's advertisement may take to spread."""

AGAIN_S = 0.1


@dataclass(frozen=True)
class _Answer:
    tokens: list[int]
    waits_s: list[float]
    """For each token; the first one waits for the prompt."""


@dataclass(frozen=True)
class _Trial:
    role: Role
    phase: Phase
    error: str
    """Why the answer was not completed; empty if it was."""
    is_same: bool
    stall_s: float


async def recovery_bench(
    file: Path,
    *,
    trials: int,
    tokens: int,
    seed: int,
    roles: Sequence[Role] = ROLES,
    phases: Sequence[Phase] = PHASES,
) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench recovery`` prints.

    Args:
        file: a whole model.
        trials: how many of each role and phase.
        tokens: tokens in an answer.
        seed: random seed for the moments of death.
        roles: which stages are killed.
        phases: when they are killed.

    Raises:
        EndedEarly: the model made fewer tokens.
    """
    cases = [(role, phase) for phase in phases for role in roles]
    chance = random.Random(seed)  # noqa: S311 -- picks moments
    store = open_store()
    model = open_whole(name_model(str(file), store, lambda *_: None), store)
    machine = Machine(sessions=4, context=1024)
    ranges = share_layers(model, STAGES, 1, machine) * HOLDERS
    found: list[_Trial] = []
    with tempfile.TemporaryDirectory(prefix="p2pinfer-") as home, lone_errors():
        async with trio.open_nursery() as nursery:
            victims = Victims(nursery, model, machine, ranges, Path(home))
            await victims.start()
            options = ClientOptions(model.id, victims.ways_in(), NETWORK, machine=machine)
            async with open_client(options, store, lambda _: None) as client:
                text = await client.ends.tokenize(PROMPT * PROMPT_TOKENS, special=False)
                await _answer(client, text[:48], 4, None)  # warms up
                for number, case in enumerate(cases * trials):
                    prompt = text[number : number + PROMPT_TOKENS]
                    await wait_known(client, victims)
                    found.append(await _try(client, victims, prompt, tokens, case, chance))
            nursery.cancel_scope.cancel()
    return _report(found, cases) | {"peers": len(ranges), "seed": seed}


async def wait_known(client: Client, victims: Victims, known_s_max: float = KNOWN_S_MAX) -> None:
    """Wait until all peers serve and the requester knows each of them."""
    await victims.wait_whole()
    with trio.fail_after(known_s_max):
        while not set(victims.serving) <= {offer.peer for offer in client.serving()}:  # noqa: ASYNC110 -- gossip comes without an event
            await trio.sleep(AGAIN_S)


class _Killer:
    """Kills one stage of a session at a certain moment of its answer."""

    def __init__(self, victims: Victims, role: int, after_s: float | None, at: int) -> None:
        self._victims, self._role = victims, role
        self.after_s, self.at = after_s, at

    def kill(self, session: Session) -> None:
        """Kill the peer that has the role now."""
        self._victims.kill(PeerId(session.route[self._role].peer))


async def _try(
    client: Client,
    victims: Victims,
    prompt: list[int],
    tokens: int,
    case: tuple[Role, Phase],
    chance: random.Random,
) -> _Trial:
    """Answer twice, the second time with a peer killed."""
    alone = await _answer(client, prompt, tokens, None)
    role, phase = case
    after_s = chance.uniform(0, alone.waits_s[0]) if phase == "prompt" else None
    killer = _Killer(victims, ROLES.index(role), after_s, chance.randrange(1, tokens - 1))
    error, stall_s, same = "", 0.0, False
    try:
        harmed = await _answer(client, prompt, tokens, killer)
        same = harmed.tokens == alone.tokens
        stall_s = max(
            harmed.waits_s[0] - alone.waits_s[0],
            max(harmed.waits_s[1:]) - statistics.median(alone.waits_s[1:]),
        )
    except PeerError as failure:
        error = str(failure)
    return _Trial(role, phase, error, same, stall_s)


async def _answer(
    client: Client, prompt: Sequence[int], count: int, killer: _Killer | None
) -> _Answer:
    """Answer in a new session, killing a peer meanwhile if ``killer`` is given."""
    route = await client.find_route(lambda _: None)
    found: list[int] = []
    waits_s: list[float] = []
    async with (
        client.open_session(route) as session,
        aclosing(session.generate(prompt, GREEDY, count)) as tokens,
        trio.open_nursery() as nursery,
    ):
        if killer and killer.after_s is not None:
            nursery.start_soon(_kill_after, killer, killer.after_s, session)
        since = trio.current_time()
        async for token in tokens:
            waits_s.append(trio.current_time() - since)
            found.append(token.id)
            if killer and killer.after_s is None and len(found) == killer.at:
                killer.kill(session)
            since = trio.current_time()
    if len(found) < count:
        raise EndedEarly(len(found), count)
    return _Answer(found, waits_s)


async def _kill_after(killer: _Killer, seconds: float, session: Session) -> None:
    await trio.sleep(seconds)
    killer.kill(session)


def _report(trials: Sequence[_Trial], cases: Sequence[tuple[Role, Phase]]) -> dict[str, Any]:
    return {
        **_summary(trials),
        "by_role_and_phase": {
            f"{role}, in the {phase}": _summary(
                [each for each in trials if (each.role, each.phase) == (role, phase)]
            )
            for role, phase in cases
        },
        "errors": [each.error for each in trials if each.error],
    }


def _summary(trials: Sequence[_Trial]) -> dict[str, Any]:
    if not trials:
        raise P2pinferError("there was no trial")
    stalls = sorted(each.stall_s for each in trials if not each.error) or [0.0]
    return {
        "trials": len(trials),
        "completed_share": sum(not each.error for each in trials) / len(trials),
        "same_tokens_share": sum(each.is_same for each in trials) / len(trials),
        "stall_p50_s": round(statistics.median(stalls), 3),
        "stall_p99_s": round(stalls[min(len(stalls) - 1, int(0.99 * len(stalls)))], 3),
        "stall_max_s": round(stalls[-1], 3),
    }
